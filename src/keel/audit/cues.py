"""Surface cues: how well length, white space and Markdown predict the better answer without reading it.

A reward model learns what is easiest. If a cue predicts which answer was chosen, the reward model learns the cue, and a
policy trained on it writes the cue. Each cue is a number per answer; its guess is that the answer with more of it is
the better one.

Pairs of one prompt are not independent: intervals are Wilson's (95 %), with prompts as the number of examples.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from typing import Any

import numpy as np

from keel import stats
from keel.records import Pair
from keel.stats import Estimate, Floats
from keel.text.tokenisation import prompt_key

_MARKDOWN = re.compile(r"(?m)^ {0,3}(?:#{1,6} |[-*+] |\d{1,2}[.)] |```|> |\|.*\|)|\*\*[^*\n]+\*\*|`[^`\n]+`")
_END = re.compile(r"[.!?…。！？:;)\]}\"'”’»`*]\s*\Z")
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Cue:
    """One surface cue, and how well it predicts the better answer.

    `chosen` and `rejected` are the shares of answers that have it. `differ` counts the pairs whose answers differ in
    it; of those, `more` is how often the answer with more of it is the chosen one. `right` is how often a guess by the
    cue alone is right, of all pairs; a pair that does not differ counts ½.
    """

    name: str
    chosen: float
    rejected: float
    differ: int
    more: Estimate
    right: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for a summary."""
        return {
            "name": self.name,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "differ": self.differ,
            "more": self.more.as_dict(),
            "right": self.right.as_dict(),
        }


CUES: dict[str, Callable[[str], float]] = {
    "Markdown": lambda text: bool(_MARKDOWN.search(text)),
    "ends like a sentence": lambda text: bool(_END.search(text)),
    "begins with white space": lambda text: text[:1].isspace(),
    "ends with white space": lambda text: text[-1:].isspace(),
}
"""Cues that an answer has or has not. Length is a number; `cues` puts it before these."""
CUT = "cut at a length limit"


def cues(pairs: Sequence[Pair]) -> list[Cue]:
    """Measure every cue over the pairs: length in characters without outer white space, then `CUES`.

    An opening word and an ending are added if one side has them much more often; cut answers come last.
    """
    keys = [prompt_key(pair.prompt) for pair in pairs]
    found = [_cue("longer", lengths(pairs), keys)]
    for name, mark in (CUES | _openings(pairs) | _endings(pairs)).items():
        found.append(_cue(name, np.array([[mark(p.chosen), mark(p.rejected)] for p in pairs], dtype=np.float64), keys))
    return [*found, _cue(CUT, np.array([p.cut for p in pairs], dtype=np.float64), keys)]


MUCH = 0.2
"""An opening or an ending is a cue if its shares among chosen and rejected answers differ by more than this."""
_LONG = 24


def _openings(pairs: Sequence[Pair]) -> dict[str, Callable[[str], float]]:
    """Return a cue for the first word that best separates chosen from rejected answers; empty if none does."""
    word = _leaning([_first_word(pair.chosen) for pair in pairs], [_first_word(pair.rejected) for pair in pairs])
    return {f"begins with {word!r}": lambda text: text.lstrip().startswith(word)} if word else {}


def _first_word(text: str) -> str:
    return text[:_LONG].lstrip().partition(" ")[0].partition("\n")[0]


def _endings(pairs: Sequence[Pair]) -> dict[str, Callable[[str], float]]:
    """Return a cue for the last character that best separates chosen from rejected answers; empty if none does.

    The cue includes the characters before it that all answers with this last character share.
    """
    sign = _leaning([pair.chosen[-1:] for pair in pairs], [pair.rejected[-1:] for pair in pairs])
    if not sign.strip():
        return {}
    tails = [text[-_LONG:][::-1] for pair in pairs for text in (pair.chosen, pair.rejected) if text.endswith(sign)]
    ending = commonprefix(tails)[::-1]  # noqa: RUF071  (a prefix of characters is meant)
    return {f"ends with {ending!r}": lambda text: text.endswith(ending)}


def _leaning(chosen: Sequence[str], rejected: Sequence[str]) -> str:
    """Return the text whose counts in the two lists differ most; empty if they differ little."""
    more, less = Counter(chosen), Counter(rejected)
    most = max(more | less, key=lambda said: (abs(more[said] - less[said]), said), default="")
    return most if abs(more[most] - less[most]) > MUCH * len(chosen) else ""


def lengths(pairs: Sequence[Pair]) -> Floats:
    """Return characters of chosen and rejected answers without outer white space, [pairs, 2]."""
    return np.array([[len(p.chosen.strip()), len(p.rejected.strip())] for p in pairs], dtype=np.float64).reshape(-1, 2)


def _cue(name: str, values: Floats, keys: Sequence[str]) -> Cue:
    sign = np.sign(values[:, 0] - values[:, 1])
    some = np.flatnonzero(sign).tolist()
    return Cue(
        name,
        float((values[:, 0] > 0).mean()),
        float((values[:, 1] > 0).mean()),
        len(some),
        by_prompt((1 + sign[some]) / 2, [keys[i] for i in some]),
        by_prompt((1 + sign) / 2, keys),
    )


def by_prompt(outcomes: Floats, keys: Sequence[str]) -> Estimate:
    """Return a rate over pairs. Its interval counts prompts: as wide as if all pairs of a prompt went the same way."""
    if not len(outcomes):
        return stats.wilson(0, 0)
    prompts = len(set(keys))
    return stats.wilson(float(outcomes.mean()) * prompts, prompts)


# --- length ---------------------------------------------------------------------------------------

EDGES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, np.inf)
"""Edges of |log2(length / other length)|: up to 9 % longer, 19 %, 41 %, twice, four times, more."""


@dataclass(frozen=True, slots=True)
class LengthStep:
    """Pairs whose longer answer is `low` to `high` times as long as the other, and how often it is chosen."""

    low: float
    high: float
    pairs: int
    longer_wins: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for a summary; `high` is None for the last step."""
        high = self.high if np.isfinite(self.high) else None
        return {"low": self.low, "high": high, "pairs": self.pairs, "longer_wins": self.longer_wins.as_dict()}


def by_difference(pairs: Sequence[Pair]) -> list[LengthStep]:
    """Return how often the longer answer is chosen, by how much longer it is."""
    keys = [prompt_key(pair.prompt) for pair in pairs]
    log = np.log2(np.maximum(lengths(pairs), 1))
    apart = log[:, 0] - log[:, 1]
    steps = []
    for low, high in pairwise(EDGES):
        inside = np.flatnonzero((np.abs(apart) > low) & (np.abs(apart) <= high)).tolist()
        if len(inside):
            wins = by_prompt((apart[inside] > 0).astype(np.float64), [keys[i] for i in inside])
            steps.append(LengthStep(2.0**low, 2.0**high, len(inside), wins))
    return steps


def length_only(pairs: Sequence[Pair]) -> Estimate | None:
    """Return the accuracy of the best guess by the two lengths alone, on unseen prompts; None below 5 prompts.

    The guess is a logistic regression on features that change sign when the answers are swapped: the difference of the
    log lengths, and the difference of the eighths of all lengths that the answers are in. So "near fifty words" counts
    as well as "longer". Five folds, by prompt.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    keys = [prompt_key(pair.prompt) for pair in pairs]
    if len(set(keys)) < _FOLDS:
        return None
    log = np.log(np.maximum(lengths(pairs), 1))
    eighths = np.searchsorted(np.quantile(log, np.arange(1, 8) / 8), log)
    x = np.column_stack([log[:, 0] - log[:, 1], np.eye(8)[eighths[:, 0]] - np.eye(8)[eighths[:, 1]]])
    right = np.zeros(len(pairs))
    for seen, unseen in GroupKFold(_FOLDS).split(x, groups=keys):
        both = np.concatenate([x[seen], -x[seen]])
        model = LogisticRegression(fit_intercept=False).fit(both, np.repeat([1, 0], len(seen)))
        right[unseen] = (1 + np.sign(x[unseen] @ model.coef_[0])) / 2
    return by_prompt(right, keys)
