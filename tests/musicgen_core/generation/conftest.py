"""What is needed to generate with the debug model."""

from __future__ import annotations

import pytest

from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel


@pytest.fixture(scope="session")
def text_encoder(debug_model: BaseModel) -> TextEncoder:
    return TextEncoder(debug_model.text_encoder)
