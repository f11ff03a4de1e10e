"""Keel from Python: what `import keel` brings, and what it leaves until it is asked for."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import keel
assert not {"torch", "transformers", "numpy", "pydantic"} & set(sys.modules), "importing keel is light"
assert {"config", "methods", "objectives", "stats", "__version__"} <= set(dir(keel))
assert set(dir(keel.methods)) == {"best_of_n", "dpo", "ppo", "reward", "sft"}
assert "torch" not in sys.modules
assert keel.config.DPOConfig(model="m", data="d", out="o").beta == 0.1
assert keel.methods.dpo.train.__module__ == "keel.methods.dpo"
assert all(hasattr(keel, name) for name in dir(keel))
assert not hasattr(keel, "nonsense") and not hasattr(keel.methods, "nonsense")
"""


def test_the_line_of_the_readme_works_after_import_keel():
    """In a process of its own: other tests have imported the modules already."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
