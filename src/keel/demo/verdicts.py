"""Every method's answers to unseen questions, judged by gold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from keel import stats, world
from keel.demo.story import BEST_OF, MICRO_TOKENS, TEMPERATURE, Story, draw_answers
from keel.engine.scorers import RewardModelScorer
from keel.evaluation import outcomes
from keel.files.jsonl import read_lines, write_lines
from keel.records import Bundle


def sixteen_answers(story: Story) -> dict[str, Any]:
    """Draw the answers that best-of-16 chooses from."""
    return answer_often(story, "answers-of-16", story.sizes.held_out_prompts, BEST_OF)


def many_answers(story: Story) -> dict[str, Any]:
    """Draw the answers for the curve of best-of-N."""
    return answer_often(story, "answers-of-256", story.sizes.curve_prompts, story.sizes.curve_n)


def answer_often(story: Story, name: str, prompts: int, n: int) -> dict[str, Any]:
    """Draw the SFT model's n answers to each of the first held-out prompts, and keep them as tokens."""
    bundles = draw_answers(story, story.policy("sft"), story.prompts[1][:prompts], n, name)
    rows = ({"prompt": b.prompt, "completions": [c.ids for c in b.completions]} for b in bundles)
    write_lines(story.out / "data" / f"{name}.jsonl", rows)
    return {"prompts": len(bundles), "n": n}


def drawn(story: Story, name: str) -> list[Bundle]:
    """Return the answers that `answer_often` kept."""
    text, found = story.text, []
    for row in read_lines(story.out / "data" / f"{name}.jsonl"):
        bundle = Bundle(text.prompt_ids(row["prompt"]), [], prompt=row["prompt"])
        bundle.completions = [
            text.completion(bundle, ids, truncated=ids[-1] not in text.eos_ids) for ids in row["completions"]
        ]
        found.append(bundle)
    return found


def compare_methods(story: Story) -> dict[str, Any]:
    """Compare every method's answers to the same held-out prompts with the SFT model's, judged by gold."""
    asked = story.prompts[1][: story.sizes.held_out_prompts]
    scorer, reference = story.scorer("reward"), story.policy("sft")
    base = draw_answers(story, reference, asked, 1, "answers sft")
    found = {"sft": measure(story, base, scorer, reference, reference)}
    for name in ("dpo", "ppo"):
        policy = story.policy(name)
        found[name] = measure(
            story, draw_answers(story, policy, asked, 1, f"answers {name}"), scorer, policy, reference
        )
    many = drawn(story, "answers-of-16")
    scores = scorer.score(many).view(len(many), BEST_OF)
    for n in (4, BEST_OF):
        at = scores[:, :n].argmax(1)
        found[name_of(n)] = outcomes.of_bundles(
            many, at.tolist(), [], scores.gather(1, at[:, None]).squeeze(1).tolist()
        )
    golds = {name: [world.utility(p, t) for p, t in zip(asked, a.texts, strict=True)] for name, a in found.items()}
    prompt_tokens = sum(len(b.prompt_ids) for b in base) / len(base)
    rows = {name: judged(a, golds[name], golds["sft"], asked) for name, a in found.items()}
    for name, n in (("sft", 1), ("dpo", 1), ("ppo", 1), (name_of(4), 4), (name_of(BEST_OF), BEST_OF)):
        length = (
            sum(len(c) for b in many for c in b.completions) / (len(many) * BEST_OF)
            if n > 1
            else rows[name]["length_mean"]["mean"]
        )
        cost = outcomes.serve_cost(prompt_tokens, length, n, scored=n > 1)
        rows[name]["n"] = n
        rows[name]["serve_cost_ratio"] = cost / outcomes.serve_cost(prompt_tokens, rows["sft"]["length_mean"]["mean"])
        if n > 1:
            bound = stats.best_of_n_kl(n)
            rows[name]["kl"] = {"mean": bound, "low": bound, "high": bound, "n": len(asked)}
    return {"rows": rows, "examples": examples(asked, found, golds)}


def name_of(n: int) -> str:
    """Return the row's name in `summary.json`: `best_of_n` is the one of N = 16."""
    return "best_of_n" if n == BEST_OF else f"best_of_{n}"


def measure(
    story: Story,
    bundles: list[Bundle],
    scorer: RewardModelScorer,
    policy: torch.nn.Module,
    reference: torch.nn.Module,
) -> outcomes.Answers:
    """Return the answers with their KL to the reference and their score."""
    kl = outcomes.sequence_kl(policy, reference, bundles, TEMPERATURE, MICRO_TOKENS)
    return outcomes.of_bundles(bundles, [0] * len(bundles), kl, scorer.score(bundles).tolist())


def judged(
    found: outcomes.Answers, gold: list[world.Gold], other: list[world.Gold], asked: Sequence[world.WorldPrompt]
) -> dict[str, Any]:
    """Return one row of the comparison, from gold."""
    dimensions = {name: [float(getattr(g, name)) for g in gold] for name in world.WEIGHTS}
    return outcomes.row(
        found,
        [g.total for g in gold],
        [g.total for g in other],
        dimensions,
        {
            "parsed": [g.parsed for g in gold],
            "refusal_unsafe": [g.refused if p.kind == "unsafe" else None for g, p in zip(gold, asked, strict=True)],
            "refusal_harmless": [g.refused if p.kind != "unsafe" else None for g, p in zip(gold, asked, strict=True)],
        },
    )


def examples(
    asked: Sequence[world.WorldPrompt], found: dict[str, outcomes.Answers], golds: dict[str, list[world.Gold]]
) -> list[dict[str, Any]]:
    """Return the first prompts of each kind with every method's answer, chosen by position and not by result."""
    chosen = [
        i
        for kind, n in (("safe", 4), ("unsafe", 2), ("looks_unsafe", 2))
        for i in [j for j, p in enumerate(asked) if p.kind == kind][:n]
    ]
    return [
        {
            "prompt": asked[i].text,
            "kind": asked[i].kind,
            "answers": {
                name: {"text": a.texts[i].strip(), "gold": golds[name][i].total, "proxy": a.proxy[i]}
                for name, a in found.items()
            },
        }
        for i in chosen
    ]


def measure_best_of_n(story: Story) -> dict[str, Any]:
    """Return gold and proxy of best-of-n up to N = 256, from 256 samples for each of 64 held-out prompts."""
    asked = story.prompts[1][: story.sizes.curve_prompts]
    bundles = drawn(story, "answers-of-256")
    proxy = story.scorer("reward").score(bundles).view(len(asked), story.sizes.curve_n).tolist()
    gold = [[world.utility(p, c.text).total for c in b.completions] for p, b in zip(asked, bundles, strict=True)]
    ns = [2**k for k in range(story.sizes.curve_n.bit_length())]
    return {"points": outcomes.best_of_n_points(proxy, gold, ns)}
