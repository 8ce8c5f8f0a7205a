"""Load language model, text encoder and codec from a model in transformers' format, without running code from a file.

Names of the language model's weights are this project's, under `decoder.`; the text encoder's are under
`text_encoder.`, the codec's under `audio_encoder.`. A model that was fine-tuned whole has changed all of them, so the
text encoder and the codec are those of the files, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model import hub
from musicgen_core.model.transformers_configuration import section
from musicgen_core.model.transformers_files import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    damaged,
    read_json,
    tensor_bytes,
    weight_files,
)

CONFIG = hub.Wanted((CONFIG_FILE,))
_TOKENIZER = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_BESIDE = (*_TOKENIZER, "generation_config.json")
WHOLE = (
    hub.Wanted((CONFIG_FILE, WEIGHTS_FILE), _BESIDE),
    hub.Wanted((CONFIG_FILE, INDEX_FILE), (*_BESIDE, "model-*-of-*.safetensors")),
)
"""Files of a model on the Hub, in one file of weights or in several."""

LM_PREFIX, TEXT_PREFIX = "decoder.", "text_encoder."
PROJECTIONS = ("enc_to_dec_proj.", "audio_enc_to_dec_proj.")
"""Of the text, and of a melody's chroma"""
_COMPUTED = "decoder.model.decoder.embed_positions."  # in files of transformers before 4.40; never trained
_NOT_PLAIN = ("implementation", "quantization", "auto_map")  # may name code to import


def is_of_language_model(name: str) -> bool:
    """Return whether a tensor's name in the files is one of the language model's weights."""
    return name.startswith((LM_PREFIX, *PROJECTIONS)) and not name.startswith(_COMPUTED)


def language_model_bytes(directory: Path) -> int:
    """Return the size of the language model's weights."""
    return tensor_bytes(directory, is_of_language_model)


def read_language_model(directory: Path) -> dict[str, Tensor]:
    """Return the language model's weights by this project's names, memory-mapped.

    Raises:
        ModelError: a file is missing or damaged.
    """
    found = _read(directory, (LM_PREFIX, *PROJECTIONS))
    return {name.removeprefix(LM_PREFIX): one for name, one in found.items() if is_of_language_model(name)}


def has_tokenizer(directory: Path) -> bool:
    """Return whether a directory holds the text encoder's tokenizer, which `save_pretrained` of a model leaves out."""
    return any((directory / name).is_file() for name in _TOKENIZER[:2])


def load_text_encoder(directory: Path, default_tokenizer: str) -> tuple[Any, Any]:
    """Return the T5 encoder in fp32 and its tokenizer.

    Args:
        default_tokenizer: the Hub's id of a T5, whose tokenizer is loaded if the directory has none.

    Raises:
        ModelError: weights or tokenizer are missing or damaged.
    """
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    source = directory if has_tokenizer(directory) else hub.fetch(default_tokenizer, hub.T5_TOKENIZER)
    t5 = _load(T5EncoderModel, T5Config, directory, "text_encoder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=True)
    except (OSError, ValueError) as error:
        raise damaged(source, str(error)) from error
    return t5, tokenizer


def load_encodec(directory: Path) -> Any:
    """Return transformers' EncodecModel in fp32.

    Raises:
        ModelError: weights are missing or damaged.
    """
    from transformers import EncodecConfig, EncodecModel

    return _load(EncodecModel, EncodecConfig, directory, "audio_encoder")


def _load(model: Any, config: Any, directory: Path, part: str) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()  # it takes a moment, and its bar would break the flows' own
    values = _plain(section(read_json(directory / CONFIG_FILE), part))
    try:
        loaded, loading = model.from_pretrained(
            None,
            config=config.from_dict(values),
            state_dict={name.removeprefix(f"{part}."): one for name, one in _read(directory, (f"{part}.",)).items()},
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a foreign configuration
        raise damaged(directory / CONFIG_FILE, f"{type(error).__name__}: {error}") from error
    missing = sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])])
    if missing:  # transformers would initialize them randomly
        raise ModelError(
            message("{name} lacks weights, such as {example}", name=directory, example=f"{part}.{missing[0]}"),
            message("Fetch the file again"),
        )
    return loaded.eval()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section of a `config.json` without settings that could make transformers import code."""
    return {
        name: value
        for name, value in values.items()
        if not name.startswith("_") and not any(word in name for word in _NOT_PLAIN)
    }


def _read(directory: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, "pt") as file:
                found |= {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefixes)}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise damaged(path, str(error)) from error
    return found
