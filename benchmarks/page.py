"""docs/benchmarks.md, from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def merged(
    file: Path, facts: dict[str, Any], results: dict[str, Any], growth: dict[str, Any] | None, order: list[str]
) -> dict[str, Any]:
    """What was measured now, each work with the facts of its run; works not measured now keep what the file holds."""
    old: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"works": {}, "growth": None}
    works = old["works"] | {name: found | {"facts": facts} for name, found in results.items()}
    return {
        "works": {name: works[name] for name in order if name in works},
        "growth": growth | {"facts": facts} if growth else old["growth"],
        "roles": old.get("roles"),
    }


def text(written: dict[str, Any]) -> str:
    """The page."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Sides take turns in one run, each a process of its own; a ratio is formed within a "
        "turn, and brackets hold the lowest and the highest. The reference's log-probabilities are part of the time on "
        "every side. Memory is the process's peak. The share of the GEMM-bound time is what the least possible work "
        "would need at the processor's highest measured rate of matrix products, in any precision. A line stands here "
        "only if the sides' numbers agree.",
    ]
    for found in written["works"].values():
        lines += ["", f"## {found['title']}", "", told(found["facts"]), "", *table(found)]
    if written.get("roles"):
        lines += ["", "## Four roles on one trunk", "", told(written["roles"]["facts"]), "", *roles_table(written)]
    if written["growth"]:
        lines += [
            "",
            "## How the cost grows",
            "",
            told(written["growth"]["facts"]),
            "",
            *growth_tables(written["growth"]),
        ]
    return "\n".join(lines) + "\n"


def told(facts: dict[str, Any]) -> str:
    """When and on what."""
    fp32, bf16 = (facts["peaks"][precision] / 1e9 for precision in ("fp32", "bf16"))
    return (
        f"{facts['date']}, {facts['processor']}, {facts['threads']} cores; matrix products reach {fp32:,.0f} GFLOP/s "
        f"in fp32 and {bf16:,.0f} in bf16. A Llama of {facts['parameters'] / 1e6:.0f} M parameters, "
        f"{facts['pairs_from']}."
    )


def table(found: dict[str, Any]) -> list[str]:
    """One work."""
    unit = found["unit"]
    lines = [
        f"| side | {unit}/s | Keel is faster by | memory, GB | Keel needs of it | of the GEMM-bound time | differs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, s in found["sides"].items():
        if not s["agrees"]:
            lines.append(f"| {name} | | not compared | | | | {s['gap']:.2g} |")
            continue
        own = name == "Keel"
        ratio = s["speed_ratio"]
        faster = "" if own else f"{ratio['median']:.1f} × [{ratio['low']:.1f}, {ratio['high']:.1f}]"
        memory = "" if own else f"{s['memory_ratio']:.2f}"
        bound = f"{found['gemm_share']:.0%}" if own and "gemm_share" in found else ""
        gap = "" if own else f"{s['gap']:.2g}"
        lines.append(f"| {name} | {s['per_second']:.2f} | {faster} | {s['peak_gb']:.1f} | {memory} | {bound} | {gap} |")
    if found["exact_gap"] is not None:
        line = f"Both in fp32, the losses of all steps agree to {found['exact_gap']:.1g}."
        if "gemm_share_in_fp32" in found:
            share = found["gemm_share_in_fp32"]
            line += f" Keel's run in fp32 is at {share:.0%} of the GEMM-bound time at fp32's peak."
        lines += ["", line]
    return lines


def roles_table(written: dict[str, Any]) -> list[str]:
    """PPO of four roles on one trunk beside four models."""
    lines = ["A Llama of 135 M; 16 prompts a rollout, 32-token answers, batches of 8.", ""]
    lines += ["| run | seconds a rollout | memory of the process, GB |", "|---|---|---|"]
    found = written["roles"]["found"]
    return lines + [f"| {name} | {took['seconds']:.1f} | {took['peak_gb']:.2f} |" for name, took in found.items()]


def growth_tables(growth: dict[str, Any]) -> list[str]:
    """Milliseconds per pair."""
    lines = ["Forward and backward passes of DPO's log-probabilities; prompts of 100 tokens.", ""]
    for name, title in (("pairs", "pairs in a batch"), ("completion", "tokens in a completion")):
        rows = growth[name]
        lines += [
            f"| {title} | " + " | ".join(f"{row['value']}" for row in rows) + " |",
            "|---" * (len(rows) + 1) + "|",
            "| ms per pair | " + " | ".join(f"{1e3 * row['per_pair']:.0f}" for row in rows) + " |",
            "",
        ]
    return lines[:-1]
