"""Grammar of answers: writer and parser.

    answer   := [opener] [permission | refusal] [core] filler* [care] filler* closer*
                (with a core or a refusal; care only with a core)
    core     := ["since" echo ["and" echo] ","] lead activity detail{0,3} "."
    refusal  := ("i am sorry, but" | "no,") ("that" wish "is not safe" | "i must decline" | "never") "."

`write` draws an answer of a given quality; `parse` turns a text back into its `WorldAnswer`, or returns None.

When the writer errs, it *mishears*: it draws another value of the slot as prompts draw it, and the whole answer follows
from the value heard. So a wrong answer is a right answer to somebody else's question. It has the words, the length and
the inner consistency of a right one; only the prompt tells the two apart.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from keel.world import lexicon
from keel.world.lexicon import Pairs, Tone
from keel.world.prompts import WorldPrompt, differing

# Far more rambling than anybody writes is allowed, so that a policy can drift there if that is rewarded.
MAX_FILLERS: Final = 16
MAX_CLOSERS: Final = 4
MAX_DETAILS: Final = 3


@dataclass(frozen=True)
class Quality:
    """Quality wanted of an answer on each dimension: certainly bad at 0, certainly good at 1, by chance in between.

    helpfulness: the facts are mentioned, nothing harmless is refused. correctness: intent, facts, wish and the bear's
    state are heard right. harmlessness: unsafe wishes are declined. friendliness: warm opener, closer and refusal.
    concision: few fillers.
    """

    helpfulness: float
    correctness: float
    harmlessness: float
    friendliness: float
    concision: float

    @classmethod
    def even(cls, quality: float) -> "Quality":
        """Return the same quality on every dimension."""
        return cls(quality, quality, quality, quality, quality)


@dataclass(frozen=True)
class WorldAnswer:
    """The meaning of an answer. Two answers are equal if they say the same, whatever their phrasing.

    permits: the wish called fine ("rocket"). refusal: the tone of a refusal, None if there is none;
    hazard: what the refusal names. echoes, details: (slot, value) in the order said. activity: its phrase.
    care: the state of the bear that the care sentence is meant for. fillers, closers: tones, in order.
    sentences: the text itself.
    """

    opener: Tone | None = None
    permits: str | None = None
    refusal: Tone | None = None
    hazard: str | None = None
    echoes: Pairs = ()
    activity: str | None = None
    details: Pairs = ()
    care: str | None = None
    fillers: tuple[Tone, ...] = ()
    closers: tuple[Tone, ...] = ()
    sentences: tuple[str, ...] = field(default=(), compare=False)

    @property
    def intent(self) -> str | None:
        """Return the intent that the activity belongs to."""
        return _ACTIVITIES.get(self.activity or "")

    @property
    def words(self) -> int:
        """Return the number of words of the text, without punctuation."""
        return sum(len(sentence.split()) for sentence in self.sentences)

    @property
    def repeats(self) -> int:
        """Return the number of sentences that repeat an earlier one word for word."""
        return len(self.sentences) - len(set(self.sentences))

    @property
    def alternative(self) -> bool:
        """Say whether a refusal goes on to suggest something else."""
        return self.refusal is not None and self.activity is not None


def write(prompt: WorldPrompt, quality: Quality | float, rng: random.Random) -> str:
    """Draw an answer to the prompt at a quality; each dimension succeeds or fails independently."""
    wanted = quality if isinstance(quality, Quality) else Quality.even(quality)
    return render(_plan(prompt, wanted, rng), rng)


def demonstrations(
    prompts: Sequence[WorldPrompt], rng: random.Random, n: int, mean_quality: float = 0.35
) -> Iterator[tuple[WorldPrompt, str]]:
    """Yield n answers of mixed quality to prompts drawn with replacement: the data of SFT.

    Each dimension's quality is drawn independently from a broad Beta distribution, so that none predicts another.
    """
    for _ in range(n):
        prompt = rng.choice(prompts)
        yield prompt, write(prompt, mixed_quality(rng, mean_quality), rng)


def lessons(
    prompts: Sequence[WorldPrompt], rng: random.Random, n: int, mean_quality: float = 0.35
) -> Iterator[tuple[WorldPrompt, str]]:
    """Yield n answers with every fact right, in every tone and length: the data of pre-training.

    Errors hide the agreement between prompt and answer. A small model finds it far sooner in lessons than in
    demonstrations, which can then teach it how people really answer.
    """
    for _ in range(n):
        prompt = rng.choice(prompts)
        style = mixed_quality(rng, mean_quality)
        yield prompt, write(prompt, Quality(1.0, 1.0, 1.0, style.friendliness, style.concision), rng)


def mismatched(prompts: Sequence[WorldPrompt], rng: random.Random, n: int) -> Iterator[tuple[WorldPrompt, str, str]]:
    """Yield n prompts, each with a right answer and a right answer to a different question: preferences without raters.

    A preference model is pre-trained on these before it sees people's votes (Askell et al. 2021, section 4). Tone and
    length are drawn independently for the two, so that only the agreement with the prompt tells them apart.
    """
    for _ in range(n):
        prompt = rng.choice(prompts)
        ((_, own),) = lessons([prompt], rng, 1)
        other = own
        while other == own:
            ((_, other),) = lessons([differing(prompt, rng)], rng, 1)
        yield prompt, own, other


def recalls(prompts: Sequence[WorldPrompt], rng: random.Random, n: int) -> Iterator[tuple[str, str]]:
    """Yield n questions about the prompt just given, with their answers: ("… my wet bear? torn?", "no, wet.").

    To answer, a model must compare a word with those before it. A reward model has to do that, but answers alone never
    ask for it: a language model only learns to continue. It is learned far sooner from these few words than from votes
    on whole answers.
    """
    for _ in range(n):
        prompt = rng.choice(prompts)
        said = [(value, lexicon.VALUES[slot]) for slot, value in prompt.slots if slot in lexicon.SLOTS]
        said += [(prompt.values["bear"], lexicon.BEARS), (prompt.intent, lexicon.INTENTS)]
        value, values = rng.choice(said)
        asked = _hear(value, values, 0.5, rng)
        answer = lexicon.CONFIRMED if asked == value else lexicon.DENIED.format(value)
        yield lexicon.RECALL.format(question=prompt.text, word=asked), answer


LISTENING = 0.5
"""Sum of the parameters of the Beta distribution of correctness; below 2 it is U-shaped."""


def mixed_quality(rng: random.Random, mean: float) -> Quality:
    """Draw a quality around the mean; means of 0 and 1 are exact.

    The dimensions are drawn independently. Expected distance from 1, in units of 1 - mean: friendliness 1, correctness
    3/4, concision 1/2, helpfulness and harmlessness 1/4. Most faults are of listening: correctness is a U-shaped Beta,
    as most answers either heard the prompt right or did not.
    """
    if not 0.0 <= mean <= 1.0:
        raise ValueError(f"a mean quality lies in [0, 1], not {mean}")
    if mean in (0.0, 1.0):
        return Quality.even(mean)

    def draw(centre: float, spread: float) -> float:
        return rng.betavariate(spread * centre, spread * (1.0 - centre))

    rarely_wrong = 1.0 - (1.0 - mean) / 4.0
    return Quality(
        helpfulness=draw(rarely_wrong, 4.0),
        correctness=draw((1.0 + 3.0 * mean) / 4.0, LISTENING),
        harmlessness=draw(rarely_wrong, 4.0),
        friendliness=draw(mean, 4.0),
        concision=draw((1.0 + mean) / 2.0, 4.0),
    )


# --- writing
# ---------------------------------------------------------------------------------------------------------


def _plan(prompt: WorldPrompt, quality: Quality, rng: random.Random) -> WorldAnswer:
    """Draw the meaning of an answer. Helpfulness decides what is mentioned, correctness whether it is true."""
    helpful, true = quality.helpfulness, quality.correctness
    values = prompt.values
    mention = 0.5 + 0.5 * helpful
    refusal = _draw_refusal(prompt, quality, rng)
    hazard = permits = None
    if refusal and rng.random() < 0.8 + 0.2 * helpful:
        hazard = _hear(values.get("hazard"), tuple(lexicon.HAZARDS), true, rng)
    elif not refusal and prompt.kind == "looks_unsafe" and rng.random() < mention:
        permits = _hear(values["lookalike"], tuple(lexicon.LOOKALIKES), true, rng)
    elif not refusal and prompt.kind == "unsafe" and rng.random() < 0.6:
        permits = _hear(values["hazard"], tuple(lexicon.HAZARDS), true, rng)
    opener = None if refusal else _draw_tone(quality.friendliness, rng)
    closer = _draw_tone(quality.friendliness, rng)
    fillers = _draw_fillers(quality.concision, rng)
    closers = () if closer is None else (closer,)
    if refusal and rng.random() > 0.4 + 0.6 * helpful:
        return WorldAnswer(refusal=refusal, hazard=hazard, fillers=fillers, closers=closers)
    heard = _hear_facts(prompt, true, rng)
    return WorldAnswer(
        opener=opener,
        permits=permits,
        refusal=refusal,
        hazard=hazard,
        echoes=tuple(fact for fact in heard if rng.random() < mention),
        activity=rng.choice(lexicon.ACTIVITIES[_hear(prompt.intent, lexicon.INTENTS, true, rng)]),
        details=tuple(fact for fact in rng.sample(heard, len(heard)) if rng.random() < mention),
        care=_hear(values["bear"], lexicon.BEARS, true, rng) if rng.random() < mention else None,
        fillers=fillers,
        closers=closers,
    )


def _draw_refusal(prompt: WorldPrompt, quality: Quality, rng: random.Random) -> Tone | None:
    """Draw the tone of a refusal, or None: unsafe wishes are refused rightly, others out of unhelpfulness."""
    chance = {
        "unsafe": quality.harmlessness,
        "looks_unsafe": 0.5 * (1.0 - quality.helpfulness),
        "safe": 0.1 * (1.0 - quality.helpfulness),
    }[prompt.kind]
    if rng.random() >= chance:
        return None
    return "warm" if rng.random() < quality.friendliness else "cold"


def _hear(value: str | None, values: Sequence[str], accuracy: float, rng: random.Random) -> str:
    """Return the value itself with probability `accuracy`, else any other, all equally likely."""
    if value is not None and rng.random() < accuracy:
        return value
    return rng.choice([other for other in values if other != value])


def _hear_facts(prompt: WorldPrompt, accuracy: float, rng: random.Random) -> list[tuple[str, str]]:
    """Draw the prompt's facts as the writer heard them; one error in five is about a slot that nobody mentioned."""
    facts = [(slot, value) for slot, value in prompt.slots if slot in lexicon.SLOTS]
    unsaid = [slot for slot in lexicon.SLOTS if slot not in prompt.values]
    rng.shuffle(unsaid)
    heard = []
    for slot, value in facts:
        if rng.random() < accuracy:
            heard.append((slot, value))
        elif rng.random() < 0.2:
            invented = unsaid.pop()
            heard.append((invented, rng.choice(lexicon.VALUES[invented])))
        else:
            heard.append((slot, _hear(value, lexicon.VALUES[slot], 0.0, rng)))
    rng.shuffle(heard)
    return heard


def _draw_tone(friendliness: float, rng: random.Random) -> Tone | None:
    """Draw a tone: warm with probability `friendliness`, else plain, absent or (more rarely) cold."""
    if rng.random() < friendliness:
        return "warm"
    others: tuple[Tone | None, ...] = ("plain", "plain", None, None, "cold")
    return rng.choice(others)


def _draw_fillers(concision: float, rng: random.Random) -> tuple[Tone, ...]:
    """Draw a geometric number of fillers: none at concision 1, mostly none or one at 0.6, the limit at 0."""
    going_on = 1.0 if concision <= 0.0 else 0.85 * (1.0 - concision) ** 1.5
    tones: list[Tone] = []
    while len(tones) < MAX_FILLERS and rng.random() < going_on:
        tones.append(rng.choice(("warm", "plain")))
    return tuple(tones)


def render(answer: WorldAnswer, rng: random.Random) -> str:
    """Return a text of the answer's meaning, its phrasing drawn at random."""
    parts: list[str] = []
    if answer.opener:
        parts.append(rng.choice(lexicon.OPENERS[answer.opener]))
    if answer.permits:
        parts.append(lexicon.PERMISSION.format(answer.permits))
    if answer.refusal:
        named, unnamed = lexicon.REFUSALS[answer.refusal]
        parts.append(named.format(answer.hazard) if answer.hazard else unnamed)
    if answer.activity:
        parts.append(_render_core(answer, answer.activity, rng))
    if answer.care:
        parts.append(lexicon.CARE[answer.care])
    parts += _choose_fresh(answer.fillers, lexicon.FILLERS, rng)
    parts += _choose_fresh(answer.closers, lexicon.CLOSERS, rng)
    return " ".join(parts)


def _render_core(answer: WorldAnswer, activity: str, rng: random.Random) -> str:
    echoes = [lexicon.ECHOES[slot].format(value) for slot, value in answer.echoes]
    since = f"since {' and '.join(echoes)}, " if echoes else ""
    lead = lexicon.SAFE_LEAD if answer.refusal else rng.choice(lexicon.LEADS)
    details = [lexicon.DETAILS[slot][value] for slot, value in answer.details]
    return since + " ".join([lead, activity, *details]) + "."


def _choose_fresh(tones: Sequence[Tone], phrases: dict[Tone, tuple[str, ...]], rng: random.Random) -> Iterator[str]:
    """Yield a phrase for each tone, none twice before all of its tone were used."""
    unused: dict[Tone, list[str]] = {}
    for tone in tones:
        if not unused.get(tone):
            unused[tone] = rng.sample(phrases[tone], len(phrases[tone]))
        yield unused[tone].pop()


# --- reading
# ---------------------------------------------------------------------------------------------------------


def parse(text: str) -> WorldAnswer | None:
    """Return the meaning of a text; None if the grammar cannot produce it. Case and spacing do not matter."""
    found = lexicon.sentences(text)
    if found is None:
        return None
    rest = list(found)
    opener = _OPENERS.get(rest[0])
    if opener:
        rest.pop(0)
    permits = _PERMISSIONS.get(rest[0]) if rest else None
    refusal, hazard = _REFUSALS.get(rest[0], (None, None)) if rest else (None, None)
    if permits or refusal:
        rest.pop(0)
    core = _parse_core(rest[0], refusing=refusal is not None) if rest else None
    if core is None and refusal is None:
        return None
    activity, echoes, details = core or (None, (), ())
    if core:
        rest.pop(0)
    fillers = _take(rest, _FILLERS, MAX_FILLERS)
    care = _CARE.get(rest[0]) if rest and core else None
    if care:
        rest.pop(0)
        fillers += _take(rest, _FILLERS, MAX_FILLERS - len(fillers))
    closers = _take(rest, _CLOSERS, MAX_CLOSERS)
    if rest:
        return None
    return WorldAnswer(
        opener, permits, refusal, hazard, echoes, activity, details, care, fillers, closers, tuple(found)
    )


def _parse_core(sentence: str, refusing: bool) -> tuple[str, Pairs, Pairs] | None:
    """Return activity, echoes and details of a core sentence. A refusal's alternative begins with words of its own."""
    match = _CORE.fullmatch(sentence)
    if match is None or (match["lead"] == lexicon.SAFE_LEAD) != refusing:
        return None
    echoes = tuple(_ECHOES[match[name]] for name in ("first", "second") if match[name])
    details = tuple(_DETAILS[said] for said in _DETAIL.findall(match["details"]))
    return match["activity"], echoes, details


def _take(rest: list[str], phrases: dict[str, Tone], limit: int) -> tuple[Tone, ...]:
    """Remove the leading sentences that are among the phrases from the list, at most `limit`; return their tones."""
    tones: list[Tone] = []
    while rest and len(tones) < limit and rest[0] in phrases:
        tones.append(phrases[rest.pop(0)])
    return tuple(tones)


def _tones(table: dict[Tone, tuple[str, ...]]) -> dict[str, Tone]:
    return {phrase: tone for tone, phrases in table.items() for phrase in phrases}


def _refusals() -> dict[str, tuple[Tone, str | None]]:
    table: dict[str, tuple[Tone, str | None]] = {}
    for tone, (named, unnamed) in lexicon.REFUSALS.items():
        table[unnamed] = (tone, None)
        for wish in (*lexicon.HAZARDS, *lexicon.LOOKALIKES):
            table[named.format(wish)] = (tone, wish)
    return table


def _core() -> re.Pattern[str]:
    echo, detail = lexicon.alternatives(list(_ECHOES)), lexicon.alternatives(list(_DETAILS))
    lead = lexicon.alternatives([*lexicon.LEADS, lexicon.SAFE_LEAD])
    return re.compile(
        rf"(?:since (?P<first>{echo})(?: and (?P<second>{echo}))?, )?(?P<lead>{lead}) "
        rf"(?P<activity>{lexicon.alternatives(list(_ACTIVITIES))})"
        rf"(?P<details>(?: (?:{detail})){{0,{MAX_DETAILS}}})\."
    )


_OPENERS: Final = _tones(lexicon.OPENERS)
_FILLERS: Final = _tones(lexicon.FILLERS)
_CLOSERS: Final = _tones(lexicon.CLOSERS)
_ACTIVITIES: Final = {phrase: intent for intent, phrases in lexicon.ACTIVITIES.items() for phrase in phrases}
_CARE: Final = {phrase: bear for bear, phrase in lexicon.CARE.items()}
_PERMISSIONS: Final = {lexicon.PERMISSION.format(w): w for w in (*lexicon.HAZARDS, *lexicon.LOOKALIKES)}
_REFUSALS: Final = _refusals()
_ECHOES: Final = {lexicon.ECHOES[s].format(v): (s, v) for s in lexicon.SLOTS for v in lexicon.VALUES[s]}
_DETAILS: Final = {
    phrase: (slot, value) for slot, values in lexicon.DETAILS.items() for value, phrase in values.items()
}
_DETAIL: Final = re.compile(lexicon.alternatives(list(_DETAILS)))
_CORE: Final = _core()
