"""Weights under audiocraft's names and under ours, converted without loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from musicgen_core.codes import CodeShape
from musicgen_core.model.audiocraft_format import from_audiocraft, to_audiocraft
from musicgen_core.model.configuration import read_lm_config
from musicgen_core.model.decoder import DecoderConfig, MusicgenLM, delay
from musicgen_core.model.text import TextEncoder
from tests.musicgen_core.model.conftest import assert_same_state, refused


@st.composite
def shapes(draw: st.DrawFn) -> DecoderConfig:
    small = st.integers(1, 3)
    heads = draw(small)
    return DecoderConfig(
        dim=2 * heads * draw(small),
        layers=draw(st.integers(1, 12)),  # two digits too
        heads=heads,
        ffn_dim=draw(small),
        text_dim=draw(small),
        codes=CodeShape(cardinality=draw(small), delays=tuple(range(draw(st.integers(1, 11))))),
    )


@settings(max_examples=25)
@given(shapes())
def test_converting_to_audiocraft_and_back_changes_nothing(shape: DecoderConfig) -> None:
    state = {name: torch.rand_like(tensor) for name, tensor in MusicgenLM(shape).state_dict().items()}
    theirs = to_audiocraft(state)
    assert_same_state(from_audiocraft(theirs), state)
    assert_same_state(to_audiocraft(from_audiocraft(theirs)), theirs)


def test_audiocrafts_own_weights_survive_the_round_trip(other_audiocraft_lm: Any) -> None:
    theirs = other_audiocraft_lm.state_dict()
    assert_same_state(to_audiocraft(from_audiocraft(theirs)), theirs)


@pytest.mark.parametrize("name", ["transformer.layers.0.self_attn.q_layer_norm.weight", "rope.weight"])
def test_a_weight_that_musicgen_does_not_have_is_named(name: str) -> None:
    with refused(name, next_step="facebook/musicgen"):
        from_audiocraft({name: torch.zeros(1)})


@torch.inference_mode()
def test_converted_weights_make_hugging_faces_musicgen_the_same_model(
    other_audiocraft_lm: Any, text_encoder: TextEncoder
) -> None:
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    state = from_audiocraft(other_audiocraft_lm.state_dict())
    shape = read_lm_config(OmegaConf.to_yaml(other_audiocraft_lm.cfg), "audiocraft").decoder
    lm = MusicgenLM(shape).eval()
    lm.load_state_dict(state)
    config = MusicgenDecoderConfig(
        vocab_size=shape.cardinality,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        hidden_size=shape.dim,
        ffn_dim=shape.ffn_dim,
        num_codebooks=shape.codebooks,
    )
    theirs = MusicgenForCausalLM(config).eval()
    # The text projection sits outside Hugging Face's decoder.
    theirs.load_state_dict({k: v for k, v in state.items() if not k.startswith("enc_to_dec_proj")}, strict=True)

    sequence = delay(torch.randint(2048, (2, 4, 9), generator=torch.Generator().manual_seed(0)), shape.codes)
    text = text_encoder.encode(["bells", "a fast breakbeat with a distorted bass line"])
    states, _ = lm.project_text(text)
    logits = theirs(sequence.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=text.mask.long())
    torch.testing.assert_close(lm(sequence, text), logits.logits.view(2, 4, -1, 2048), atol=1e-5, rtol=0)
