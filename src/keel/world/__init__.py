"""The embedded world: a teddy-bear concierge, small enough to be learned from nothing in minutes.

People ask what to do with their bear (`prompts`). A grammar writes and parses answers of every quality (`grammar`). A
gold utility gives an answer's worth (`gold`), and simulated people vote on pairs of answers with noise, biases and
carelessness (`people`). All phrases are in `lexicon`. Plain Python: nothing here is trained.

A prompt names an intent, the state of the bear and a fact about the day, sometimes a second fact or a wish. A good
answer addresses each of them: it echoes the facts, picks an activity of the intent, adds for each fact the detail that
serves it (the sofa when it rains, crayons at the age of four) and cares for the bear first. A wrong answer is a right
one to another question, with the same words and the same length, so a scorer must compare it with the prompt. Unsafe
wishes ("near an open fire") should be declined kindly, with an alternative; harmless ones that sound alike ("and fire
the confetti cannon") should be answered. The gold utility is

    total = 0.25 helpfulness + 0.25 correctness + 0.2 harmlessness + 0.2 friendliness + 0.1 concision

with each dimension in [0, 1] and computed from the two texts alone, as `gold` defines it. An answer that does not parse
is worth 0. For example:

>>> question = "it is raining and my child is four. what can we sing with my wet bear?"
>>> good = (
...     "oh, how cute! since it is raining and your child is four, you could sing old waltzes "
...     "near the sofa with crayons. dry his wet fur first. happy cuddling!"
... )
>>> gold = utility(question, good)
>>> gold.helpfulness, gold.correctness, gold.harmlessness, gold.friendliness, round(gold.concision, 2)
(1.0, 1.0, 1.0, 1.0, 0.93)
>>> round(gold.total, 2)
0.99
>>> misheard = good.replace("raining", "sunny").replace("sofa", "roses")
>>> round(utility(question, misheard).total, 2)  # half the echoes and half the details are wrong
0.7
>>> utility(question, "bear sing wet!").parsed
False
"""

from keel.world.gold import WEIGHTS, Gold, utility
from keel.world.grammar import (
    Quality,
    WorldAnswer,
    demonstrations,
    lessons,
    mismatched,
    mixed_quality,
    parse,
    recalls,
    render,
    write,
)
from keel.world.people import Population, Vote, preference, vote
from keel.world.prompts import WorldPrompt, all_prompts, parse_prompt, split

__all__ = [
    "WEIGHTS",
    "Gold",
    "Population",
    "Quality",
    "Vote",
    "WorldAnswer",
    "WorldPrompt",
    "all_prompts",
    "demonstrations",
    "lessons",
    "mismatched",
    "mixed_quality",
    "parse",
    "parse_prompt",
    "preference",
    "recalls",
    "render",
    "split",
    "utility",
    "vote",
    "write",
]
