"""Keel on a GPU beside its peers, in minutes: tests marked gpu, then docs/benchmarks-gpu.md and .json.

    make gpu                                # a machine with torch, transformers, peft, accelerate and a GPU
    python benchmarks/gpu.py --wheels DIR   # what else is needed is installed from DIR, for this run alone

Without the network, fetch the wheels elsewhere: started without one of them, the script names all. `DIR/ppo` may hold
trl 1.12, the last with PPO. Parts that fail say so on the page; the others run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {
    "pydantic": "pydantic pydantic-core annotated-types",
    "typing_inspection": "typing-inspection",
    "tyro": "tyro docstring-parser typeguard",
    "sqlalchemy": "sqlalchemy",
    "datasets": "datasets dill multiprocess",
    "trl": "trl==1.16.0",
    "liger_kernel": "liger-kernel",
    "peft": "peft",
    "pytest": "pytest",
}
"""Modules that a machine with torch and transformers may lack, and the wheels that hold them."""
HALF_BILLION: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
BATCH = 32
PARTS = "tests", "attention", "dpo", "reward", "ppo", "best"


# --- set-up ---------------------------------------------------------------------------------------


def equip(wheels: Path | None) -> None:
    """Start anew with the wheels of a folder on the path; without a folder, name what is missing."""
    if "KEEL_GPU_SITE" in os.environ:
        return
    site = Path(tempfile.mkdtemp(prefix="keel-gpu-"))
    if wheels is not None:
        for folder, target in ((wheels, site / "all"), (wheels / "ppo", site / "ppo")):
            files = sorted(map(str, folder.glob("*.whl")))
            options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--root-user-action", "ignore"]
            if files:
                command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), *files]
                subprocess.run(command, check=True)
    paths = [str(ROOT / "src"), str(site / "all"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = os.environ | {"KEEL_GPU_SITE": str(site), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    os.execve(sys.executable, [sys.executable, *sys.argv], env)


def require() -> None:
    """Stop with the names of the wheels that are missing."""
    missing = [wheels for module, wheels in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SystemExit(
            f"missing here: {', '.join(missing)}\n"
            f"fetch them: pip download --no-deps --only-binary=:all: --dest DIR {' '.join(missing)}\n"
            "then give --wheels DIR"
        )
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no GPU here; nothing was measured")


# --- what is compared -----------------------------------------------------------------------------


def works() -> dict[str, Any]:
    """The comparisons: Keel as it is by default, TRL as its users tune it."""
    from run import Work
    from sides import Side

    me = sys.executable
    liger = {"gradient_checkpointing": False, "bf16": True, "use_liger_kernel": True, "use_cpu": False}
    gpu = {"gpu": True}
    keel = Side("Keel", me, "side_keel.py", {"options": {}, **gpu})
    cached = {"precompute_ref_log_probs": True}
    site = Path(os.environ["KEEL_GPU_SITE"])
    older = {"PYTHONPATH": os.pathsep.join([str(site / "ppo"), os.environ["PYTHONPATH"]])}

    def peers(options: dict[str, Any]) -> tuple[Side, ...]:
        mixed = {"options": liger | options, **gpu}
        return (
            keel,
            Side("TRL 1.16, bf16 over fp32 weights, Liger", me, "side_trl.py", mixed, 2e-2),
            Side("TRL 1.16, all in bf16, Liger", me, "side_trl.py", mixed | {"dtype": "bfloat16"}, 2e-2),
        )

    shared = {"batch": BATCH, "learning_rate": 1e-6, **gpu}
    return {
        "dpo": Work(
            "dpo",
            "DPO, cached reference",
            "pairs",
            8 * BATCH,
            {"method": "dpo", "steps": 8, **shared},
            peers(cached),
            rounds=1,
            least={"head": True},
        ),
        "reward": Work(
            "reward",
            "Reward model",
            "pairs",
            8 * BATCH,
            {"method": "reward", "steps": 8, **shared},
            peers({}),
            rounds=1,
            least={"head": False},
        ),
        "ppo": Work(
            "ppo",
            "PPO, one sample a prompt, 4 epochs, four models, 64-token answers",
            "episodes",
            64,
            {"method": "ppo", "steps": 1, "rollout": 64, "answer": 64, **shared},
            (
                keel,
                Side(
                    "TRL 1.12, bf16",
                    me,
                    "side_trl_ppo.py",
                    {"options": {"gradient_checkpointing": False, "bf16": True}, "dtype": "bfloat16", **gpu},
                    50.0,
                    older,
                ),
            ),
            rounds=1,
        ),
        "best": Work(
            "best",
            "Best-of-16, 64 tokens, scored",
            "candidates",
            32 * 16,
            {"method": "best", "prompts": 32, **gpu},
            (keel, Side("generate + classifier, bf16", me, "side_generate.py", {"bf16": True, "together": 32}, 0.1)),
            rounds=1,
        ),
    }


def compared(name: str, folder: Path, pairs: Any, peak: float) -> dict[str, Any]:
    """One comparison, with Keel's tokens per second and its share of the card's peak."""
    import peaks
    import standard
    from sides import compare

    work = works()[name]
    place = folder / f"{name}-work"
    place.mkdir()
    for part in ("model", "reward"):
        (place / part).symlink_to(folder / part)
    standard.build_data(place, pairs, max(work.count, 32))
    with Path("bench.log").open("a") as log:
        found = compare(work, place, log)
    if work.least:
        seconds = work.count / found["sides"]["Keel"]["per_second"]
        found["gemm_share"] = peaks.least_work(place, work.count, shape=HALF_BILLION, **work.least) / peak / seconds
        rows = [json.loads(line) for line in (place / "ids.jsonl").open()][: work.count]
        found["tokens_per_second"] = sum(len(ids) for row in rows for ids in row.values()) / seconds
    return found


# --- attention ------------------------------------------------------------------------------------


def attention() -> dict[str, Any]:
    """Milliseconds of packed attention, forward and backward, in each way that a GPU has; and row by row."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from keel.models import attention as ways

    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 200, (24, 3), generator=draw).tolist()
    bundles = [(prompt, [one, other]) for prompt, one, other in lengths]
    tokens = sum(prompt + sum(cs) for prompt, cs in bundles)
    texts = [prompt + c for prompt, cs in bundles for c in cs]

    def rows(q: Any, k: Any, v: Any, packing: Any, scale: float) -> Any:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)

    result: dict[str, Any] = {"tokens": tokens, "milliseconds": {}}
    for name, way in {
        "flash attention over segments": ways.by_flash,
        "FlexAttention": ways.by_flex,
        "a mask over the row": ways.by_mask,
        "row by row, each prompt twice": rows,
    }.items():
        shape = (len(texts), 14, max(texts), 64) if way is rows else (1, 14, tokens, 64)
        q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

        def once(way: Callable[..., Any] = way, q: Any = q, k: Any = k, v: Any = v) -> None:
            way(q, k, v, ways.Packing(bundles), 0.125).sum().backward()

        try:
            began = time.perf_counter()
            once()
            torch.cuda.synchronize()
            first = time.perf_counter() - began
            times = []
            for _ in range(10):
                began = time.perf_counter()
                once()
                torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            result["milliseconds"][name] = {"median": 1e3 * sorted(times)[5], "first": 1e3 * first}
        except Exception as error:
            result["milliseconds"][name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    return result


# --- the page -------------------------------------------------------------------------------------


def page_of(written: dict[str, Any]) -> str:
    """docs/benchmarks-gpu.md."""
    import page

    facts = written["facts"]
    lines = [
        "# On a GPU",
        "",
        "Written by `make gpu`. Sides take turns, each a process of its own; ratios are formed within a turn. Memory "
        "is the most that tensors took on the card. The GEMM-bound time is what the least possible work would need at "
        "the card's measured rate of bf16 products. A Llama shaped like a model of half a billion parameters, random "
        f"weights, {facts['pairs_from']}.",
        "",
        f"{facts['date']}, {facts['card']}, torch {facts['torch']}, transformers {facts['transformers']}; bf16 "
        f"products reach {facts['peak'] / 1e12:.0f} TFLOP/s.",
    ]
    for name, found in written["parts"].items():
        if "error" in found:
            lines += ["", f"## {name}", "", f"Failed: {found['error']}"]
        elif name == "tests":
            lines += ["", "## Tests marked gpu", "", found["result"]]
        elif name == "attention":
            lines += ["", f"## Packed attention, {found['tokens']:,} tokens, forward and backward", ""]
            lines += ["| way | ms | first call, ms |", "|---|---|---|"]
            for way, took in found["milliseconds"].items():
                shown = took.get("error") or f"{took['median']:.2f} | {took['first']:,.0f}"
                lines.append(f"| {way} | {shown} |")
        else:
            lines += ["", f"## {found['title']}", "", *page.table(found)]
            if "tokens_per_second" in found:
                lines += ["", f"Keel reads {found['tokens_per_second']:,.0f} tokens of the data a second."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install for this run")
    parser.add_argument("--pairs", default="", help="Anthropic HH pairs; made ones where empty")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks-gpu.json")
    options = parser.parse_args()
    equip(options.wheels)
    require()
    sys.path.insert(0, str(Path(__file__).parent))
    import standard
    import torch
    import transformers

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(8):
        torch.cuda.synchronize()
        began = time.perf_counter()
        a @ a
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peak": 2 * 8192**3 / min(times),
        "pairs_from": "people's pairs (Anthropic HH)" if options.pairs else "made pairs",
    }
    del a
    written: dict[str, Any] = {"facts": facts, "parts": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = standard.read(options.pairs) if options.pairs else standard.made(1000)
        standard.build_models(folder, pairs, HALF_BILLION, torch.bfloat16)
        torch.cuda.empty_cache()
        for part in options.only.split(","):
            began = time.perf_counter()
            written["parts"][part] = run_part(part, folder, pairs, facts["peak"])
            print(part, f"{time.perf_counter() - began:.0f} s", json.dumps(written["parts"][part])[:1500], flush=True)
            options.out.write_text(json.dumps(written, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(page_of(written))
    print(page_of(written))


def run_part(part: str, folder: Path, pairs: Any, peak: float) -> dict[str, Any]:
    """One part's result; what went wrong if it failed."""
    try:
        if part == "tests":
            command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests/gpu"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
            return {"result": done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]}
        return attention() if part == "attention" else compared(part, folder, pairs, peak)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        log = Path("bench.log")
        print(log.read_text()[-3000:] if log.exists() else "", flush=True)
        return {"error": f"{type(error).__name__}: {error}"[:500]}


if __name__ == "__main__":
    main()
