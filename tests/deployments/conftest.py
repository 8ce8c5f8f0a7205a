from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_tokens(demo_archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo archives' shards, for the debug model. Not to be written to."""
    from musicgen_core.codec import Codec
    from musicgen_core.config import TokenizeSettings
    from musicgen_core.model.weights import find_model
    from musicgen_core.storage import as_path
    from musicgen_core.tokenizing import Tokenizer

    tokens = tmp_path_factory.mktemp("demo-tokens")
    tokenizer = Tokenizer(Codec(find_model("debug"), "cpu"), as_path(tokens), TokenizeSettings())
    for archive in sorted(demo_archives.glob("*.zip")):
        tokenizer.tokenize(as_path(archive))
    return tokens
