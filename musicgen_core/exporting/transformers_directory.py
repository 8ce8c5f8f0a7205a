"""Write a whole MusicGen in transformers' format, as its own `save_pretrained` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model.compression import encodec_of
from musicgen_core.model.decoder import DecoderConfig
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.transformers_files import CODEC_PREFIX, as_others_may_read
from musicgen_core.model.transformers_format import LM_PREFIX, PROJECTIONS, TEXT_PREFIX
from musicgen_core.model.weights import BaseModel
from musicgen_core.music_theory import PITCH_CLASSES

_TIED = "encoder.embed_tokens.weight"
"""T5's second name of its embeddings, which is not stored"""
LARGEST_FILE = "5GB"
_MAX_LENGTH = 1500  # steps that `generate` makes by default, 30 s; as in Meta's repositories


def write(folder: Path, base: BaseModel, lm_state: Mapping[str, Tensor]) -> None:
    """Write a language model with a base model's text encoder, tokenizer and codec.

    The language model's weights keep their precision; text encoder and codec are in fp32. `config.json` asks for fp32,
    in which `from_pretrained` then loads all of them. Besides `lm_state`, memory holds the text encoder and the codec:
    an export takes about 1.2 GB more than the language model's file, so 8 GB for musicgen-large.

    Args:
        lm_state: the language model's weights by this project's names.

    Raises:
        ModelError: transformers' class can't compute the same.
    """
    from transformers import MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration

    whole_model = (
        MusicgenMelodyForConditionalGeneration if base.config.decoder.takes_melody else MusicgenForConditionalGeneration
    )
    text, encodec = TextEncoder(base.text_encoder), encodec_of(base)
    state = {name if name.startswith(PROJECTIONS) else f"{LM_PREFIX}{name}": one for name, one in lm_state.items()}
    state |= {f"{TEXT_PREFIX}{name}": one for name, one in text.t5.state_dict().items() if not name.endswith(_TIED)}
    state |= {f"{CODEC_PREFIX}{name}": one for name, one in encodec.state_dict().items()}
    with _quiet():
        with torch.device("meta"):  # for its names and settings; the weights are those of `state`
            model = whole_model(_config(base, text.t5.config, encodec.config))
        wanted = {name for name in model.state_dict() if not name.endswith(_TIED)}
        if differing := sorted(wanted ^ state.keys()):
            raise ModelError(
                message("{name} can't be written in the other format: {names}", name=base.name, names=differing[0]),
                message("Give another --format"),
            )
        model.generation_config = _generation_config(base)
        model.save_pretrained(folder, state_dict=state, max_shard_size=LARGEST_FILE)
        _write_processor(folder, base.config.decoder, text.tokenizer)
    as_others_may_read(folder)


def _write_processor(folder: Path, shape: DecoderConfig, tokenizer: Any) -> None:
    from transformers import EncodecFeatureExtractor, MusicgenProcessor

    if shape.takes_melody:
        from transformers import MusicgenMelodyFeatureExtractor, MusicgenMelodyProcessor  # need torchaudio

        features = MusicgenMelodyFeatureExtractor(sampling_rate=SAMPLE_RATE, padding_side="left")
        MusicgenMelodyProcessor(features, tokenizer).save_pretrained(folder)
    else:
        features = EncodecFeatureExtractor(
            feature_size=shape.codes.channels, sampling_rate=SAMPLE_RATE, padding_side="left"
        )
        MusicgenProcessor(features, tokenizer).save_pretrained(folder)
    features.save_pretrained(folder)  # for transformers before 5, which has no processor_config.json


def _config(base: BaseModel, t5: Any, encodec: Any) -> Any:
    from transformers import MusicgenConfig, MusicgenDecoderConfig, MusicgenMelodyConfig, MusicgenMelodyDecoderConfig

    config, shape = base.config, base.config.decoder
    if shape.text_dim == shape.dim:  # transformers' class then has no projection of the text
        raise ModelError(
            message(
                "{name} can't be written in the other format: {names}",
                name=base.name,
                names=f"the text encoder is as wide as the decoder, {shape.dim}",
            ),
            message("Give another --format"),
        )
    decoder_config = MusicgenMelodyDecoderConfig if shape.takes_melody else MusicgenDecoderConfig
    decoder = decoder_config(
        vocab_size=shape.cardinality,
        num_codebooks=shape.codebooks,
        audio_channels=shape.codes.channels,
        hidden_size=shape.dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        ffn_dim=shape.ffn_dim,
        pad_token_id=shape.codes.special,
        bos_token_id=shape.codes.special,
    )
    t5._name_or_path = config.t5  # rather than a path on this machine
    encodec._name_or_path = ""
    parts = {"text_encoder": t5, "audio_encoder": encodec, "decoder": decoder}
    if shape.takes_melody:
        return MusicgenMelodyConfig(num_chroma=PITCH_CLASSES, chroma_length=shape.chroma_frames, **parts)
    return MusicgenConfig(**parts)


def _generation_config(base: BaseModel) -> Any:
    """Return the defaults of `generate`, as in Meta's repositories."""
    from transformers import GenerationConfig

    special = base.config.decoder.codes.special
    return GenerationConfig(
        do_sample=True,
        guidance_scale=base.config.inference_coefficient,
        max_length=_MAX_LENGTH,
        bos_token_id=special,
        pad_token_id=special,
        decoder_start_token_id=special,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Mute transformers' warnings: of token ids, which are 2048 in each MusicGen, and progress bars."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
