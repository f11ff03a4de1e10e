"""Keel's side: the methods as `keel` runs them."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from worker import serve

from keel.config import DPOConfig, RewardConfig
from keel.methods import dpo, reward

METHODS = {"dpo": (dpo, DPOConfig), "reward": (reward, RewardConfig)}


def work(request: dict[str, Any]) -> dict[str, Any]:
    """One run of `steps` steps; seconds are those of the loop, the reference's log-probabilities included."""
    method, config = METHODS[request["method"]]
    with tempfile.TemporaryDirectory() as out:
        result = method.train(
            config(
                model=f"{FOLDER}/model",
                data=f"{FOLDER}/pairs.jsonl",
                out=Path(out) / "run",
                steps=request["steps"],
                batch_size=request["batch"],
                learning_rate=request["learning_rate"],
                schedule="constant",
                weight_decay=0.0,
                max_grad_norm=1.0,
                save_every=1 << 30,
                max_length=1024,
                **request["options"],
            )
        )
        losses = [json.loads(line)["loss"] for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
        return {"seconds": result.summary["train_seconds"], "losses": losses}


if __name__ == "__main__":
    FOLDER = sys.argv[1]
    serve(work)
