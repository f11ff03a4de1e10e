"""TRL's side, run by the Python of its own environment: its trainers on the token ids that Keel made."""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import torch
from datasets import load_dataset
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from worker import serve


class Losses(TrainerCallback):
    """Every step's loss."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.seen.append(logs["loss"])


class Ordered:
    """Batches in the order of the file."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class DPO(Ordered, DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # token ids already


class Reward(Ordered, RewardTrainer):
    pass


def work(request: dict[str, Any]) -> dict[str, Any]:
    """One run of `steps` steps; seconds are those of `train`, and of the reference where that is computed before."""
    tokenizer = AutoTokenizer.from_pretrained(f"{FOLDER}/model")
    data = load_dataset("json", data_files=f"{FOLDER}/ids.jsonl", split="train")
    data = data.select(range(request["steps"] * request["batch"]))
    if request.get("fast_matmul"):
        torch.set_float32_matmul_precision("medium")
    losses = Losses()
    with tempfile.TemporaryDirectory() as out:
        shared = {
            "output_dir": out,
            "use_cpu": not request.get("gpu"),
            "per_device_train_batch_size": request["batch"],
            "max_steps": request["steps"],
            "learning_rate": request["learning_rate"],
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "max_length": 2048,
            "disable_tqdm": True,
            **request["options"],
        }
        if request["method"] == "dpo":
            model = AutoModelForCausalLM.from_pretrained(
                f"{FOLDER}/model", dtype=getattr(torch, request.get("dtype", "float32"))
            )
            if request.get("adapter"):
                model = PeftModel.from_pretrained(model, f"{FOLDER}/adapter", is_trainable=True)
            began = time.perf_counter()
            trainer: Any = DPO(model, None, DPOConfig(**shared), train_dataset=data, processing_class=tokenizer)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(
                f"{FOLDER}/model", num_labels=1, dtype=getattr(torch, request.get("dtype", "float32"))
            )
            torch.nn.init.zeros_(model.score.weight)
            joined = data.map(
                lambda row: {side: row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")},
                remove_columns=["prompt_ids"],
            )
            began = time.perf_counter()
            trainer = Reward(model, RewardConfig(**shared), train_dataset=joined, processing_class=tokenizer)
        trainer.add_callback(losses)
        if request["method"] != "dpo" or not request["options"].get("precompute_ref_log_probs"):
            began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "numbers": losses.seen}


if __name__ == "__main__":
    FOLDER = sys.argv[1]
    serve(work)
