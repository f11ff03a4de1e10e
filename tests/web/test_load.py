"""Many raters at once, the server killed in the middle: none lost, none doubled, none beyond the overlap."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "annotate_load.py"
SPEC = importlib.util.spec_from_file_location("annotate_load", FILE)
assert SPEC is not None
assert SPEC.loader is not None
annotate_load = importlib.util.module_from_spec(SPEC)
sys.modules["annotate_load"] = annotate_load
SPEC.loader.exec_module(annotate_load)


def test_killed_in_the_middle(store_source):
    load = annotate_load.Load(store_source, raters=10, judgments=600, pace=0.0, kill=True, overlap=2)
    tokens = annotate_load.fill(load, 320)
    annotate_load.run(load, tokens)
    counted = annotate_load.verify(load)
    assert load.restarts == 1
    assert counted.pop("confirmed") >= 600
    assert counted.pop("stored") == len(load.accepted)
    assert set(counted.values()) == {0}
