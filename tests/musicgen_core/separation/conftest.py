from __future__ import annotations

from pathlib import Path

import pytest

from musicgen_core.separation.separator import Separator


@pytest.fixture(scope="session")
def separator(demucs_weights: Path) -> Separator:
    return Separator(demucs_weights)
