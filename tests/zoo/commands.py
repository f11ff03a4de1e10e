"""Tiny models of the most used families through the command line, in this process.

`python -m tests.zoo.commands FOLDER "llama fp32" …` prints one JSON line per job; without names it reads them from
standard input, one a line. A job is a variant, a precision and, if not all of them, commands: "llama bf16 dpo ppo".
Each command must end with exit code 0 and leave what it should; what it computes is `examine`'s concern.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .examine import Wrong
from .families import VARIANTS
from .oracle import Oracle
from .rule import END, PAD
from .tiny import model_of, tokenizer
from .worker import place, serve

FAMILIES = [
    "llama",
    "llama4",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "phi",
    "phi3-longrope-crossed",
    "phimoe",
    "deepseek_v2",
    "deepseek_v3",
    "gpt_oss",
    "glm4",
    "smollm3",
    "olmo2",
    "olmoe",
    "granite",
    "cohere2",
    "gpt2",
    "gpt_neox",
    "opt",
    "bloom",
    "falcon",
    "falcon_h1",
    "stablelm",
    "starcoder2",
    "mamba",
    "mamba2",
    "lfm2",
    "jamba",
    "minimax",
    "rwkv",
    "nemotron",
    "exaone4",
    "apertus",
    "ernie4_5",
    "hunyuan_v1_dense",
]
"""Variants that go through the command line, by name."""
COMMANDS = ["sft", "generate", "reward", "dpo", "ppo"]
IN_CI = ["dpo", "ppo"]
"""Commands that CI runs in bf16; between them they load, train, sample and make a critic."""
JOBS = [f"{name} {precision}" for name in FAMILIES for precision in ("fp32", "bf16")]
"""Every command in both precisions."""
JOBS_IN_CI = [f"{name} {what}" for name in FAMILIES for what in ("fp32", " ".join(["bf16", *IN_CI]))]

LEARN, LOWER = 15, 0.7
"""Steps on one sentence, and what is at most left of the loss after them."""
STEPS, ANSWERS, NEW = 2, 4, 12
DRAWN = 2e-3
"""Bound on the difference of a recorded log-probability, in nats per token."""
SENTENCE = {"prompt": "what does the owl do?", "completion": "the owl sleeps all day and hunts at night."}
PROMPTS = [
    "where is the fox?",
    "who is it?",
    "what can the old bear do in the cold winter?",
    "when is it dark?",
]
ENDS = [END, *range(101, 256, 5)]
"""Bytes that no text here has end answers too, so that a random model's end apart."""
NOISE = ("Traceback", "Warning", "deprecated", "You should", "[transformers]")
"""What Keel's own lines do not hold."""


@dataclass
class Desk:
    """A model folder with data files, and how commands are called on it."""

    folder: Path
    precision: str
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def file(self, name: str, rows: list[dict[str, str]]) -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def pairs(self) -> Path:
        answers = [(f"in the wood {p[-5:]}", "no" + p[:3] * i) for i, p in enumerate(PROMPTS)]
        rows = [{"prompt": p, "chosen": good, "rejected": bad} for p, (good, bad) in zip(PROMPTS, answers, strict=True)]
        return self.file("pairs.jsonl", rows)

    def prompts(self) -> Path:
        return self.file("prompts.jsonl", [{"prompt": p} for p in PROMPTS])

    def call(self, command: str, out: str, **options: object) -> Path:
        """Run a command to its end: what it wrote. Raises Wrong for another exit code, or for lines not Keel's."""
        from keel.cli import main

        options = {"model": self.model, "precision": self.precision, "device": "cpu", **options}
        flags = [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), str(value))]
        with Captured() as captured:
            code = main([*command.split(), *flags, "--out", str(self.folder / out)])
        lines = captured.text.strip().splitlines() or [""]
        if code != 0:
            raise Wrong(f"exit code {code}: {lines[-1]}")
        if noise := [line for line in lines if any(word in line for word in NOISE)]:
            raise Wrong(f"prints {noise[0]}")
        return self.folder / out

    def run(self, command: str, steps: int, **options: object) -> Path:
        """Train for some steps: the run folder, its metrics checked."""
        out = self.call(command, command, steps=steps, **options)
        rows = self.metrics(out)
        if len(rows) != steps:
            raise Wrong(f"{len(rows)} lines of metrics for {steps} steps")
        odd = [f"{name} {value}" for row in rows for name, value in row.items() if not math.isfinite(value)]
        if odd:
            raise Wrong(f"metrics that are not finite: {odd[0]}")
        return out

    def metrics(self, run: Path) -> list[dict[str, float]]:
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Captured:
    """Everything that is printed inside, by libraries too: `.text` afterwards."""

    def __enter__(self) -> Captured:
        sys.stdout.flush()
        sys.stderr.flush()
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._before = os.dup(1), os.dup(2)
        os.dup2(self._file.fileno(), 1)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for before, at in zip(self._before, (1, 2), strict=True):
            os.dup2(before, at)
            os.close(before)
        self._file.seek(0)
        self.text = self._file.read()
        self._file.close()


# --- the commands ---------------------------------------------------------------------------------


def sft(desk: Desk) -> None:
    """One sentence, until it is known better; the policy is one that transformers reads."""
    data = desk.file("sentence.jsonl", [SENTENCE])
    run = desk.run("sft", LEARN, data=data, epochs=LEARN, learning_rate=1e-2, schedule="constant")
    losses = [row["loss"] for row in desk.metrics(run)]
    desk.told["loss"] = f"{losses[0]:.2f} to {losses[-1]:.2f}"
    if not losses[-1] < LOWER * losses[0]:
        raise Wrong(f"the loss of one sentence goes from {desk.told['loss']} in {LEARN} steps")
    _require_policy(desk, run)


def generate(desk: Desk) -> None:
    """Four answers to each prompt, which end apart, with the log-probabilities that transformers gives them."""
    file = desk.call("generate", "answers.jsonl", prompts=desk.prompts(), n=ANSWERS, max_new_tokens=NEW)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if [row["prompt"] for row in rows] != PROMPTS:
        raise Wrong("other prompts, or in another order")
    if any(len(row["completions"]) != ANSWERS for row in rows):
        raise Wrong(f"not {ANSWERS} answers to each prompt")
    answers = [answer for row in rows for answer in row["completions"]]
    if len({len(answer["ids"]) for answer in answers}) == 1:
        raise Wrong("no two answers end apart")
    if any(answer["truncated"] == (answer["ids"][-1] in ENDS) for answer in answers):
        raise Wrong("an answer has an end and is truncated, or neither")
    if desk.precision == "fp32":
        _require_recorded(desk, rows)


def _require_recorded(desk: Desk, rows: list[dict[str, Any]]) -> None:
    oracle, read = Oracle(desk.model), tokenizer()
    for row in rows:
        prompt = list(read(row["prompt"]).input_ids)
        for answer in row["completions"]:
            logps = oracle.logps_when_drawn if oracle.moving else oracle.logps
            expected = float(logps([(prompt, answer["ids"])]).sum())
            if not abs(answer["logp"] - expected) <= DRAWN * len(answer["ids"]):
                raise Wrong(f"an answer's log-probability is {answer['logp']:.3f}, transformers' {expected:.3f}")


def reward(desk: Desk) -> None:
    """A reward model that Keel reads."""
    from keel.config import Machine
    from keel.models import checkpoints

    run = desk.run("reward", STEPS, data=desk.pairs(), batch_size=2)
    checkpoints.load_reward(str(run), Machine(device="cpu", precision=desk.precision))


def dpo(desk: Desk) -> None:
    """From the model as its own reference."""
    _require_policy(desk, desk.run("dpo", STEPS, data=desk.pairs(), batch_size=2, learning_rate=1e-3))


def ppo(desk: Desk) -> None:
    """Against a rule, with a critic on the policy's backbone."""
    rule = desk.folder / "rule.yaml"
    rule.write_text("rules:\n  - {matches: '[a-m]'}\n  - {characters: [1, 6], weight: 0.5}\n", encoding="utf-8")
    given = {"prompts": desk.prompts(), "reward": f"rule:{rule}", "rollout_size": 4, "batch_size": 2}
    _require_policy(desk, desk.run("ppo", STEPS, **given, epochs=1, max_new_tokens=NEW, learning_rate=1e-3))


def _require_policy(desk: Desk, run: Path) -> None:
    """What a run leaves is a causal model for transformers, whole, and no longer the one that it began as."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    final = run / "final"
    after, info = AutoModelForCausalLM.from_pretrained(final, output_loading_info=True)
    odd = {kind: keys for kind, keys in info.items() if keys}
    if odd:
        raise Wrong(f"transformers reads final/ with {odd}")
    before = AutoModelForCausalLM.from_pretrained(desk.model, dtype=after.dtype).state_dict()
    if all(torch.equal(weight, before[key]) for key, weight in after.state_dict().items()):
        raise Wrong("no weight has changed")
    if AutoTokenizer.from_pretrained(final)(PROMPTS[0]).input_ids != tokenizer()(PROMPTS[0]).input_ids:
        raise Wrong("the tokenizer of final/ reads otherwise")


CHECKS: dict[str, Callable[[Desk], None]] = {"sft": sft, "generate": generate, "reward": reward, "dpo": dpo, "ppo": ppo}

# --- one after the other --------------------------------------------------------------------------


def set_up(name: str, precision: str, folder: Path) -> Desk:
    """A desk with the model of a variant."""
    from transformers import GenerationConfig

    desk = Desk(folder, precision)
    model = model_of(next(variant for variant in VARIANTS if variant.name == name))
    model.generation_config = GenerationConfig(eos_token_id=ENDS, pad_token_id=PAD)
    model.save_pretrained(desk.model)
    tokenizer().save_pretrained(desk.model)
    return desk


def examine(job: str, folder: Path) -> dict[str, Any]:
    """What became of a job: 'right', or the first fault, and all of them by command."""
    name, precision, *chosen = job.split()
    started = time.perf_counter()
    desk = set_up(name, precision, folder)
    faults: list[dict[str, str]] = []
    for command in chosen or COMMANDS:
        began = time.perf_counter()
        try:
            CHECKS[command](desk)
        except Wrong as error:
            faults.append({"check": command, "outcome": "wrong", "line": str(error).replace(str(folder), "FOLDER")})
        except Exception as error:
            faults.append({"check": command, "outcome": "crashed", "line": place(error)})
        desk.told[command] = round(time.perf_counter() - began, 1)
    first = faults[0] if faults else {"outcome": "right", "line": "", "check": ""}
    seconds = round(time.perf_counter() - started, 1)
    return {"name": job, "family": name, **first, "faults": faults, **desk.told, "seconds": seconds}


if __name__ == "__main__":
    serve(examine)
