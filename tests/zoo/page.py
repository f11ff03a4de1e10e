"""docs/models.md: which families Keel computes, how, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

INTRODUCTION = """# Models

Written by `pytest -m zoo`. {variants} tiny models of {families} families were made from the {all} causal families of
transformers {version}: width 32, two to four layers, random weights, a vocabulary of bytes. Each was saved to a folder
and examined against transformers' own plain forward pass of each sequence alone. {right} are right, {refused} are
refused.

**Right** means, for every variant:

- log-probabilities in fp32 equal to 1e-4, and their gradients to 1e-4 of the largest, whatever stands beside a text, in
  whichever order, with `--micro-tokens 64` and `8192`, for texts shorter and longer than windows and rotary limits;
- in bf16 no further from fp32 than twice plain bf16 is (root mean square; in families that choose experts or keys
  without the worst tenth, which falls to chance on both sides);
- greedy answers word for word those of a full pass per word, for one answer a prompt and for four, where answers end
  apart;
- recorded log-probabilities of drawn answers equal to recomputed ones, to 1e-3;
- the policy, saved, is the same model for transformers;
- a reward head that says what the backbone's last state says, saved and read back equal to 1e-5.

**Refused** means that Keel says so in one line. The table shows the line.

What this does not show: that a real checkpoint of the family trains well, how fast it is, or anything on a GPU. Images
and sound are never given: of models that take them, the text part is examined.

**Way** is how texts are computed, and how answers are written. *Packed*: many texts in one row, each prompt once ("to
7": where no text is longer). *Rows*: one row for each completion. *Alone*: one completion a pass. *Shared*: prompts are
kept once for all their answers. *Cached*: the family's own cache. *Anew*: each word reads its whole text.

**Reward head**: the class of transformers, which `AutoModelForSequenceClassification` loads; or Keel's own for families
where transformers has none, in the same file layout, which only Keel loads.
"""


def page(results: Iterable[Mapping[str, Any]], not_tiny: Mapping[str, str], families: int) -> str:
    """The whole page; the same results give the same text."""
    found = sorted(results, key=lambda r: (r["family"], r["name"]))
    head = INTRODUCTION.format(
        variants=len(found),
        families=len({r["family"] for r in found}),
        all=families,
        version=version("transformers"),
        right=sum(r["outcome"] == "right" for r in found),
        refused=sum(r["outcome"] == "refused" for r in found),
    )
    rows = ["| family | variant | way | reward head | why refused |", "|---|---|---|---|---|"]
    rows += [
        f"| {r['family']} | {_variant(r)} | {r.get('way', '—')} | {r.get('head', '—')} | {_why(r)} |" for r in found
    ]
    return "\n".join([head, *rows, "", *_not_here(not_tiny), "", *_notes(found), ""])


def _variant(result: Mapping[str, Any]) -> str:
    return str(result["name"]).removeprefix(result["family"]).removeprefix("-")


def _why(result: Mapping[str, Any]) -> str:
    if result["outcome"] in ("wrong", "crashed"):
        return f"**{result['outcome']}** in {result['check']}"
    return str(result["line"]).removeprefix("MODEL: ").replace("|", "\\|").replace("<", "&lt;")


def _not_here(not_tiny: Mapping[str, str]) -> list[str]:
    lines = ["## Families that are not here", "", "| family | why |", "|---|---|"]
    return lines + [f"| {family} | {why} |" for family, why in sorted(not_tiny.items())]


def _notes(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is remarkable about transformers itself, seen on the way."""
    found = list(found)
    kinds = {
        "`generate` writes other words than the model's own full pass": lambda r: r.get("generate") == "differs",
        "`generate` raises an error": lambda r: str(r.get("generate", "")).startswith("raises"),
        "transformers does not run it in bf16": lambda r: r.get("plain bf16") == "does not run",
    }
    lines = ["## Remarks on transformers", ""]
    for what, holds in kinds.items():
        names = ", ".join(r["name"] for r in found if holds(r))
        lines.append(f"- {what}: {names or 'none'}.")
    return lines
