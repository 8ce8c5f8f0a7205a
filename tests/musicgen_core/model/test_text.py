from __future__ import annotations

from pathlib import Path

import pytest
import torch

from musicgen_core.errors import ModelError
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel
from tests.stand_in_hub import StandInHub


def test_an_encoded_text_does_not_depend_on_its_batch_mates(text_encoder: TextEncoder) -> None:
    texts = ["slow piano", None, "a fast breakbeat with a distorted bass line, 174 bpm"]
    together = text_encoder.encode(texts)
    for i in (0, 2):
        alone = text_encoder.encode([texts[i]])
        length = alone.states.shape[1]
        torch.testing.assert_close(together.states[i, :length], alone.states[0], atol=1e-5, rtol=0)
        assert torch.equal(together.mask[i, :length], alone.mask[0])
        assert not together.mask[i, length:].any()


def test_different_texts_are_encoded_differently(text_encoder: TextEncoder) -> None:
    states = text_encoder.encode(["slow piano", "fast piano"]).states
    assert (states[0] - states[1]).abs().max() > 0.01


def test_every_position_of_a_lone_text_counts(text_encoder: TextEncoder) -> None:
    text = text_encoder.encode(["slow piano"])
    assert text.states.shape == (1, *text.mask.shape[1:], text_encoder.dim)
    assert text.mask.all()


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_text_is_the_null_condition(text_encoder: TextEncoder, nothing: str | None) -> None:
    assert not text_encoder.encode([nothing]).mask.any()
    beside_a_text = text_encoder.encode(["slow piano", nothing]).mask
    assert beside_a_text.any(dim=1).tolist() == [True, False]


def test_a_missing_text_encoder_is_named_with_the_place_to_put_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path / "text_encoder")) as missing:
        TextEncoder(tmp_path / "text_encoder")
    assert "text_encoder/ of the model directory" in missing.value.next_step


def test_an_empty_text_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        TextEncoder(tmp_path)


def test_a_text_encoder_out_of_the_hubs_reach_is_named(monkeypatch: pytest.MonkeyPatch, hub: StandInHub) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"t5-small .* HF_HUB_OFFLINE"):
        TextEncoder("t5-small")


def test_a_text_encoder_comes_from_the_hub_once(
    hub: StandInHub, debug_model: BaseModel, text_encoder: TextEncoder
) -> None:
    unwanted = {"pytorch_model.bin": b"p", "flax_model.msgpack": b"f", "tf_model.h5": b"t"}
    hub.add("t5-small", Path(debug_model.text_encoder), **unwanted, **{"spiece.model": b"of the slow tokenizer"})
    states = TextEncoder("t5-small").encode(["slow piano"]).states
    assert torch.equal(states, text_encoder.encode(["slow piano"]).states)
    assert not unwanted.keys() & set(hub.fetched())
    hub.requests.clear()
    TextEncoder("t5-small")
    assert hub.requests == []
