"""A sample's sound while it is generated: that of decoding it whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codec import Codec
from musicgen_core.codes import CODEBOOKS, SAMPLES_PER_FRAME
from musicgen_core.config import SamplingSettings
from musicgen_core.errors import Cancelled
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.files import FULL_SCALE
from musicgen_core.generation.streaming import AFTER, BEFORE, DecodingStream, stream_sound
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_codec, load_lm

FRAMES = 120


class LargeCodec:
    """The decoder of MusicGen's published EnCodec, with random weights and an LSTM that forgets slowly."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        seanet = import_audiocraft("audiocraft.modules.seanet").SEANetDecoder
        decoder = seanet(
            **{"channels": 1, "dimension": 128, "n_filters": 64, "n_residual_layers": 1, "ratios": [8, 5, 4, 4]},
            **{"norm": "weight_norm", "kernel_size": 7, "residual_kernel_size": 3, "dilation_base": 2, "lstm": 2},
        )
        for name, values in decoder.named_parameters():
            if "lstm.bias_ih" in name:
                hidden = len(values) // 4
                values.data[hidden : 2 * hidden] += 4  # of the forget gate
        self._decoder = decoder.eval()
        self.decoder_layers, self.device = list(decoder.model), torch.device("cpu")
        self.shape = type("Shape", (), {"channels": 1})
        self._table = torch.randn(2048, 128)

    def vectors(self, codes: Tensor) -> Tensor:
        return self._table[codes].sum(dim=1).transpose(1, 2)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        return self._decoder(self.vectors(codes))


@pytest.fixture(scope="module")
def codecs(debug_model: BaseModel) -> dict[str, Any]:
    return {"demo": Codec(find_codec("demo")), "debug": Codec(debug_model), "large": LargeCodec()}


def streamed(codec: Any, codes: Tensor, sizes: tuple[int, ...]) -> Tensor:
    stream, parts = DecodingStream(codec), []
    for part in codes.split(sizes, dim=1):
        parts.append(stream.add(part))
    return torch.cat([*parts, stream.finish()], dim=1)


@pytest.mark.parametrize("name", ["demo", "debug", "large"])
@pytest.mark.parametrize("sizes", [(17, 24, 48, 31), (1, 1, 1, 3, 114), (FRAMES,)])
def test_streamed_sound_is_that_of_decoding_the_whole(codecs: Any, name: str, sizes: tuple[int, ...]) -> None:
    codec = codecs[name]
    codes = torch.randint(0, 16, (CODEBOOKS, FRAMES))
    whole = codec.decode(codes[None])[0]
    found = streamed(codec, codes, sizes)
    assert found.shape == whole.shape
    assert (found - whole).abs().max() < 3e-6 * whole.abs().max()


def test_windows_without_the_state_of_the_lstm_would_differ(codecs: Any) -> None:
    codec, codes = codecs["large"], torch.randint(0, 16, (CODEBOOKS, FRAMES))
    whole = codec.decode(codes[None])[0, :, 60 * SAMPLES_PER_FRAME : 80 * SAMPLES_PER_FRAME]
    window = codec.decode(codes[None, :, 30:100])[0, :, 30 * SAMPLES_PER_FRAME : 50 * SAMPLES_PER_FRAME]
    assert (window - whole).abs().max() > 1e-3 * whole.abs().max()


def test_sound_is_there_once_the_convolutions_see_no_further(codecs: Any) -> None:
    stream = DecodingStream(codecs["demo"])
    codes = torch.randint(0, 16, (CODEBOOKS, 20))
    assert stream.add(codes).shape == (1, (20 - BEFORE - AFTER) * SAMPLES_PER_FRAME)


def test_chunks_grow_and_leave_out_what_was_known(codecs: Any) -> None:
    codes = torch.randint(0, 16, (CODEBOOKS, 500))
    chunks = [len(one) // SAMPLES_PER_FRAME for one in stream_sound(codecs["demo"], iter(codes.split(10, dim=1)))]
    assert sum(chunks) == 500 and chunks[0] <= 20 and chunks[:3] == sorted(chunks[:3]) and max(chunks) <= 110
    known, new = codes[:, :100], iter(codes[:, 100:].split(10, dim=1))
    continued = np.concatenate(list(stream_sound(codecs["demo"], new, known)))
    alone = np.concatenate(list(stream_sound(codecs["demo"], iter(codes.split(10, dim=1)))))
    assert np.abs(continued.astype(int) - alone[100 * SAMPLES_PER_FRAME :]).max() <= 1


@pytest.mark.parametrize("given", [1, 5, 100, 101, 750])
def test_known_codes_are_read_in_parts_and_not_made_into_sound(codecs: Any, given: int) -> None:
    codec, sizes = codecs["large"], []
    codes = torch.randint(0, 16, (CODEBOOKS, given + 30))
    hooks = [
        layer.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape))
        for layer in codec.decoder_layers[:3:2]
    ]
    found = np.concatenate(list(stream_sound(codec, iter(codes[:, given:].split(10, dim=1)), codes[:, :given])))
    for hook in hooks:
        hook.remove()
    whole = codec.decode(codes[None])[0, :, given * SAMPLES_PER_FRAME :]
    assert np.abs(found.T - whole.numpy() * FULL_SCALE).max() <= 1 and max(size[-1] for size in sizes) <= 110


def test_a_stream_without_codes_is_silent(codecs: Any) -> None:
    assert [len(chunk) for chunk in stream_sound(codecs["demo"], iter(()))] == [0]


@pytest.mark.parametrize("window", [1500, 60])
@pytest.mark.parametrize("given", [0, 13])
def test_finished_frames_are_handed_out_once_and_in_order(debug_model: BaseModel, window: int, given: int) -> None:
    engine = Engine(load_lm(debug_model), TextEncoder(debug_model.text_encoder), guidance=3.0, window=window)
    parts: list[Tensor] = []
    steps: list[int] = []
    known = torch.randint(0, 16, (2, CODEBOOKS, given))
    codes = engine.generate(
        prompts=["jazz", None],
        settings=SamplingSettings(overlap=0.4),
        streams=[1, 2],
        on_step=lambda done, total: steps.append(done),
        frames=[130, 130],
        known=known,
        on_frames=lambda new: parts.append(new) or steps.append(-1),
    )
    assert torch.equal(torch.cat(parts, dim=2), torch.stack(codes)[:, :, given:])
    assert steps.index(-1) < 25  # while the others are generated


def test_a_cancelled_sample_hands_out_nothing_more(debug_model: BaseModel) -> None:
    engine = Engine(load_lm(debug_model), TextEncoder(debug_model.text_encoder), guidance=3.0)
    parts: list[Tensor] = []
    with pytest.raises(Cancelled):
        engine.generate(
            ["jazz"], SamplingSettings(duration=2), [1], cancelled=lambda: len(parts) > 1, on_frames=parts.append
        )
    assert sum(part.shape[-1] for part in parts) < 50
