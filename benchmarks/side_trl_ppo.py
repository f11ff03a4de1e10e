"""TRL 1.12's side, the last with PPO, run by the Python of its own environment."""

from __future__ import annotations

import sys
import tempfile
import time
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer
from worker import serve


class Entropies(TrainerCallback):
    """Every rollout's mean entropy of an answer."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "objective/entropy" in logs:
            self.seen.append(logs["objective/entropy"])


def work(request: dict[str, Any]) -> dict[str, Any]:
    """`steps` rollouts; seconds are those of `train`."""
    if request.get("fast_matmul"):
        torch.set_float32_matmul_precision("medium")
    tokenizer = AutoTokenizer.from_pretrained(f"{FOLDER}/model", padding_side="left")
    data = load_dataset("json", data_files=f"{FOLDER}/prompts.jsonl", split="train")
    data = data.map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]}, remove_columns=["prompt"])
    causal = (
        AutoModelForCausalLM.from_pretrained(f"{FOLDER}/model", dtype=getattr(torch, request.get("dtype", "float32")))
        for _ in range(2)
    )
    scalar = (
        AutoModelForSequenceClassification.from_pretrained(
            f"{FOLDER}/reward", dtype=getattr(torch, request.get("dtype", "float32"))
        )
        for _ in range(2)
    )
    model, reference = causal
    reward, value = scalar
    entropies = Entropies()
    with tempfile.TemporaryDirectory() as out:
        config = PPOConfig(
            output_dir=out,
            use_cpu=not request.get("gpu"),
            per_device_train_batch_size=request["rollout"],
            gradient_accumulation_steps=1,
            num_mini_batches=request["rollout"] // request["batch"],
            total_episodes=request["steps"] * request["rollout"],
            num_ppo_epochs=4,
            response_length=request.get("answer", 32),
            stop_token="eos",
            local_rollout_forward_batch_size=request["rollout"],
            learning_rate=request["learning_rate"],
            lr_scheduler_type="constant",
            num_sample_generations=0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **request["options"],
        )
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=model,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=data,
            callbacks=[entropies],
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "numbers": entropies.seen}


if __name__ == "__main__":
    FOLDER = sys.argv[1]
    serve(work)
