"""Small models of seven families, trained on stories from nothing and taken through every command, with checks.

The stories are drawn from a pretrained story model, whose tokenizer all share; that model itself goes the same way.
Preferences come from a rule about content: a story gets a point for naming a girl and one for speech. For each model:
losses, the reward model's held-out accuracy, the rule's points before and after DPO, PPO and best-of-N with the KL, and
three checks that use nothing of Keel: greedy answers against transformers' own `generate`, recorded log-probabilities
against a plain pass over each text alone, and the share of written words that the training stories have.

    python studies/families.py --model DIR/stories260k --out runs/families
    python studies/families.py --model DIR/stories260k --out runs/families --only phi3 mamba --precision bf16

Commands run through the command line's own `main`, all in this process; those whose result is there are passed over.
Left out: chats (the stories are plain text), adapters, a GPU.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from keel import cli, stats
from keel.config import Machine
from keel.evaluation.outcomes import sequence_kl
from keel.files.jsonl import read_lines, write_lines
from keel.models import checkpoints
from keel.records import Bundle, Completion
from keel.text.tokenisation import Text

GIRLS = ["Lily", "Mia", "Sue", "Lucy", "Anna", "Sara", "Amy", "Jane", "Emma", "Mary"]
RULE = f"rules:\n  - {{contains: [{', '.join(GIRLS)}]}}\n  - {{matches: '\"'}}\n"
NAMED = re.compile(rf"(?i)(?<!\w)({'|'.join(GIRLS)})(?!\w)")
BEGINNINGS = ["Once", "One day", "Tom", "Ben", "There was", "Tim", "A little", "Max", "In a", "It was"]
STORIES, STORY_TOKENS, NEW_TOKENS = 400, 120, 128
"""How many of each beginning, and tokens of one; tokens of an answer."""
OPENING = 8
"""Words of a story that are its prompt."""
HELD, HELD_SAMPLES, GREEDY = 60, 2, 10
LIMIT = 64
"""Tokens beyond which the Phi-3 reads positions otherwise: most stories cross it."""

# --- models ---------------------------------------------------------------------------------------

WIDTH, HEAD = 96, 24
_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
_BLOCKS = {"hidden_size": WIDTH, "num_hidden_layers": 4, "intermediate_size": 256}
_DECODER = _BLOCKS | _ATTENTION | {"tie_word_embeddings": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _DECODER,
    "qwen3": _DECODER | {"head_dim": HEAD},
    "gemma3_text": _DECODER
    | {
        "head_dim": HEAD,
        "query_pre_attn_scalar": HEAD,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "phi3": _DECODER
    | {
        "original_max_position_embeddings": LIMIT,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * (HEAD // 2),
            "long_factor": [1.0 + i / 3 for i in range(HEAD // 2)],
        },
    },
    "mamba": {"hidden_size": WIDTH, "num_hidden_layers": 4, "state_size": 4},
    "lfm2": _DECODER
    | {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_next": _DECODER
    | {
        "head_dim": HEAD,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": HEAD,
        "linear_value_head_dim": HEAD,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "shared_expert_intermediate_size": 96,
    },
}
"""Settings by `model_type`; all have four layers and some half a million parameters."""
SLOWER = {"mamba": 2}
"""What gets so many times fewer steps: the library's scan on a CPU is slow, its backward pass with length squared."""


def new_model(kind: str, tokenizer_of: str, folder: Path) -> int:
    """A model of random weights with the stories' tokenizer; its number of parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    text = checkpoints.load_text(tokenizer_of)
    ids = {"bos_token_id": text.bos_id, "eos_token_id": text.eos_id, "pad_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=len(text.tokenizer), **ids, **FAMILIES[kind])
    model = AutoModelForCausalLM.from_config(config)
    checkpoints.save(model, text, folder)
    return sum(p.numel() for p in model.parameters())


# --- commands -------------------------------------------------------------------------------------


class CommandFailed(Exception):  # noqa: N818
    """A command that ended otherwise than with 0; what it said."""


@dataclass
class Line:
    """One model's way through the commands, all files in one folder."""

    name: str
    out: Path
    data: Path
    precision: str

    def keel(self, made: str, command: str, *arguments: str) -> Path:
        """Run a command whose result is `made`, unless it is there; its seconds and its lines are kept."""
        target = self.out / made
        done = target / "summary.json" if command in ("sft", "reward", "dpo", "ppo") else target
        if done.exists():
            return target
        out = ("--store" if command == "collect" else "--out", str(target))
        call = [command, *arguments, *out, "--precision", self.precision]
        began = time.perf_counter()
        with open(self.out / f"{made}.log", "w") as log:
            print("keel", *call, file=log)
            with redirect_stdout(log), redirect_stderr(log):
                code = cli.main(call)
            seconds = time.perf_counter() - began
            print(f"{seconds:.1f} s", file=log)
        print(f"{self.name}: {command} {made}: exit {code}, {seconds:.0f} s", flush=True)
        if code:
            raise CommandFailed((self.out / f"{made}.log").read_text()[-2000:])
        return target

    def seconds(self) -> dict[str, float]:
        """Of every command."""
        return {f.stem: float(f.read_text().split()[-2]) for f in sorted(self.out.glob("*.log"))}


def flags(**options: object) -> list[str]:
    """`flags(batch_size=8)`: --batch-size 8."""
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def go(line: Line, start: str, from_scratch: int) -> None:
    """Every command, in the order in which a project needs them. `from_scratch` is the steps of the first training."""
    stories, held = (str(line.data / f"{name}.jsonl") for name in ("stories", "held"))
    openings, rule = str(line.data / "openings.jsonl"), f"rule:{line.data}/points.yaml"
    if from_scratch:
        fast = flags(batch_size=8, max_length=256, learning_rate=2e-3, schedule="cosine", steps=from_scratch)
        asked = flags(model=start, data=stories, holdout=0.03)
        start = str(line.keel("pretrained", "sft", *asked, *fast))
    # Cut before LIMIT tokens, a story has no end: so a model with two kinds of positions learns the shorter one, too.
    short = flags(batch_size=16, max_length=LIMIT - 4, steps=40, learning_rate=5e-4)
    sft = str(line.keel("sft", "sft", *flags(model=start, data=stories), *short))
    new = flags(max_new_tokens=NEW_TOKENS)
    asked = flags(model=sft, prompts=openings, rater=rule, limit=120)
    store = line.keel("pairs.db", "collect", *asked, "-n", "4", *new)
    pairs = flags(model=sft, data=f"store:{store}", batch_size=16, max_length=256, holdout=0.2)
    reward = str(line.keel("reward", "reward", *pairs, *flags(learning_rate=1e-3)))
    line.keel("dpo", "dpo", *pairs, *flags(learning_rate=5e-4))
    rollouts = flags(steps=4, rollout_size=12, samples_per_prompt=4, batch_size=6, epochs=2, truncation="score")
    bold = flags(learning_rate=5e-4, value_learning_rate=1e-3, schedule="constant", beta=0.05, value_clip=1.0)
    for made, judge in (("ppo-rule", rule), ("ppo-reward", reward)):
        asked = flags(model=sft, reward=judge, prompts=openings)
        line.keel(made, "ppo", *asked, *new, *rollouts, *bold)
    asked = flags(model=sft, reward=reward, prompts=held, seed=7)
    line.keel("best.jsonl", "best-of-n", *asked, "-n", "8", *new)
    for policy in ("sft", "dpo", "ppo-rule", "ppo-reward"):
        asked = flags(model=line.out / policy, prompts=held)
        line.keel(f"{policy}.jsonl", "generate", *asked, "-n", str(HELD_SAMPLES), *new)
    line.keel("greedy.jsonl", "generate", *flags(model=sft, prompts=held, limit=GREEDY, temperature=0), *new)


# --- stories --------------------------------------------------------------------------------------


def make_data(model: str, folder: Path) -> None:
    """Stories of the pretrained model, each up to its last whole sentence; openings to train on and to be held out."""
    if (folder / "held.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "points.yaml").write_text(RULE)
    write_lines(folder / "beginnings.jsonl", [{"prompt": beginning} for beginning in BEGINNINGS])
    teacher = Line("stories", folder, folder, "fp32")
    asked = ["--prompts", str(folder / "beginnings.jsonl"), "-n", str(STORIES), "--max-new-tokens", str(STORY_TOKENS)]
    drawn = teacher.keel("drawn.jsonl", "generate", "--model", model, *asked)
    texts = [row["prompt"] + c["text"] for row in read_lines(drawn) for c in row["completions"]]
    stories = [s for t in dict.fromkeys(texts) if len((s := t[: t.rfind(".") + 1]).split()) >= 3 * OPENING]
    random.Random(0).shuffle(stories)
    rows = []
    for story in stories:
        end = re.match(rf"\s*(?:\S+\s+){{{OPENING - 1}}}\S+", story).end()
        rows.append({"prompt": story[:end], "completion": story[end:]})
    unnamed = list(dict.fromkeys(row["prompt"] for row in rows if not NAMED.search(row["prompt"])))
    held = set(unnamed[:HELD])
    write_lines(folder / "stories.jsonl", [row for row in rows if row["prompt"] not in held])
    write_lines(folder / "openings.jsonl", [{"prompt": p} for p in unnamed[HELD:]])
    write_lines(folder / "held.jsonl", [{"prompt": p} for p in unnamed[:HELD]])


# --- measuring ------------------------------------------------------------------------------------


def measure(line: Line) -> dict[str, Any]:
    """All figures of a model that has gone through the commands."""
    machine = Machine(device="cpu", precision="fp32")
    text, base = checkpoints.load_text(str(line.out / "sft")), checkpoints.load_policy(str(line.out / "sft"), machine)
    words = vocabulary(line.data)
    found: dict[str, Any] = {}
    for policy in ("sft", "dpo", "ppo-rule", "ppo-reward"):
        rows = list(read_lines(line.out / f"{policy}.jsonl"))
        found[policy] = of_texts([(row["prompt"], c) for row in rows for c in row["completions"]], words, text)
        if policy != "sft":
            bundles = [
                Bundle(text.prompt_ids(r["prompt"]), [Completion(c["ids"]) for c in r["completions"]]) for r in rows
            ]
            tuned = checkpoints.load_policy(str(line.out / policy), machine)
            kl = sequence_kl(tuned, base, bundles, 1.0, 8192)
            found[policy]["kl"] = stats.mean(kl, [r["prompt"] for r in rows for _ in r["completions"]]).as_dict()
    best = list(read_lines(line.out / "best.jsonl"))
    found["best-of-8"] = of_texts([(row["prompt"], row["candidates"][row["best"]]) for row in best], words, text)
    found["best-of-8"]["kl"] = {"mean": stats.best_of_n_kl(8), "n": len(best)}
    found["greedy"] = greedy(line)
    found["logp_gap"] = {p: logp_gap(line, p) for p in ("sft", "ppo-rule")}
    found["seconds"] = line.seconds()
    for run in ("pretrained", "sft", "reward", "dpo", "ppo-rule", "ppo-reward"):
        if (line.out / run / "summary.json").exists():
            found[f"{run} run"] = of_run(line.out / run)
    return found


def of_run(folder: Path) -> dict[str, Any]:
    """A run's held-out figures, and the first and last of its steps."""
    summary = json.loads((folder / "summary.json").read_text())
    steps = list(read_lines(folder / "metrics.jsonl"))
    names = ("loss", "objective/scores", "objective/kl", "sampler/logp_gap", "val/explained_variance")
    ends = {n: [s[n] for s in steps if n in s] for n in names}
    return {"eval": summary["eval"], "rows": summary["rows"], "ends": {n: [v[0], v[-1]] for n, v in ends.items() if v}}


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def vocabulary(data: Path) -> set[str]:
    """Words of the stories that were trained on."""
    rows = read_lines(data / "stories.jsonl")
    return {w for row in rows for w in words_of(row["prompt"] + row["completion"])}


def of_texts(stories: list[tuple[str, dict[str, Any]]], words: set[str], text: Text) -> dict[str, Any]:
    """The rule's points (0 to 2), lengths, and what shows broken language: unknown words up to LIMIT and beyond it."""
    texts, prompts = [c["text"] for _, c in stories], [p for p, _ in stories]
    early: list[bool] = []
    late: list[bool] = []
    again = []
    for prompt, answer in stories:
        ids = text.prompt_ids(prompt) + answer["ids"]
        whole, first = (text.tokenizer.decode(part, skip_special_tokens=True) for part in (ids, ids[:LIMIT]))
        early += [w in words for w in words_of(first)[OPENING:-1]]
        late += [w in words for w in words_of(whole[len(first) :])[1:]]
        written = words_of(answer["text"])
        threes = list(zip(written, written[1:], written[2:], strict=False))
        again.append(1 - len(set(threes)) / max(1, len(threes)))
    return {
        "points": stats.mean([(NAMED.search(t) is not None) + ('"' in t) for t in texts], prompts).as_dict(),
        "tokens": stats.mean([c["tokens"] for _, c in stories], prompts).as_dict(),
        "ended": 1 - sum(c["truncated"] for _, c in stories) / len(stories),
        "known words, early": sum(early) / max(1, len(early)),
        "known words, late": sum(late) / max(1, len(late)),
        "repeated 3-grams": sum(again) / len(again),
    }


def library(folder: Path, precision: str) -> tuple[Any, Any]:
    """The saved model and tokenizer as transformers loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def greedy(line: Line) -> dict[str, Any]:
    """Greedy answers that equal those of `generate`; of each other, where it parts and what a plain pass says there."""
    model, tokenizer = library(line.out / "sft" / "final", line.precision)
    others, crossed = [], 0
    rows = list(read_lines(line.out / "greedy.jsonl"))
    for row in rows:
        ours, prompt = row["completions"][0]["ids"], tokenizer(row["prompt"], return_tensors="pt").input_ids
        mask = torch.ones_like(prompt)
        whole = model.generate(prompt, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        theirs = whole[0, prompt.shape[1] :].tolist()
        crossed += len(ours) + prompt.shape[1] > LIMIT
        if ours != theirs:
            others.append(parting(model, prompt, ours, theirs))
    return {"equal": len(rows) - len(others), "of": len(rows), f"beyond {LIMIT}": crossed, "others": others}


def parting(model: Any, prompt: Tensor, ours: list[int], theirs: list[int]) -> dict[str, Any]:
    """Where two answers part: the place in the text, and there the lead of a plain pass's likeliest token in nats."""
    pairs = zip(ours, theirs, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    before = torch.cat([prompt, torch.tensor([ours[:at]], dtype=prompt.dtype)], 1)
    top = model(before, use_cache=False).logits[0, -1].float().topk(2)
    first = int(top.indices[0])
    says = "ours" if [first] == ours[at : at + 1] else "theirs" if [first] == theirs[at : at + 1] else "neither"
    return {"place": before.shape[1], "lead": float(top.values[0] - top.values[1]), "plain pass says": says}


@torch.no_grad()
def logp_gap(line: Line, policy: str) -> dict[str, Any]:
    """Recorded log-probabilities of stories against plain passes over each alone: nats per token, mean and largest.

    A token of a text that crosses LIMIT was drawn from what the model says of the text so far; so the first LIMIT
    tokens are read alone. 'one pass' reads the whole at once, as training does: with `longrope` that is not the same.
    """
    model, tokenizer = library(line.out / policy / "final", line.precision)
    gaps: dict[str, list[float]] = {"as written": [], "one pass": []}
    for row in list(read_lines(line.out / f"{policy}.jsonl"))[:20]:
        prompt = tokenizer(row["prompt"]).input_ids
        for c in row["completions"]:
            ids = prompt + c["ids"]
            whole, first = (model(torch.tensor([part]), use_cache=False).logits[0] for part in (ids, ids[:LIMIT]))
            for name, logits in (("as written", torch.cat([first, whole[LIMIT:]])), ("one pass", whole)):
                logps = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
                own = float(logps[torch.arange(len(c["ids"])), torch.tensor(c["ids"])].sum())
                gaps[name].append(abs(own - c["logp"]) / len(c["ids"]))
    return {name: {"mean": sum(found) / len(found), "largest": max(found)} for name, found in gaps.items()}


# --- the table ------------------------------------------------------------------------------------


def table(found: dict[str, dict[str, Any]]) -> str:
    """One row per model."""
    judged = ["sft", "dpo", "ppo-rule", "ppo-reward", "best-of-8"]
    heads = ["model", "loss, start to held out", "reward accuracy", *judged, "greedy", "logp gap", "s"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, f in found.items():
        run = f.get("pretrained run")
        loss = f"{run['ends']['loss'][0]:.2f} to {run['eval']['loss']['mean']:.2f}" if run else "its own"
        cells = [name, loss, _interval(f["reward run"]["eval"]["accuracy"])]
        for way in judged:
            kl = f", {f[way]['kl']['mean']:.1f} nats" if "kl" in f[way] else ""
            cells.append(_interval(f[way]["points"]) + kl)
        gap = max(g["as written"]["largest"] for g in f["logp_gap"].values())
        cells += [f"{f['greedy']['equal']}/{f['greedy']['of']}", f"{gap:.0e}", f"{sum(f['seconds'].values()):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="pretrained story model, such as stories260k")
    parser.add_argument("--out", type=Path, default=Path("runs/families"))
    parser.add_argument("--only", nargs="*", default=["pretrained-model", *FAMILIES])
    parser.add_argument("--steps", type=int, default=400, help="of the training from random weights")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    data = options.out / "data"
    make_data(options.model, data)
    found = {}
    for name in options.only:
        line = Line(name, options.out / f"{name}-{options.precision}", data, options.precision)
        line.out.mkdir(parents=True, exist_ok=True)
        start, steps = options.model, 0
        if name in FAMILIES:
            start, steps = str(line.out / "init"), options.steps // SLOWER.get(name, 1)
            print(f"{name}: {new_model(name, options.model, line.out / 'init'):,} parameters", flush=True)
        try:
            go(line, start, steps)
        except CommandFailed as failed:
            print(failed, flush=True)
            continue
        found[name] = measure(line)
        (line.out / "figures.json").write_text(json.dumps(found[name], indent=2))
        print(json.dumps({k: found[name][k] for k in ("greedy", "logp_gap", "sft", "ppo-rule")}), flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
