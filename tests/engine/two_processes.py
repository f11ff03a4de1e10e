"""Runs one method in this process of several: `python two_processes.py METHOD CONFIG.yaml`, under a launcher."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import torch
import yaml

from keel import config
from keel.errors import KeelError

KINDS = {"sft": config.SFTConfig, "reward": config.RewardConfig, "dpo": config.DPOConfig, "ppo": config.PPOConfig}

if __name__ == "__main__":
    torch.set_num_threads(1)
    method, file = sys.argv[1:]
    try:
        settings = KINDS[method](**yaml.safe_load(Path(file).read_text()))
        importlib.import_module(f"keel.methods.{method}").train(settings)
    except KeelError as error:
        print(f"process {os.environ.get('RANK')}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
