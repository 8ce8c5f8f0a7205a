"""Read the `config.json` of MusicGen in transformers' format, and refuse by name what is not supported.

Source of names and defaults: transformers 5, `models/musicgen/configuration_musicgen.py` and
`models/musicgen_melody/configuration_musicgen_melody.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from musicgen_core.codes import CARDINALITY, CODEBOOKS, MONO, STEREO, CodeShape
from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model.configuration import (
    T5_WIDTHS,
    USE_ANOTHER,
    LmConfig,
    differing,
    not_between,
    shown,
    t5_size,
)
from musicgen_core.model.decoder import DecoderConfig
from musicgen_core.model.transformers_files import CONFIG_FILE, MELODY, MUSICGEN, model_type, read_json
from musicgen_core.music_theory import PITCH_CLASSES

GENERATION_FILE = "generation_config.json"

# Settings that change what is computed: transformers' default, and the only value that this decoder computes.
_DECODER: dict[str, tuple[Any, Any]] = {
    "activation_function": ("gelu", "gelu"),
    "scale_embedding": (False, False),
    "tie_word_embeddings": (False, False),
}
_CROSS_ATTENTION = {"cross_attention_hidden_size": (None, None)}
_CHROMA = {"num_chroma": (PITCH_CLASSES, PITCH_CLASSES)}
_CHROMA_FRAMES = 235  # transformers' default: 30 s
_CODEC = {"audio_channels": (1, 1), "normalize": (False, False), "chunk_length_s": (None, None)}
_SHAPE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096, "vocab_size": 2048}
_MOST = {"vocab_size": CARDINALITY}
_T5_WIDTH = 512  # transformers' default

# transformers has no such settings; these are the values that Meta trained all its text-to-music models with.
# Source: audiocraft 1.3.0, config/conditioner/text2music.yaml and, for those that take a melody, chroma2music.yaml
TRAINING_DROPOUT, WORD_DROPOUT = 0.3, 0.3
MELODY_TRAINING_DROPOUT, MELODY_WORD_DROPOUT, MELODY_DROPOUT = 0.2, 0.2, 0.5
GUIDANCE = 3.0


def is_musicgen(directory: Path) -> bool:
    """Return whether a directory is a whole MusicGen in transformers' format, rather than one part of it."""
    return model_type(directory) in (MUSICGEN, MELODY)


def read_transformers_config(directory: Path) -> LmConfig:
    """Return the language model that a directory's `config.json` describes.

    Raises:
        ModelError: it describes none, or has unsupported settings, all of which are named with their values.
    """
    path = directory / CONFIG_FILE
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in (MUSICGEN, MELODY):
        raise ModelError(
            message("{path} is not a MusicGen (its model_type is {kind})", path=path, kind=shown(kind)), USE_ANOTHER
        )
    decoder, t5 = section(config, "decoder"), section(config, "text_encoder")
    problems = list(_problems(config, decoder, t5))
    guidance = _guidance(directory)
    problems += not_between(f"guidance_scale in {GENERATION_FILE}", guidance, 1000)
    if problems:
        raise ModelError(
            message("{source} is not supported: {problems}", source=path, problems="; ".join(problems)), USE_ANOTHER
        )
    shape = {name: decoder.get(name, default) for name, default in _SHAPE.items()}
    width, takes_melody = t5.get("d_model", _T5_WIDTH), kind == MELODY
    return LmConfig(
        decoder=DecoderConfig(
            dim=shape["hidden_size"],
            layers=shape["num_hidden_layers"],
            heads=shape["num_attention_heads"],
            ffn_dim=shape["ffn_dim"],
            text_dim=width,
            codes=replace(_codes(decoder), cardinality=shape["vocab_size"]),
            chroma_frames=config.get("chroma_length", _CHROMA_FRAMES) if takes_melody else 0,
        ),
        t5=_t5_name(t5, width),
        training_dropout=MELODY_TRAINING_DROPOUT if takes_melody else TRAINING_DROPOUT,
        word_dropout=MELODY_WORD_DROPOUT if takes_melody else WORD_DROPOUT,
        inference_coefficient=float(guidance),
        melody_dropout=MELODY_DROPOUT if takes_melody else 0.0,
    )


def _codes(decoder: Mapping[str, Any]) -> CodeShape:
    """Return the shape of the codes, but for the cardinality."""
    return STEREO if decoder.get("audio_channels") == 2 else MONO


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section of a `config.json`, empty if it is missing."""
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _problems(config: Mapping[str, Any], decoder: Mapping[str, Any], t5: Mapping[str, Any]) -> Iterator[str]:
    """Yield each unsupported setting, with its value."""
    takes_melody = config.get("model_type") == MELODY
    codes = _codes(decoder)
    channels = {"num_codebooks": (CODEBOOKS, codes.codebooks), "audio_channels": (1, codes.channels)}
    yield from differing("decoder", decoder, channels | _DECODER | ({} if takes_melody else _CROSS_ATTENTION))
    if takes_melody:
        yield from _melody_problems(config)
    shape = {name: decoder.get(name, default) for name, default in _SHAPE.items()}
    wrong = [
        name for name, value in shape.items() if type(value) is not int or not 1 <= value <= _MOST.get(name, 1 << 20)
    ]
    for name in wrong:
        yield f"decoder.{name} is {shown(shape[name])}"
    dim, heads = shape["hidden_size"], shape["num_attention_heads"]
    if not wrong and (dim % heads or dim % 2):
        yield f"decoder.hidden_size is {dim} and num_attention_heads {heads}"
    for name, expected in (("text_encoder", "t5"), ("audio_encoder", "encodec")):
        if (found := section(config, name).get("model_type")) != expected:
            yield f"{name}.model_type is {shown(found)}"
    yield from differing("audio_encoder", section(config, "audio_encoder"), _CODEC)
    width = t5.get("d_model", _T5_WIDTH)
    if width not in T5_WIDTHS.values():
        yield f"text_encoder.d_model is {shown(width)}"
    elif width == dim:  # transformers then leaves the projection of the text out
        yield f"text_encoder.d_model is {width}, as is decoder.hidden_size"


def _melody_problems(config: Mapping[str, Any]) -> Iterator[str]:
    yield from differing("config", config, _CHROMA)
    frames = config.get("chroma_length", _CHROMA_FRAMES)
    if type(frames) is not int or not 1 <= frames <= 10_000:
        yield f"chroma_length is {shown(frames)}"


def _guidance(directory: Path) -> Any:
    path = directory / GENERATION_FILE
    value = read_json(path).get("guidance_scale") if path.is_file() else None
    return GUIDANCE if value is None else value


def _t5_name(t5: Mapping[str, Any], width: int) -> str:
    """Return audiocraft's name of a T5: the recorded one, or else that of the stock T5 of its width."""
    recorded = str(t5.get("_name_or_path"))
    if T5_WIDTHS.get(t5_size(recorded)) == width:
        return recorded
    return next(name for name, its_width in T5_WIDTHS.items() if its_width == width)
