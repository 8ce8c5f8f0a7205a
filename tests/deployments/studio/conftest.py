from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.studio_site import Site, open_studio, write_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    write_runs(runs)
    return runs


@pytest.fixture(scope="module")
def site(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_studio(tmp_path_factory.mktemp("music") / "made", runs) as site:
        yield site
