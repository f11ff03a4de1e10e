"""The usual way to best-of-16: transformers' `generate`, then the classifier on every candidate."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from worker import serve


@torch.no_grad()
def work(request: dict[str, Any]) -> dict[str, Any]:
    """`prompts` prompts in batches of `together`; seconds are those of sampling and scoring, without loading."""
    dtype = torch.bfloat16 if request.get("bf16") else torch.float32
    if request.get("fast_matmul"):
        torch.set_float32_matmul_precision("medium")
    device = "cuda" if request.get("gpu") else "cpu"
    policy = AutoModelForCausalLM.from_pretrained(f"{FOLDER}/model", dtype=dtype).to(device).eval()
    scorer = AutoModelForSequenceClassification.from_pretrained(f"{FOLDER}/reward", dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(f"{FOLDER}/model", padding_side="left")
    lines = Path(FOLDER, "prompts.jsonl").read_text().splitlines()[: request["prompts"]]
    prompts = [json.loads(line)["prompt"] for line in lines]
    prompts.sort(key=len)
    together = request["together"]
    written = []
    began = time.perf_counter()
    for start in range(0, len(prompts), together):
        inputs = tokenizer(
            prompts[start : start + together], return_tensors="pt", padding=True, return_token_type_ids=False
        ).to(device)
        out = policy.generate(
            **inputs, do_sample=True, top_k=0, max_new_tokens=64, num_return_sequences=16, pad_token_id=0
        )
        mask = torch.cat(
            [
                inputs["attention_mask"].repeat_interleave(16, 0),
                torch.ones_like(out[:, inputs["input_ids"].shape[1] :]),
            ],
            1,
        )
        scores = scorer(input_ids=out, attention_mask=mask).logits.view(-1, 16)
        scores.argmax(1).tolist()
        written.append((out, mask, inputs["input_ids"].shape[1]))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "numbers": [mean_logp(policy, *written[0])], "candidates": 16 * len(prompts)}


def mean_logp(policy: Any, ids: torch.Tensor, mask: torch.Tensor, start: int) -> float:
    """Mean log-probability of some candidates' tokens, computed anew."""
    logits = policy(input_ids=ids[:16], attention_mask=mask[:16]).logits[:, start - 1 : -1].float()
    logps = torch.log_softmax(logits, -1).gather(-1, ids[:16, start:, None]).squeeze(-1)
    ended = (ids[:16, start:] == 2).cumsum(1) - (ids[:16, start:] == 2).int() > 0
    return float(logps[~ended].mean())


if __name__ == "__main__":
    FOLDER = sys.argv[1]
    serve(work)
