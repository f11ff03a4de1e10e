"""The tree once for all exact tests, in memory and as the folders that commands read."""

from __future__ import annotations

import pytest

from . import tree as trees


@pytest.fixture(scope="session")
def tree() -> trees.Tree:
    return trees.build()


@pytest.fixture(scope="session")
def folders(tree: trees.Tree, tmp_path_factory: pytest.TempPathFactory) -> trees.Folders:
    return trees.write(tree, tmp_path_factory.mktemp("tree"))
