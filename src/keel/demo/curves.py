"""The report's learning curves: small multiples by run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from keel.demo import figures
from keel.pages.numbers import TableCells


@dataclass(frozen=True, slots=True)
class Panel:
    """One small learning curve."""

    key: str
    title: str
    hint: str
    held_out: str = ""
    chance: float | None = None


LN2 = math.log(2)

RUNS: tuple[tuple[str, str, str, tuple[Panel, ...]], ...] = (
    ("recall", "Pre-training: recalls", "pretrain", (Panel("loss", "Loss", "nats per token"),)),
    ("pretrain", "Pre-training: right answers", "pretrain", (Panel("loss", "Loss", "nats per token"),)),
    (
        "sft",
        "Supervised fine-tuning (SFT)",
        "sft",
        (
            Panel("loss", "Loss", "nats per token"),
            Panel("mean_token_accuracy", "Token accuracy", "next token guessed right"),
        ),
    ),
    (
        "prefer",
        "Reward model: which answer belongs to the question",
        "reward",
        (
            Panel("loss", "Loss", "per pair; dashed: no opinion", chance=LN2),
            Panel("accuracy", "Accuracy", "right answer first; dashed: chance", chance=0.5),
        ),
    ),
    (
        "reward",
        "Reward model: people’s votes",
        "reward",
        (
            Panel("loss", "Loss", "per pair; dashed: no opinion", chance=LN2),
            Panel("accuracy", "Accuracy", "pairs ranked as voted; dashed: chance", chance=0.5),
            Panel("margin", "Margin", "score, chosen minus rejected", chance=0.0),
        ),
    ),
    (
        "dpo",
        "DPO",
        "dpo",
        (
            Panel("loss", "Loss", "per pair; dashed: the SFT model’s", chance=LN2),
            Panel("rewards/accuracies", "Accuracy", "pairs ranked as voted; dashed: chance", chance=0.5),
            Panel("rewards/margins", "Margin", "implicit reward, chosen minus rejected", chance=0.0),
        ),
    ),
    (
        "ppo",
        "PPO",
        "ppo",
        (
            Panel("objective/scores", "Proxy", "the reward model’s score", "eval/scores"),
            Panel("objective/kl", "KL to the SFT model", "nats per answer", "eval/kl"),
            Panel("objective/entropy", "Entropy", "nats per answer; near 0: no variety left"),
            Panel("completions/mean_length", "Length", "tokens per answer", "eval/length"),
            Panel("certificate/sd", "Distance certificate", "spread of shaped reward; 0: optimum"),
            Panel("val/explained_variance", "Value function", "share of the returns’ variance explained"),
        ),
    ),
)


def learning_panels(runs: TableCells) -> list[dict[str, Any]]:
    """Return small multiples by run; a measure that a run did not log has no panel."""
    found = []
    for name, title, colour, panels in RUNS:
        rows = runs.get(name) or []
        drawn = [
            {"title": panel.title, "hint": panel.hint, "svg": Markup(svg)}
            for panel in panels
            if (
                svg := figures.learning_curve(
                    rows, panel.key, panel.held_out or f"eval/{panel.key}", colour, panel.chance
                )
            )
        ]
        if drawn:
            found.append({"title": title, "family": colour, "panels": drawn})
    return found
