"""Keel's side: the methods as `keel` runs them."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from worker import serve

from keel.config import BestOfNConfig, DPOConfig, PPOConfig, RewardConfig, SFTConfig
from keel.engine import forward
from keel.methods import best_of_n, dpo, ppo, reward, sft
from keel.models import checkpoints
from keel.records import Bundle, Completion


def work(request: dict[str, Any]) -> dict[str, Any]:
    """One run: its seconds, and numbers to compare with the other sides'."""
    forward.PACK = request.get("pack", True)
    with tempfile.TemporaryDirectory() as out:
        return WORKS[request["method"]](request, Path(out) / "run")


def pairs(request: dict[str, Any], out: Path) -> dict[str, Any]:
    """DPO or a reward model; seconds are those of the loop, the reference's log-probabilities included."""
    method, config = {"dpo": (dpo, DPOConfig), "reward": (reward, RewardConfig), "sft": (sft, SFTConfig)}[
        request["method"]
    ]
    result = method.train(
        config(
            model=f"{FOLDER}/{request.get('model', 'model')}",
            data=f"{FOLDER}/{'shown' if method is sft else 'pairs'}.jsonl",
            out=out,
            steps=request["steps"],
            batch_size=request["batch"],
            learning_rate=request["learning_rate"],
            schedule="constant",
            save_every=1 << 30,
            max_length=2048,
            **request["options"],
        )
    )
    return {"seconds": result.summary["train_seconds"], "numbers": metrics(result.folder, "loss")}


def proximal(request: dict[str, Any], out: Path) -> dict[str, Any]:
    """PPO; seconds are those of the loop; the number is the mean entropy of an answer."""
    result = ppo.train(
        PPOConfig(
            model=f"{FOLDER}/model",
            reward=f"{FOLDER}/{request.get('reward', 'reward')}",
            prompts=f"{FOLDER}/prompts.jsonl",
            out=out,
            steps=request["steps"],
            rollout_size=request["rollout"],
            samples_per_prompt=1,
            batch_size=request["batch"],
            epochs=4,
            max_new_tokens=request.get("answer", 32),
            learning_rate=request["learning_rate"],
            schedule="constant",
            warmup=0.0,
            save_every=1 << 30,
            **request["options"],
        )
    )
    return {"seconds": result.summary["train_seconds"], "numbers": metrics(result.folder, "objective/entropy")}


def best(request: dict[str, Any], out: Path) -> dict[str, Any]:
    """Seconds of sampling and scoring, without loading; the number is the mean log-probability of a token."""
    config = BestOfNConfig(
        model=f"{FOLDER}/model",
        reward=f"{FOLDER}/reward",
        prompts=f"{FOLDER}/prompts.jsonl",
        out=out.with_suffix(".jsonl"),
        n=16,
        max_new_tokens=64,
        limit=request["prompts"],
        **request["options"],
    )
    summary = best_of_n.best_of_n(config).summary
    seconds = summary["sample_seconds"] + summary["score_seconds"]
    rows = [json.loads(line) for line in config.out.read_text().splitlines()]
    candidates = [c for row in rows for c in row["candidates"]]
    tokens = sum(c["tokens"] for c in candidates)
    return {"seconds": seconds, "numbers": [sum(c["logp"] for c in candidates) / tokens], "candidates": len(candidates)}


def adapters(request: dict[str, Any], out: Path) -> dict[str, Any]:
    """A reward model, DPO and PPO, each as an adapter; of each seconds, peak memory on the card and tokens per second.

    PPO has all four roles on one trunk: its reward is the adapter that came first. With `whole`, PPO alone, as four
    separate models.
    """
    common = {"model": f"{FOLDER}/model", "schedule": "constant", "save_every": 1 << 30, "batch_size": request["batch"]}
    data = {"data": f"{FOLDER}/pairs.jsonl", "max_length": 2048}
    lora = {"lora": True, "learning_rate": 1e-4}
    scored = str(out.with_name("reward"))
    runs: dict[str, Any] = {}
    proximal = {
        "prompts": f"{FOLDER}/prompts.jsonl",
        "steps": 2,
        "rollout_size": request["rollout"],
        "samples_per_prompt": 1,
        "max_new_tokens": 64,
    }
    if request.get("whole"):
        runs["ppo"] = (ppo, PPOConfig, {"reward": f"{FOLDER}/reward", "learning_rate": 1e-6, **proximal})
    else:
        runs["reward"] = (reward, RewardConfig, {**data, **lora, "steps": request["steps"]})
        if "dpo" in request["only"]:
            runs["dpo"] = (dpo, DPOConfig, {**data, **lora, "steps": request["steps"]})
        runs["ppo"] = (ppo, PPOConfig, {"reward": scored, **lora, **proximal})
    found: dict[str, Any] = {}
    for name, (method, config, options) in runs.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        folder = scored if name == "reward" else out.with_name(name)
        summary = method.train(config(**{**common, **options}, out=folder)).summary
        found[name] = {
            "seconds": summary["train_seconds"],
            "with_loading": time.perf_counter() - began,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "examples_per_second": summary["examples_per_second"],
        }
    return {"seconds": sum(part["seconds"] for part in found.values()), "numbers": [], "parts": found}


def passes(request: dict[str, Any], out: Path) -> dict[str, Any]:
    """Forward and backward passes of pairs of given lengths, for the cost per pair: seconds, and nothing to compare."""
    config = DPOConfig(model=f"{FOLDER}/model", data="", out=out, **request["options"])
    model = checkpoints.load_policy(config.model, config)
    draw = torch.Generator().manual_seed(0)
    ids = lambda n: torch.randint(3, 32_000, (n,), generator=draw).tolist()  # noqa: E731
    bundles = [
        Bundle(ids(request["prompt"]), [Completion(ids(request["completion"])) for _ in range(2)])
        for _ in range(request["pairs"])
    ]
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        for micro in forward.micro_batches(model, bundles, config.micro_tokens):
            forward.sequence_logps(model, micro.bundles).sum().backward()
        seconds.append(time.perf_counter() - began)
        model.zero_grad()
    return {"seconds": min(seconds), "numbers": []}


def metrics(folder: Path, name: str) -> list[float]:
    """A figure of every step."""
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


WORKS = {
    "dpo": pairs,
    "reward": pairs,
    "sft": pairs,
    "ppo": proximal,
    "best": best,
    "passes": passes,
    "adapters": adapters,
}

if __name__ == "__main__":
    FOLDER = sys.argv[1]
    serve(work)
