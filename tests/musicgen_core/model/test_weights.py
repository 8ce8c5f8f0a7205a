"""Files of weights that can't be loaded are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from musicgen_core.model.weights import BaseModel, find_model, load_lm
from tests.musicgen_core.model.conftest import refused


@pytest.mark.parametrize("damage", ["truncated", "empty", "a web page", "another pickle"])
def test_a_damaged_file_is_named(model_directory: Path, damage: str) -> None:
    path = model_directory / "state_dict.bin"
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-100_000])
        case "empty":
            path.write_bytes(b"")
        case "a web page":
            path.write_text("<html>Not found</html>")
        case "another pickle":
            torch.save({"weights": torch.zeros(1)}, path)
    with refused(str(path), next_step="audiocraft exported" if damage == "another pickle" else "Fetch the file again"):
        load_lm(find_model(str(model_directory)))


def test_a_weight_that_is_missing_is_named(model_directory: Path) -> None:
    path = model_directory / "state_dict.bin"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["best_state"]["out_norm.weight"]
    torch.save(checkpoint, path)
    with refused(str(path), "model.decoder.layer_norm.weight", next_step="Fetch the file again"):
        load_lm(path)


def test_a_codec_in_the_language_models_place_is_refused(debug_model: BaseModel) -> None:
    with refused(str(debug_model.codec_path), next_step="facebook/musicgen-large"):
        load_lm(debug_model.codec_path)
