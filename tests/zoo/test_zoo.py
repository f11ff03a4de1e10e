"""Every causal family of transformers, tiny: right, or refused in one line (docs/models.md).

The variants go through processes of their own, as many as there are processors, and each test waits for its own.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from .families import NOT_TINY, VARIANTS, Variant
from .page import page
from .sweep import Results

pytestmark = pytest.mark.zoo
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
RIGHT = 135
"""So many families, as they are by rule, must be right."""
PACKED, SLOW = 124, 32
"""So many variants, at least and at most, go the fastest way and the slowest: 128 and 28 where this was written."""


class Zoo(Results):
    """What became of each variant."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.whole = len(names) == len(VARIANTS)

    def all(self) -> list[dict[str, Any]]:
        """Every variant's; skips the test where only some were asked for."""
        if not self.whole:
            pytest.skip("only some of the variants were asked for")
        return [self.of(variant.name) for variant in VARIANTS]


@pytest.fixture(scope="session")
def zoo(request: pytest.FixtureRequest) -> Zoo:
    """The variants that this session asks for, under examination."""
    asked = [item.callspec.params.get("variant") for item in request.session.items if hasattr(item, "callspec")]
    return Zoo([variant.name for variant in asked if isinstance(variant, Variant)])


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_model_is_right_or_refused_in_one_line(zoo: Zoo, variant: Variant):
    result = zoo.of(variant.name)
    wrong = [f for f in result["faults"] if f["outcome"] != "refused"]
    assert not wrong, "\n".join(f"{f['outcome']} in {f['check']}: {f['line']}" for f in wrong)
    for fault in result["faults"]:
        assert "\n" not in fault["line"]
        assert re.search(r"; \w", fault["line"]), f"no remedy: {fault['line']}"
    assert result["outcome"] == ("refused" if variant.refused else "right")
    assert re.search(variant.refused, result["line"])
    assert variant.refused or result["ends apart"]  # else rows that leave were not tried


def test_every_family_is_here_or_has_its_reason():
    families = {variant.kind for variant in VARIANTS}
    assert families | NOT_TINY.keys() == set(CAUSAL)
    assert not families & NOT_TINY.keys()
    assert len(VARIANTS) >= 150
    print("\n".join(f"{family}: {why}" for family, why in NOT_TINY.items()))


def test_most_families_are_right(zoo: Zoo):
    right = {result["name"] for result in zoo.all() if result["outcome"] == "right"} & set(CAUSAL)
    assert len(right) >= RIGHT


def test_few_go_a_slow_way(zoo: Zoo):
    """The page's test passes over ways, since rounding may decide a close trial: it decides few."""
    ways = [str(result.get("way")) for result in zoo.all()]
    assert sum(way.startswith("packed") for way in ways) >= PACKED
    assert sum(way.endswith("anew") or way.startswith("alone") for way in ways) <= SLOW


def test_the_page_says_what_was_found(zoo: Zoo):
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    now = page(zoo.all(), NOT_TINY, len(CAUSAL))
    if now != before:
        PAGE.write_text(now, encoding="utf-8")
    changed = f"{PAGE.name} was out of date and is written anew (`pytest -m zoo` does it): commit it"
    assert _without_ways(now) == _without_ways(before), changed


def _without_ways(text: str) -> list[list[str]]:
    """Cells of the page but for the third column: rounding differs between processors, and may decide a close trial."""
    rows = [line.split(" | ") for line in text.splitlines()]
    return [row[:2] + row[3:] for row in rows]
