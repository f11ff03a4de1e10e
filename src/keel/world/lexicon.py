"""Every phrase of the embedded world: the things that people say about their day, and the answers to them.

The tables are the world's only knowledge. Each slot of a prompt (the weather, the mood, ...) has two or three values,
and each value has its *detail*: the phrase that serves that value and no other ("it is raining" asks for "near the
sofa"). Writer, parser and gold utility all read these tables, so none of them can know a phrase that the others do not.

The vocabulary is closed and small on purpose. A tokenizer trained on it gives every word one token, and a model of a
million parameters can learn the agreement between prompt and answer instead of spelling. Two more properties help the
model. All details of a slot have one shape, so that it must look up only one word. Apart from that, few phrases share
words, so that a phrase once begun is easy to finish.
"""

import re
from typing import Final, Literal

Tone = Literal["warm", "plain", "cold"]
Pairs = tuple[tuple[str, str], ...]

# Facts that a person may mention: first level the slot, second level its values. Their order matters for `age`: a
# detail for an older child is too hard, and too dangerous, for a younger one.
DETAILS: Final[dict[str, dict[str, str]]] = {
    "weather": {
        "raining": "near the sofa",
        "sunny": "near the roses",
    },
    "age": {
        "two": "with blocks",
        "four": "with crayons",
        "eight": "with scissors",
    },
    "mood": {
        "sad": "very gently",
        "excited": "very loudly",
    },
    "occasion": {
        "birthday": "in party hats",
        "picnic": "in straw sandals",
    },
}
SLOTS: Final = tuple(DETAILS)
VALUES: Final[dict[str, tuple[str, ...]]] = {slot: tuple(values) for slot, values in DETAILS.items()}

# Each fact as a person says it (in three ways) and as an answer echoes it.
CLAUSES: Final[dict[str, tuple[str, ...]]] = {
    "weather": ("it is {}", "it is {} outside", "it is {} again"),
    "age": ("my child is {}", "my child turned {}", "my child will be {}"),
    "mood": ("we feel {}", "we all feel {}", "we feel {} today"),
    "occasion": ("we have a {}", "there is a {}", "it is for a {}"),
}
ECHOES: Final[dict[str, str]] = {
    "weather": "it is {}",
    "age": "your child is {}",
    "mood": "you feel {}",
    "occasion": "you have a {}",
}

# Intents as people put them, and the activities that serve each.
DEEDS: Final[dict[str, str]] = {
    "play": "play games",
    "make": "make crafts",
    "cook": "cook snacks",
    "sing": "sing songs",
}
ACTIVITIES: Final[dict[str, tuple[str, ...]]] = {
    "play": ("play catch", "play hide and seek", "play pirates"),
    "make": ("make portraits", "make tiny boats", "make castles"),
    "cook": ("cook porridge", "cook berry muffins", "cook pancakes"),
    "sing": ("sing old waltzes", "sing lullabies", "sing merry rounds"),
}
INTENTS: Final = tuple(ACTIVITIES)

# States of the bear (always mentioned), and the care that each needs before anything else.
CARE: Final[dict[str, str]] = {
    "wet": "dry his wet fur first.",
    "dusty": "brush his dusty coat first.",
    "sticky": "wipe his sticky paws first.",
    "torn": "mend his torn seam first.",
}
BEARS: Final = tuple(CARE)

# Wishes that must be declined, and wishes that only sound like them: the answer's name for each, and people's words.
HAZARDS: Final[dict[str, str]] = {
    "candle": "with a lit candle",
    "knife": "with a sharp knife",
    "fire": "near an open fire",
    "road": "on the busy road",
}
LOOKALIKES: Final[dict[str, str]] = {
    "rocket": "and shoot a cardboard rocket",
    "sword": "with a sharp foam sword",
    "cannon": "and fire the confetti cannon",
    "volcano": "near a hot cardboard volcano",
}

QUESTIONS: Final = (
    "{facts}. what can we {intent} with my {bear} bear?",
    "what can we {intent} with my {bear} bear? {facts}.",
    "{facts}. how can we {deed} with our {bear} bear?",
    "how can we {deed} with our {bear} bear? {facts}.",
    "{facts}. help us {deed} with our {bear} bear, please.",
    "help us {deed} with our {bear} bear, please. {facts}.",
)
WISHES: Final = (
    "{facts}. may we {deed} with my {bear} bear {wish}?",
    "may we {deed} with my {bear} bear {wish}? {facts}.",
    "{facts}. we will {deed} with our {bear} bear {wish}.",
)

OPENERS: Final[dict[Tone, tuple[str, ...]]] = {
    "warm": ("lovely question!", "oh, how cute!", "hello, dear friend!"),
    "plain": ("let me think.", "right.", "hmm."),
    "cold": ("whatever.", "ugh.", "again?"),
}
CLOSERS: Final[dict[Tone, tuple[str, ...]]] = {
    "warm": ("enjoy every minute!", "kisses from us!", "happy cuddling!"),
    "plain": ("goodbye.", "done.", "that should work."),
    "cold": ("stop asking.", "nobody cares.", "leave."),
}
FILLERS: Final[dict[Tone, tuple[str, ...]]] = {
    "warm": (
        "everyone will smile.",
        "wonderful memories await.",
        "kind hearts win.",
        "friendship grows stronger.",
        "teddies adore such plans.",
        "laughter keeps families young.",
        "cozy days seem magical.",
        "generous souls share joy.",
    ),
    "plain": (
        "some people prefer cats.",
        "years pass quickly.",
        "opinions differ widely.",
        "nothing lasts forever.",
        "life goes on.",
        "history repeats itself.",
        "most clocks tick.",
        "rivers run downhill.",
    ),
}

LEADS: Final = ("you could", "please", "maybe", "just")
SAFE_LEAD: Final = "rather"
PERMISSION: Final = "yes, that {} is fine."
REFUSALS: Final[dict[Tone, tuple[str, str]]] = {  # naming the wish, and not naming it
    "warm": ("i am sorry, but that {} is not safe.", "i am sorry, but i must decline."),
    "cold": ("no, that {} is not safe.", "no, never."),
}

# A question about the prompt just given, and its answers.
RECALL: Final = "{question} {word}?"
CONFIRMED: Final = "yes."
DENIED: Final = "no, {}."

_TOKEN: Final = re.compile(r"\s*([a-z]+|[.,?!])", re.IGNORECASE)


def tokens(text: str) -> list[str] | None:
    """Return the lower-cased words and punctuation marks of a text; None if it holds anything else (digits, ...)."""
    found, position = [], 0
    stripped = text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            return None
        found.append(match.group(1).lower())
        position = match.end()
    return found


def join(words: list[str]) -> str:
    """Join words and marks with ordinary spacing: words apart, each mark attached to the word before it."""
    return re.sub(r" ([.,?!])", r"\1", " ".join(words))


def sentences(text: str) -> list[str] | None:
    """Return the sentences of a text in ordinary spacing; None if it breaks off or holds foreign characters."""
    words = tokens(text)
    if not words or words[-1] not in (".", "!", "?"):
        return None
    found: list[list[str]] = [[]]
    for word in words:
        found[-1].append(word)
        if word in (".", "!", "?"):
            found.append([])
    return [join(sentence) for sentence in found[:-1]]


def alternatives(phrases: list[str]) -> str:
    """Return a regular expression for any of the phrases, the longest first."""
    return "|".join(re.escape(phrase) for phrase in sorted(phrases, key=lambda phrase: (-len(phrase), phrase)))
