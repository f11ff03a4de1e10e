"""Can pairs of a model be told from pairs of a neighbour, pair by pair? On the policies of a finished demo.

For each neighbour of the SFT model: how many nats of KL an answer of it is away, the area under the curve of telling
its pairs from the SFT model's own, and the same for a second draw of the SFT model's own, which cannot be told.

    keel demo --out runs/demo
    python studies/pairs_against_model.py --demo runs/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from keel import stats
from keel.audit.on_policy import examine
from keel.config import Machine
from keel.evaluation.outcomes import sequence_kl
from keel.files.jsonl import read_lines
from keel.models import checkpoints
from keel.sampling.local import LocalSampler
from keel.sampling.protocol import SamplingOptions, as_bundles, sample

TEMPERATURE = 0.8
"""At which the demo draws."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--others", nargs="*", default=["sft", "dpo", "ppo", "pretrain"])
    options = parser.parse_args()
    machine = Machine(device="cpu", precision="fp32")
    text = checkpoints.load_text(str(options.demo / "sft"))
    prompts = [row["prompt"] for row in read_lines(options.demo / "data" / "prompts.jsonl")][: options.prompts]
    model = checkpoints.load_policy(str(options.demo / "sft"), machine)
    for name in options.others:
        other = checkpoints.load_policy(str(options.demo / name), machine)
        sampler = LocalSampler(other, text, SamplingOptions(64, TEMPERATURE, max_rows=512), 1)
        pairs = sample(sampler, as_bundles(text, prompts), 2, f"pairs of {name}")
        away = stats.mean(sequence_kl(other, model, pairs, TEMPERATURE, 8192))
        found = examine(model, text, pairs, [name] * len(pairs), temperature=TEMPERATURE)
        print(f"{name}: {away} nats an answer away, AUC {found.whole.auc}: {found.whole.verdict}", flush=True)


if __name__ == "__main__":
    main()
