"""Questions to the teddy-bear concierge: intents x slots x phrasings, and the parser from text to slots.

A prompt names an intent ("what can we *sing*"), the state of the bear ("my *torn* bear") and one or two facts about the
day. Unsafe prompts add a wish that must be declined; look-alikes add a harmless wish in similar words.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from keel.world import lexicon
from keel.world.lexicon import Pairs

_Kind = Literal["safe", "unsafe", "looks_unsafe"]

# 2,600 prompts in all: 77 % safe, 13 % unsafe, 10 % that only look unsafe.
COUNTS: Final[dict[_Kind, int]] = {"safe": 2000, "unsafe": 350, "looks_unsafe": 250}


@dataclass(frozen=True)
class WorldPrompt:
    """One thing a person asked, e.g.

    Prompt(id="bear-3f9c...", text="it is sunny and we feel sad. what can we sing with my wet bear?",
    intent="sing", slots=(("bear", "wet"), ("weather", "sunny"), ("mood", "sad")), kind="safe")

    `slots` is in the canonical order (bear, then `lexicon.SLOTS`, then `hazard` or `lookalike`), whatever the
    order in the text. All fields follow from `text` alone.
    """

    id: str
    text: str
    intent: str
    slots: Pairs
    kind: _Kind

    @property
    def values(self) -> dict[str, str]:
        """Return the slots as a new dictionary."""
        return dict(self.slots)


def all_prompts(seed: int = 0) -> list[WorldPrompt]:
    """Return 2,600 prompts of distinct text, in an order drawn from the seed."""
    rng = random.Random(f"keel.world.prompts/{seed}")
    drawn: dict[str, WorldPrompt] = {}
    for kind, count in COUNTS.items():
        wanted = len(drawn) + count
        while len(drawn) < wanted:
            intent, slots = _draw(kind, rng)
            prompt = _prompt(_phrase(intent, slots, rng), intent, slots, kind)
            drawn[prompt.text] = prompt
    prompts = list(drawn.values())
    rng.shuffle(prompts)
    return prompts


def split(
    prompts: Sequence[WorldPrompt], held_out: float = 0.2, seed: int = 0
) -> tuple[list[WorldPrompt], list[WorldPrompt]]:
    """Return train and held-out prompts, disjoint by text, with the same share of every kind held out.

    The result depends on the texts and the seed alone, not on the order of the prompts.
    """
    if not 0.0 < held_out < 1.0:
        raise ValueError(f"held_out must lie strictly between 0 and 1, not {held_out}")
    rng = random.Random(f"keel.world.split/{seed}")
    distinct = {prompt.text: prompt for prompt in prompts}
    train: list[WorldPrompt] = []
    test: list[WorldPrompt] = []
    for kind in COUNTS:
        of_kind = sorted((p for p in distinct.values() if p.kind == kind), key=lambda prompt: prompt.text)
        rng.shuffle(of_kind)
        cut = round(held_out * len(of_kind))
        test += of_kind[:cut]
        train += of_kind[cut:]
    rng.shuffle(train)
    rng.shuffle(test)
    return train, test


def parse_prompt(text: str) -> WorldPrompt | None:
    """Return the prompt of a text, or None if it is none. Case and spacing do not matter."""
    words = lexicon.tokens(text)
    canonical = lexicon.join(words) if words else ""
    for pattern in _PATTERNS:
        match = pattern.fullmatch(canonical)
        slots = _read_slots(match.groupdict()) if match else None
        if match and slots is not None:
            return _prompt(canonical, _INTENTS[match["intent"]], slots, _kind(slots))
    return None


def differing(prompt: WorldPrompt, rng: random.Random) -> WorldPrompt:
    """Draw a different question: mostly one thing differs, else each with probability 1/2.

    The one thing is mostly a fact, since a slot of two values is the hardest to compare. The new prompt's kind fits its
    wish; its text is still the old one, since the new prompt is only used to write an answer.
    """
    facts = [name for name, _ in prompt.slots if name != "bear"]
    names = ["intent", "bear", *facts]
    if rng.random() < 0.75:
        changed = {rng.choice(facts if facts and rng.random() < 0.75 else names)}
    else:
        changed = {name for name in names if rng.random() < 0.5}
    if not changed:
        return differing(prompt, rng)
    intent = _other(prompt.intent, lexicon.INTENTS, rng) if "intent" in changed else prompt.intent
    slots = tuple(_other_fact(slot, rng) if slot[0] in changed else slot for slot in prompt.slots)
    return replace(prompt, intent=intent, slots=slots, kind=_kind(slots))


def _other_fact(fact: tuple[str, str], rng: random.Random) -> tuple[str, str]:
    """Draw another value of the slot; a wish may also turn from unsafe to harmless or back."""
    slot, value = fact
    if slot == "bear":
        return slot, _other(value, lexicon.BEARS, rng)
    if slot in lexicon.VALUES:
        return slot, _other(value, lexicon.VALUES[slot], rng)
    wishes = [("hazard", wish) for wish in lexicon.HAZARDS] + [("lookalike", wish) for wish in lexicon.LOOKALIKES]
    return rng.choice([wish for wish in wishes if wish != fact])


def _other(value: str, values: Sequence[str], rng: random.Random) -> str:
    return rng.choice([other for other in values if other != value])


def _prompt(text: str, intent: str, slots: Pairs, kind: _Kind) -> WorldPrompt:
    return WorldPrompt("bear-" + hashlib.sha256(text.encode()).hexdigest()[:12], text, intent, slots, kind)


def _kind(slots: Pairs) -> _Kind:
    last = slots[-1][0]
    return "unsafe" if last == "hazard" else "looks_unsafe" if last == "lookalike" else "safe"


def _draw(kind: _Kind, rng: random.Random) -> tuple[str, Pairs]:
    """Draw an intent and its slots: the bear's state, a fact (two in one of five safe prompts), and perhaps a wish."""
    second = kind == "safe" and rng.random() < 0.2
    slots = sorted(rng.sample(lexicon.SLOTS, 2 if second else 1), key=lexicon.SLOTS.index)
    facts = [(slot, rng.choice(lexicon.VALUES[slot])) for slot in slots]
    if kind != "safe":
        name, wishes = _wishes(kind)
        facts.append((name, rng.choice(tuple(wishes))))
    return rng.choice(lexicon.INTENTS), (("bear", rng.choice(lexicon.BEARS)), *facts)


def _wishes(kind: _Kind) -> tuple[str, dict[str, str]]:
    return ("hazard", lexicon.HAZARDS) if kind == "unsafe" else ("lookalike", lexicon.LOOKALIKES)


def _phrase(intent: str, slots: Pairs, rng: random.Random) -> str:
    """Draw a phrasing of the question; the facts come in either order."""
    values = dict(slots)
    facts = [rng.choice(lexicon.CLAUSES[slot]).format(value) for slot, value in slots if slot in lexicon.CLAUSES]
    rng.shuffle(facts)
    wish = lexicon.HAZARDS.get(values.get("hazard", "")) or lexicon.LOOKALIKES.get(values.get("lookalike", ""), "")
    template = rng.choice(lexicon.WISHES if wish else lexicon.QUESTIONS)
    fields = {
        "intent": intent,
        "deed": lexicon.DEEDS[intent],
        "bear": values["bear"],
        "wish": wish,
    }
    return template.format(facts=" and ".join(facts), **fields)


def _read_slots(groups: dict[str, str]) -> Pairs | None:
    """Return the slots of a matched text, or None if its facts are unknown, too few or too many."""
    facts = [_FACTS.get(clause) for clause in groups["facts"].split(" and ")]
    found = dict(fact for fact in facts if fact is not None)
    wish = groups.get("wish")
    if None in facts or len(found) != len(facts) or len(facts) > (1 if wish else 2):
        return None
    ordered = tuple((slot, found[slot]) for slot in lexicon.SLOTS if slot in found)
    return (("bear", groups["bear"]), *ordered, *([_WISHES[wish]] if wish else []))


def _pattern(template: str) -> re.Pattern[str]:
    """Return a question's template as a regular expression with the groups facts, intent, bear and perhaps wish."""
    fields = {
        "facts": "(?P<facts>.+)",
        "intent": f"(?P<intent>{lexicon.alternatives(list(lexicon.INTENTS))})",
        "deed": f"(?P<intent>{lexicon.alternatives(list(lexicon.DEEDS.values()))})",
        "bear": f"(?P<bear>{lexicon.alternatives(list(lexicon.BEARS))})",
        "wish": f"(?P<wish>{lexicon.alternatives(list(_WISHES))})",
    }
    return re.compile(re.escape(template).replace(r"\{", "{").replace(r"\}", "}").format(**fields))


_FACTS: Final = {
    clause.format(value): (slot, value)
    for slot, clauses in lexicon.CLAUSES.items()
    for clause in clauses
    for value in lexicon.VALUES[slot]
}
_INTENTS: Final = {said: intent for intent, deed in lexicon.DEEDS.items() for said in (intent, deed)}
_WISHES: Final = {
    said: (slot, wish)
    for slot, wishes in (("hazard", lexicon.HAZARDS), ("lookalike", lexicon.LOOKALIKES))
    for wish, said in wishes.items()
}
_PATTERNS: Final = tuple(_pattern(template) for template in (*lexicon.QUESTIONS, *lexicon.WISHES))
