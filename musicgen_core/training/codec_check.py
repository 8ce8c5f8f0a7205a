"""Check that tokens were made for a model, quickly: without loading PyTorch."""

from __future__ import annotations

import json

import pyarrow as pa
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import STEREO_SUFFIX
from musicgen_core.data.shard_codec import another_codec, no_melodies, shard_codec
from musicgen_core.data.shards import read_report, stems_without_chroma
from musicgen_core.errors import TokensError
from musicgen_core.language import message
from musicgen_core.model.local_files import codec_here, takes_melody_here
from musicgen_core.model.weighted_adapters import parse_adapters, split_adapters
from musicgen_core.run_layout import find_config, run_of


def check_tokens_codec(tokens: str, model: str) -> None:
    """Refuse tokens if every shard was made with another codec than the model's, as far as that is known locally.

    Local tokens are also refused if a shard holds no melodies and the model is trained with them. Loading the clips
    checks each shard that is used again, also for models that are not downloaded yet.

    Raises:
        TokensError: no shard was made with the model's codec, or one holds no melodies.
    """
    folder, codec = storage.as_path(tokens), codec_here(model)
    refused: TokensError | None = None
    for parquet in sorted(folder.glob("*.parquet")) if codec and folder.is_dir() else ():
        try:
            found, made_with = shard_codec(parquet)
        except (OSError, ValueError, pa.ArrowException):
            continue  # loading the clips reports what is wrong with it
        if found.removesuffix(STEREO_SUFFIX) == codec:
            if takes_melody_here(model) and storage.is_local(folder):
                _check_melodies(folder, model)
            return
        refused = refused or another_codec(parquet.name, made_with, model)
    if refused is not None:
        raise refused


def _check_melodies(tokens: UPath, model: str) -> None:
    stems = sorted(parquet.stem for parquet in tokens.glob("*.parquet"))
    reports = {stem: report for stem in stems if (report := read_report(tokens, stem)) is not None}
    if without := stems_without_chroma(reports):
        raise no_melodies(without, tokens, model)


def check_codec_of_adapter(tokens: str, adapter: str, model: str | None = None) -> None:
    """Refuse tokens of another codec than that of an adapter's base model, as far as that is known locally.

    Args:
        model: the base model, if it is given; else the run directory or PEFT directory of the adapter names it.

    Raises:
        TokensError: see `check_tokens_codec`.
    """
    if model is not None:
        check_tokens_codec(tokens, model)
    elif named := _base_model_here(adapter):
        try:
            check_tokens_codec(tokens, named)
        except TokensError as error:
            advice = message(
                "Give tokens of {model}, the adapter's base model: those of its training run, or tokenize again with "
                "it into another directory",
                model=named,
            )
            raise TokensError(error.found, advice) from error


def _base_model_here(adapter: str) -> str | None:
    """Return the base model that the files beside an adapter, or the first of several, name.

    None: its codec is not on this machine.
    """
    given = parse_adapters(split_adapters(adapter))
    path = storage.as_path(given[0].source if given else adapter)
    if (config := find_config(run_of(path) or path)) is not None:
        return next((name for name in (config.model, config.model_dir) if name and codec_here(name)), None)
    try:
        name = str(json.loads(storage.read_text(path / "adapter_config.json"))["base_model_name_or_path"] or "")
    except (OSError, ValueError, TypeError, KeyError):
        return None  # loading the adapter says what is wrong with it
    return name if name and codec_here(name) else None
