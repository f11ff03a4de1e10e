"""People's votes on the SFT model's answers, kept in a store and checked; and pairs as gold itself prefers them."""

from __future__ import annotations

from itertools import islice
from typing import Any

from keel import stats, world
from keel.audit import check
from keel.commands.collect import collect
from keel.config import CollectConfig, DataCheckConfig
from keel.data.derive import derive
from keel.data.source import open_source
from keel.demo.story import MAX_ROWS, MICRO_TOKENS, TEMPERATURE, Story, draw_answers, longer, pick_prompts
from keel.errors import RunFailed
from keel.files.jsonl import write_lines
from keel.raters import Missing, Task
from keel.raters.simulated import Simulated
from keel.records import Bundle, Pair
from keel.store.keys import said_key
from keel.store.store import Store

LOVE_OF_LENGTH = 40.0
"""Log-odds for ten words more, of the people whose votes mislead on purpose."""


def collect_votes(story: Story) -> dict[str, Any]:
    """Collect training pairs with noisy votes, and held-out pairs with gold's own, noiseless preference."""
    sizes = story.sizes
    fresh_store(story)
    gathered = collect(
        CollectConfig(
            model=str(story.out / "sft"),
            prompts=str(story.out / "data" / "prompts.jsonl"),
            store=story.store,
            rater=["simulated"],
            n=sizes.vote_answers,
            temperature=TEMPERATURE,
            max_new_tokens=sizes.max_new_tokens,
            max_rows=MAX_ROWS,
            limit=sizes.vote_prompts,
            seed=story.seed,
            micro_tokens=MICRO_TOKENS,
            out=story.out / "data" / "collected.json",
        )
    )
    assert gathered is not None
    few = few_pairs(story)
    second_opinions(story)
    with open_source(story.store) as source:
        pairs, counts = source.pairs(), source.counts
    policy = story.policy("sft")
    held_out = story.prompts[1]
    fresh = draw_answers(
        story, policy, pick_prompts(story, held_out, sizes.held_out_pairs, "held-out pairs"), 2, "held-out pairs"
    )
    clean = [c for b in fresh if (c := noiseless(b)) is not None]
    if not clean or not pairs:
        raise RunFailed(
            "no two answers of the SFT model differ in gold: it has not learned to answer; see steps/sft.json"
        )
    for name, rows in (("few-pairs", few), ("held-out-pairs", clean)):
        lines = ({"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in rows)
        write_lines(story.out / "data" / f"{name}.jsonl", lines)
    asked = [p.prompt for p in pairs]
    return {
        "shown": counts.read,
        "pairs": len(pairs),
        "ties": counts.read - len(pairs),
        "engine_share": gathered.summary["sample_seconds"] / gathered.summary["seconds"],
        "agreement_with_gold": stats.rate([agrees(p.prompt, p.chosen, p.rejected) for p in pairs], asked).as_dict(),
        "longer_wins": stats.rate([longer(p.chosen, p.rejected) for p in pairs], asked).as_dict(),
        "held_out_pairs": len(clean),
        "gold_ties_left_out": len(fresh) - len(clean),
    }


def fresh_store(story: Story) -> None:
    """Remove the store and the files that SQLite keeps beside it."""
    for file in (story.out / "data").glob("votes.db*"):
        file.unlink()


def few_pairs(story: Story) -> list[Pair]:
    """Return pairs of the first answers that people saw, voted on by people who love length."""
    with open_source(story.store) as source:
        shown = [Task(j.prompt, *j.answers) for group in source.judgments() for j in group][: 2 * story.sizes.few_votes]
    misled = Simulated(story.seed, world.Population(length_bias=LOVE_OF_LENGTH)).rate(shown)
    judgments = [j for _, said in misled if not isinstance(said, Missing) for j in said]
    return [pair for j in judgments for pair in derive([j]).pairs][: story.sizes.few_votes]


def second_opinions(story: Story) -> None:
    """Have the first pairs judged by another person, so that agreement can be measured."""
    with Store(story.store) as store:
        shown = (Task(j.prompt, *j.answers) for group in store.groups() for _, j in group)
        others = Simulated(story.seed + 1).rate(list(islice(shown, story.sizes.second_opinions)))
        store.append((said_key(j), j) for _, said in others if not isinstance(said, Missing) for j in said)


def check_votes(story: Story) -> dict[str, Any]:
    """Write the data's page: agreement, what lengths predict, and whether pairs look like the SFT model's answers."""
    config = DataCheckConfig(
        data=story.store,
        model=str(story.out / "sft"),
        eval_data=story.file("held-out-pairs"),
        temperature=TEMPERATURE,
        compare=story.sizes.compared,
        seed=story.seed,
        micro_tokens=MICRO_TOKENS,
        out=story.out / "data" / "check.json",
        page=story.out / "data.html",
    )
    found = check.check(config)
    assert found is not None
    figures = found.summary
    distribution = figures.get("distribution") or {}
    return {
        "page": "data.html",
        "rows": figures["rows"],
        "prompts": figures["prompts"],
        "warnings": [f["title"] for f in figures["findings"] if f["level"] == "warning"],
        "agreement": figures["agreement"][0],
        "length_only": figures["length"]["length_only"],
        **{key: distribution.get(key) for key in ("verdict", "auc", "meaning")},
    }


def noiseless(bundle: Bundle) -> Pair | None:
    """Return the pair as gold itself prefers it; None for a tie in gold."""
    question = str(bundle.prompt).strip()
    first, second = (c.text for c in bundle.completions)
    a, b = world.utility(question, first).total, world.utility(question, second).total
    if a == b:
        return None
    return Pair(str(bundle.prompt), *((first, second) if a > b else (second, first)))


def agrees(prompt: Any, chosen: str, rejected: str) -> float:
    """Return 1 if gold agrees with a vote, 0 if not, 1/2 for a tie in gold."""
    question = str(prompt).strip()
    a, b = world.utility(question, chosen).total, world.utility(question, rejected).total
    return 0.5 if a == b else float(a > b)
