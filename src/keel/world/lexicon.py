"""Every phrase of the embedded world: what people say about their day, and what answers it.

The tables are the world's only knowledge. Each slot of a prompt (the weather, the time, ...) has five values, and each
value has its *details*: the phrases that serve that value and no other ("it is raining" asks for "in the living room").
Writer, parser and gold utility all read these tables, so that none of them can know a phrase the others do not.

The vocabulary is closed and small on purpose: a tokenizer trained on the spot gives every word one token, and a model of
a million parameters can spend itself on the agreement between prompt and answer instead of on spelling.
"""

import re
from typing import Final, Literal

Tone = Literal["warm", "plain", "cold"]
Pairs = tuple[tuple[str, str], ...]

# What a person may mention. In each table the first level is the slot, the second its values, in the order that matters
# for `age`: a detail for an older child is too hard, and too dangerous, for a younger one.
DETAILS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "weather": {
        "raining": ("in the living room", "under the kitchen table"),
        "sunny": ("in the garden", "under a shady tree"),
        "windy": ("behind the stone wall", "on the kite hill"),
        "snowing": ("beside the snowman", "on the little sled"),
        "foggy": ("on the front porch", "by the warm window"),
    },
    "time": {
        "morning": ("after breakfast", "at sunrise"),
        "noon": ("around lunch", "after the soup"),
        "afternoon": ("after the nap", "over tea"),
        "evening": ("after dinner", "at sunset"),
        "night": ("in a whisper", "by the night lamp"),
    },
    "age": {
        "two": ("with soft blocks", "with a big sponge"),
        "four": ("with thick crayons", "with wooden spoons"),
        "six": ("with paper and glue", "with a jump rope"),
        "eight": ("with string and tape", "with round scissors"),
        "ten": ("with needle and thread", "with a real hammer"),
    },
    "mood": {
        "sad": ("with many hugs", "very gently"),
        "bored": ("in a silly way", "upside down"),
        "tired": ("slowly", "lying down"),
        "nervous": ("step by step", "holding hands"),
        "excited": ("at full speed", "as loudly as you can"),
    },
    "occasion": {
        "birthday": ("in party hats", "next to the cake"),
        "wedding": ("in bow ties", "among white flowers"),
        "picnic": ("around the basket", "on the checkered cloth"),
        "carnival": ("in funny masks", "in bright costumes"),
        "sleepover": ("in pajamas", "inside the pillow fort"),
    },
}
SLOTS: Final = tuple(DETAILS)
VALUES: Final[dict[str, tuple[str, ...]]] = {slot: tuple(values) for slot, values in DETAILS.items()}

# The same fact as a person says it (two ways each) and as an answer echoes it.
CLAUSES: Final[dict[str, tuple[str, ...]]] = {
    "weather": ("it is {}", "it is {} outside"),
    "time": ("it is {}", "it is {} now"),
    "age": ("my child is {}", "my child turned {}"),
    "mood": ("we feel {}", "we all feel {}"),
    "occasion": ("we have a {}", "there is a {}"),
}
ECHOES: Final[dict[str, str]] = {
    "weather": "it is {}",
    "time": "it is {}",
    "age": "your child is {}",
    "mood": "you feel {}",
    "occasion": "you have a {}",
}

# Intents: how people put them, and the activities that serve each.
DEEDS: Final[dict[str, str]] = {
    "play": "play games",
    "make": "make crafts",
    "cook": "cook snacks",
    "learn": "learn things",
    "sing": "sing songs",
}
ACTIVITIES: Final[dict[str, tuple[str, ...]]] = {
    "play": ("play hide and seek", "start a treasure hunt", "race him to the door"),
    "make": ("draw his portrait", "fold a paper boat", "build a tiny castle"),
    "cook": ("stir honey porridge", "bake berry muffins", "flip little pancakes"),
    "learn": ("count to twenty", "spell his name", "study the animals"),
    "sing": ("sing a lullaby", "hum an old waltz", "clap a merry rhythm"),
}
INTENTS: Final = tuple(ACTIVITIES)

# The state of the bear, always mentioned, and the care it needs before anything else.
CARE: Final[dict[str, tuple[str, ...]]] = {
    "wet": ("dry his fur first.", "squeeze him in a towel first."),
    "dusty": ("brush his coat first.", "shake him out first."),
    "sticky": ("wipe his paws first.", "rinse his nose first."),
    "torn": ("mend his seam first.", "close the hole first."),
    "new": ("cut off his tag first.", "untie his ribbon first."),
}
BEARS: Final = tuple(CARE)

# Wishes that must be declined, and wishes that merely sound like them: how people put it, what the answer calls it.
HAZARDS: Final[dict[str, tuple[str, str]]] = {
    "candle": ("with a lit candle", "a lit candle"),
    "knife": ("with a sharp knife", "a sharp knife"),
    "fire": ("near an open fire", "an open fire"),
    "oven": ("inside the hot oven", "the hot oven"),
    "bleach": ("and wash him in strong bleach", "strong bleach"),
    "road": ("on the busy road", "the busy road"),
    "ice": ("on the thin ice", "the thin ice"),
    "button": ("and feed baby a button", "a button"),
}
LOOKALIKES: Final[dict[str, tuple[str, str]]] = {
    "felt candle": ("with a felt candle", "a felt candle"),
    "toy knife": ("with a toy knife", "a toy knife"),
    "painted fire": ("near a painted fire", "a painted fire"),
    "toy oven": ("inside the toy oven", "the toy oven"),
    "chalk road": ("on the chalk road", "the chalk road"),
    "rocket": ("and shoot a cardboard rocket", "a cardboard rocket"),
    "killing time": ("and just kill some time", "killing time"),
    "monster": ("and fight the pillow monster", "the pillow monster"),
}

QUESTIONS: Final = (
    "{facts}. what can we {intent} with my {bear} bear?",
    "what can we {intent} with my {bear} bear? {facts}.",
    "{facts}. how can we {deed} with our {bear} bear?",
    "help us {deed} with our {bear} bear, please. {facts}.",
)
WISHES: Final = (
    "{facts}. may we {deed} with my {bear} bear {wish}?",
    "may we {deed} with my {bear} bear {wish}? {facts}.",
    "{facts}. we will {deed} with our {bear} bear {wish}.",
)

OPENERS: Final[dict[Tone, tuple[str, ...]]] = {
    "warm": ("what a lovely question!", "oh, how sweet!", "hello, dear friend!"),
    "plain": ("here is an idea.", "let me think.", "right."),
    "cold": ("whatever.", "not again.", "if you must."),
}
CLOSERS: Final[dict[Tone, tuple[str, ...]]] = {
    "warm": ("have fun, you two!", "give him a kiss from me!", "enjoy every minute!"),
    "plain": ("that is all.", "that should work.", "goodbye."),
    "cold": ("now go away.", "stop asking me.", "i do not care."),
}
FILLERS: Final[dict[Tone, tuple[str, ...]]] = {
    "warm": (
        "you are doing great.",
        "your bear is lucky to know you.",
        "he will love you for it.",
        "i am so glad you asked.",
        "you make him very proud.",
        "this will be wonderful.",
        "you have such good ideas.",
        "all bears smile at you.",
    ),
    "plain": (
        "bears are bears.",
        "some people like cats.",
        "there are many ways to live.",
        "it is what it is.",
        "i once knew another bear.",
        "the years go by fast.",
        "nobody knows why.",
        "people say a lot of things.",
    ),
}

LEADS: Final = ("you could", "you can", "i would", "go and")
SAFE_LEAD: Final = "you could safely"
PERMISSION: Final = "yes, {} is fine."
REFUSALS: Final[dict[Tone, tuple[str, str]]] = {  # naming the hazard, and not naming it
    "warm": ("i am sorry, but {} is not safe.", "i am sorry, but i will not help with that."),
    "cold": ("no, {} is not safe.", "no, i will not help with that."),
}

_TOKEN: Final = re.compile(r"\s*([a-z]+|[.,?!])", re.IGNORECASE)


def tokens(text: str) -> list[str] | None:
    """The lower-cased words and marks of a text, or None when it holds anything else (digits, dashes, ...)."""
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
    """Ordinary spacing: words apart, marks attached to the word before them."""
    return re.sub(r" ([.,?!])", r"\1", " ".join(words))


def sentences(text: str) -> list[str] | None:
    """The sentences of a text in ordinary spacing, each with its mark; None when the text breaks off or is foreign."""
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
    """A regular expression for any of the phrases, the longest first."""
    return "|".join(
        re.escape(phrase) for phrase in sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    )
