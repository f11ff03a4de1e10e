"""The demo: `keel demo`."""

from __future__ import annotations

from pathlib import Path

from keel.config.base import Config


class DemoConfig(Config):
    """Run the whole story on the embedded world: pre-train, SFT, votes, reward model, DPO, PPO, best-of-N, report."""

    out: Path = Path("runs/demo")
    """Folder for all runs, `report.html` and `summary.json`. Finished steps in it are reused."""
    seed: int = 0
    """Seed of every random draw."""
