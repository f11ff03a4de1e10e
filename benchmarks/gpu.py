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
SEVEN_BILLION = HALF_BILLION | {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "intermediate_size": 18_944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
BILLION_AND_A_HALF = HALF_BILLION | {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
}
BATCH = 32
PARTS = "tests", "attention", "dpo", "exact", "reward", "ppo", "best", "seven", "roles"


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
    plain = {"gradient_checkpointing": False, "bf16": True, "use_cpu": False}
    liger = plain | {"use_liger_kernel": True, "precompute_ref_log_probs": True}
    gpu = {"gpu": True}
    keel = Side("Keel", me, "side_keel.py", {"options": {}, **gpu})
    site = Path(os.environ["KEEL_GPU_SITE"])
    older = {"PYTHONPATH": os.pathsep.join([str(site / "ppo"), os.environ["PYTHONPATH"]])}
    fp32 = plain | {"bf16": False}

    def trl(name: str, options: dict[str, Any], **more: Any) -> Side:
        return Side(f"TRL 1.16, {name}", me, "side_trl.py", {"options": options, **gpu, **more}, 5e-2)

    shared = {"batch": BATCH, "learning_rate": 1e-6, **gpu}
    return {
        "dpo": Work(
            "dpo",
            "DPO, cached reference",
            "pairs",
            8 * BATCH,
            {"method": "dpo", "steps": 8, **shared},
            (
                keel,
                trl("bf16 over fp32 weights, Liger", liger),
                trl("all in bf16, Liger", liger, dtype="bfloat16"),
            ),
            rounds=1,
            least={"head": True},
        ),
        "exact": Work(
            "exact",
            "DPO in fp32, to compare the losses",
            "pairs",
            2 * BATCH,
            {"method": "dpo", "steps": 2, **shared},
            (
                Side("Keel", me, "side_keel.py", {"options": {"precision": "fp32"}, **gpu}),
                trl("fp32", fp32 | {"precompute_ref_log_probs": True}),
            ),
            rounds=1,
        ),
        "reward": Work(
            "reward",
            "Reward model",
            "pairs",
            8 * BATCH,
            {"method": "reward", "steps": 8, **shared},
            (keel, trl("bf16 over fp32 weights", plain), trl("all in bf16", plain, dtype="bfloat16")),
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


def on_shapes(part: str, pairs: Any) -> dict[str, Any]:
    """Adapters on a model of 7 B; four roles on one trunk of 1.5 B beside four models: speed and memory of each."""
    import standard
    import torch
    from sides import Side

    shape = SEVEN_BILLION if part == "seven" else BILLION_AND_A_HALF
    room = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=room if room.is_dir() else None) as name, Path("bench.log").open("a") as log:
        folder = Path(name)
        parameters = standard.build_models(folder, pairs, shape, torch.bfloat16, reward=part == "roles")
        standard.build_data(folder, pairs, 64)
        torch.cuda.empty_cache()
        request = {
            "method": "adapters",
            "batch": 16,
            "rollout": 32,
            "steps": 4,
            "only": "dpo" if part == "seven" else "",
        }
        found = {}
        for title, more in {"adapters on one trunk": {}, "four separate models": {"whole": True}}.items():
            if more and part == "seven":
                continue
            process = Side(title, sys.executable, "side_keel.py", more | {"gpu": True}).start(folder, log)
            found[title] = process.run(request)["parts"]
            process.stop()
    return {"parameters": parameters, "found": found}


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
        packing = ways.Packing(bundles)  # the same in every layer of a pass

        def once(way: Callable[..., Any] = way, inputs: Any = (q, k, v, packing)) -> None:
            way(*inputs, 0.125).sum().backward()

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

    lines = [
        "# On a GPU",
        "",
        "Written by `make gpu`. Sides take turns, each a process of its own; ratios are formed within a turn. Memory "
        "is the most that tensors took on the card. The GEMM-bound time is what the least possible work would need at "
        "the card's measured rate of bf16 products. A Llama shaped like a model of half a billion parameters if "
        "nothing else is said, random weights. In bf16 the sides round differently, Keel's weights at random places: "
        "losses may differ by 0.05.",
    ]
    if missing := [part for part in PARTS if part not in written]:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    for name in [part for part in PARTS if part in written]:
        found, facts = written[name], written[name]["facts"]
        told = (
            f"{facts['date']}, {facts['card']}, torch {facts['torch']}, transformers {facts['transformers']}; bf16 "
            f"products reach {facts['peak'] / 1e12:.0f} TFLOP/s; {facts['pairs_from']}."
        )
        if "error" in found:
            lines += ["", f"## {name}", "", f"Failed: {found['error']}"]
        elif name == "tests":
            lines += ["", "## Tests marked gpu", "", told, "", found["result"]]
        elif name == "attention":
            lines += ["", f"## Packed attention, {found['tokens']:,} tokens, forward and backward", "", told, ""]
            lines += ["| way | ms | first call, ms |", "|---|---|---|"]
            for way, took in found["milliseconds"].items():
                shown = took.get("error") or f"{took['median']:.2f} | {took['first']:,.0f}"
                lines.append(f"| {way} | {shown} |")
        elif name in ("seven", "roles"):
            title = "Adapters on 7 B" if name == "seven" else "PPO with four roles on a trunk of 1.5 B"
            lines += ["", f"## {title}", "", told, "", f"{found['parameters'] / 1e9:.2f} billion parameters.", ""]
            lines += [
                "| run | how | examples/s | memory, GB | seconds of training | with loading |",
                "|---|---|---|---|---|---|",
            ]
            lines += [
                f"| {run} | {how} | {took['examples_per_second']:.2f} | {took['peak_gb']:.1f} | {took['seconds']:.1f} "
                f"| {took['with_loading']:.0f} |"
                for how, runs in found["found"].items()
                for run, took in runs.items()
            ]
        else:
            lines += ["", f"## {found['title']}", "", told, "", *page.table(found)]
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
    written: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = standard.read(options.pairs) if options.pairs else standard.made(1000)
        if {*options.only.split(",")} - {"tests", "attention", "seven", "roles"}:
            standard.build_models(folder, pairs, HALF_BILLION, torch.bfloat16)
        torch.cuda.empty_cache()
        for part in options.only.split(","):
            began = time.perf_counter()
            written[part] = run_part(part, folder, pairs, facts["peak"]) | {"facts": facts}
            print(part, f"{time.perf_counter() - began:.0f} s", json.dumps(written[part])[:1200], flush=True)
            options.out.write_text(json.dumps(written, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(page_of(written))
    print(page_of(written))


def run_part(part: str, folder: Path, pairs: Any, peak: float) -> dict[str, Any]:
    """One part's result; what went wrong if it failed."""
    try:
        if part == "tests":
            options = ["-m", "gpu", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
            command = [sys.executable, "-m", "pytest", *options, "tests/gpu"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
            return {"result": done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]}
        if part == "attention":
            return attention()
        return on_shapes(part, pairs) if part in ("seven", "roles") else compared(part, folder, pairs, peak)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        log = Path("bench.log")
        print(log.read_text()[-3000:] if log.exists() else "", flush=True)
        return {"error": f"{type(error).__name__}: {error}"[:500]}


if __name__ == "__main__":
    main()
