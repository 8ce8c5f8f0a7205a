"""Export an adapter with a model card as a directory that other libraries load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from pydantic import TypeAdapter
from torch import Tensor
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import AdapterError, ConfigError, reason_of
from musicgen_core.exporting import transformers_directory
from musicgen_core.exporting.model_card import (
    ExportKind,
    MixedAdapter,
    Origin,
    RenderedSample,
    read_origin,
    write_card,
)
from musicgen_core.language import message
from musicgen_core.model import peft_directory
from musicgen_core.model.adapter_mix import (
    LoadedAdapter,
    base_model_of_all,
    concatenated,
    identity_of,
    load_with_effect,
    only_adapter,
    strengths_of,
)
from musicgen_core.model.adapters import base_model_of, hub_id, hub_name
from musicgen_core.model.compression import write_audiocraft_codec
from musicgen_core.model.local_files import CODEC_FILE, LM_FILE, TEXT_ENCODER
from musicgen_core.model.lora import check_merged, merged_state
from musicgen_core.model.text import write_text_encoder
from musicgen_core.model.trained_model import Learned
from musicgen_core.model.transformers_files import CONFIG_FILE
from musicgen_core.model.weighted_adapters import Mix, WeightedAdapter
from musicgen_core.model.weights import BaseModel, find_model
from musicgen_core.run_layout import short_name
from musicgen_core.stages import announce
from musicgen_core.training.files.full_models import write_full_model
from musicgen_core.wording import named

_DECIDING: dict[ExportKind, str] = {
    "peft": peft_directory.CONFIG_FILE,
    "audiocraft": LM_FILE,
    "huggingface": CONFIG_FILE,
}
"""Marker file of each format, without which a directory isn't an export; written last on object stores"""


@dataclass(frozen=True)
class Exported:
    """Path of an export, and the sizes in bytes of its files."""

    directory: UPath
    files: dict[str, int]


def export(
    adapter: storage.Location | Sequence[WeightedAdapter],
    out: storage.Location,
    kind: ExportKind,
    model: str | None = None,
    repo: str | None = None,
) -> Exported:
    """Export an adapter, or the sum of several, for another library.

    Args:
        adapter: a `*_lora.pt`, a run directory (its best), a PEFT directory, or `USER/NAME` on the Hugging Face Hub;
            or adapters with strengths, which `peft` gets as one adapter, whose rank is the sum of theirs.
        out: directory or URL to create atomically. It must not exist, except for a partial upload of a killed call
            with the same arguments.
        kind: `peft`: the adapter alone, for transformers' class of the base model;
            `audiocraft`: base and adapter merged, for `MusicGen.get_pretrained`; `huggingface`: the same, for
            that class's `from_pretrained`.
        model: the base model; by default the one named by the adapter. `peft` needs none.
        repo: the repository of the Hub that the export is for: its card loads it from there and plays its samples.

    Raises:
        ConfigError: `out` exists or can't be written.
        AdapterError: there is no adapter, it is of another base model, or its strength is 0; or `peft` is to have
            DoRA with a strength other than 1.
        ModelError: the base model can't be used.
    """
    target = target_of(out)
    unfinished = _check_free(target)
    announce(message("reading the adapter"))
    mix, loaded = load_exported(adapter)
    strengths = strengths_of(mix, loaded)
    parts = [(one.adapter, strength) for one, strength in zip(loaded, strengths, strict=True)]
    is_mix = strengths != [1]
    exported = loaded[0].adapter
    if kind == "peft":
        exported = concatenated(parts) if is_mix else only_adapter(exported)
    origin = Origin(mixed=_mixed(loaded, strengths)) if is_mix else read_origin(loaded[0].path, exported)
    exported = replace(exported, base_model=base_model_of_all(loaded))
    base = None
    if kind != "peft" or model is not None:
        base = find_model(model or _base_of(loaded))
        for one in loaded:
            one.adapter.check_base(base, str(one.path))
        if hub_id(exported.base_model) is None:
            exported = replace(exported, base_model=base.identity)
    source = {"adapter": identity_of(mix, loaded), "format": kind, "base_model": exported.base_model}
    if unfinished is not None and unfinished.source != source:
        raise ConfigError(
            message("{target} has the unfinished export of another adapter, base model or format in it", target=target),
            message("Give a directory that is not there yet, or delete it first"),
        )
    try:
        with _whole(target, _DECIDING[kind], source, unfinished) as folder:
            name = target.name or "export"
            merged = None if base is None or kind == "peft" else _merged(base, parts)
            _write(folder, name=name, kind=kind, adapter=exported, origin=origin, base=base, merged=merged, repo=repo)
            files = _sizes(folder, _DECIDING[kind])
    except OSError as error:
        raise ConfigError(
            message("the export can't be written to {target} ({reason})", target=target, reason=reason_of(error)),
            message("Make room or give another location"),
        ) from error
    return Exported(target, files)


def target_of(out: storage.Location) -> UPath:
    """Return the directory or URL of an export, with a name: `.` has none."""
    target = storage.as_path(out)
    return storage.as_path(Path(str(target)).resolve()) if storage.is_local(target) else target


@dataclass(frozen=True)
class _Unfinished:
    """Content of `_UNFINISHED`, which exists in an object store during an upload.

    Attributes:
        source: hash of the exported adapter, format and base model.
        files: sizes in bytes of the uploaded files.
    """

    source: dict[str, str]
    files: dict[str, int]


_UNFINISHED = ".unfinished-export.json"
_UNFINISHED_JSON = TypeAdapter(_Unfinished)


def _check_free(target: UPath) -> _Unfinished | None:
    """Return the interrupted export at `target`, if there is one.

    Raises:
        ConfigError: there are other files.
    """
    if not storage.is_local(target):
        target.fs.invalidate_cache(target.path)
        if (unfinished := _read_unfinished(target)) is not None:
            return unfinished
    if target.is_dir():
        if any(target.iterdir()):
            raise ConfigError(
                message("{target} has files in it", target=target),
                message("Give a directory that is not there yet, or delete it first"),
            )
    elif target.exists():
        raise ConfigError(
            message("{target} is a file", target=target), message("Give a directory that is not there yet")
        )
    return None


def _read_unfinished(target: UPath) -> _Unfinished | None:
    try:
        unfinished = _UNFINISHED_JSON.validate_json(storage.read_text(target / _UNFINISHED))
    except (FileNotFoundError, ValueError):
        return None
    found = target.fs.find(target.path, detail=True).values()
    sizes = {info["name"].removeprefix(f"{target.path.rstrip('/')}/"): info["size"] for info in found}
    # Objects are atomic: one of another size isn't part of that export.
    others = [name for name, size in sizes.items() if name != _UNFINISHED and unfinished.files.get(name) != size]
    if others:
        raise ConfigError(
            message(
                "{target} has files in it beside an unfinished export: {others}", target=target, others=named(others)
            ),
            message("Give a directory that is not there yet, or move them away"),
        )
    return unfinished


def load_exported(adapter: storage.Location | Sequence[WeightedAdapter]) -> tuple[Mix, list[LoadedAdapter]]:
    """Return the adapters to export, and their files; raises as `load_with_effect`."""
    given = [WeightedAdapter(str(adapter))] if isinstance(adapter, str | os.PathLike) else adapter
    return load_with_effect(given)


def _mixed(loaded: Sequence[LoadedAdapter], strengths: Sequence[float]) -> tuple[MixedAdapter, ...]:
    return tuple(
        MixedAdapter(hub_name(one.path) or short_name(str(one.path)), strength, one.adapter)
        for one, strength in zip(loaded, strengths, strict=True)
    )


def _base_of(loaded: Sequence[LoadedAdapter]) -> str:
    """Return the name or directory of the base model, which peft's adapters may lack."""
    for one in loaded:
        if (base := base_model_of(one.adapter, one.path)) is not None:
            return base
    raise AdapterError(
        message(
            "the adapter {weights} doesn't name its base model, with which it is to be merged", weights=loaded[0].path
        ),
        message("Give --model the directory or the Hugging Face id of the model that it was trained on"),
    )


def _merged(base: BaseModel, parts: Sequence[tuple[Learned, float]]) -> dict[str, Tensor]:
    announce(message("merging the adapter into the base model"))
    merged = merged_state(base, parts)
    check_merged(merged, "their own precision")
    return merged


def _write(
    folder: Path,
    name: str,
    kind: ExportKind,
    adapter: Learned,
    origin: Origin,
    base: BaseModel | None,
    merged: dict[str, Tensor] | None,
    repo: str | None,
) -> None:
    text_encoder = None
    if merged is None or base is None:
        peft_directory.write(vars(adapter), hub_id(adapter.base_model), folder)
    else:
        announce(message("writing the merged model"))
        if kind == "huggingface":
            transformers_directory.write(folder, base, merged)
        else:
            text_encoder = _write_for_audiocraft(folder, base, merged)
    samples = _copy_samples(folder, origin)
    write_card(
        folder,
        name=name,
        kind=kind,
        adapter=adapter,
        origin=origin,
        text_encoder=text_encoder,
        samples=samples,
        repo=repo,
    )


def _write_for_audiocraft(folder: Path, base: BaseModel, merged: dict[str, Tensor]) -> str | None:
    """Return audiocraft's name of the text encoder if it is written, too."""
    write_full_model(base.checkpoint_with(merged), storage.as_path(folder / LM_FILE), Event())
    write_audiocraft_codec(base, folder / CODEC_FILE)
    if base.is_transformers:
        write_text_encoder(base.text_encoder, folder / TEXT_ENCODER)
    elif (base.directory / TEXT_ENCODER).is_dir():
        # Contents only: a mounted Drive may refuse modes and times.
        _copy_contents(base.directory / TEXT_ENCODER, folder / TEXT_ENCODER)
    else:
        return None
    return base.config.t5


def _copy_contents(source: Path, target: Path) -> None:
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _copy_samples(folder: Path, origin: Origin) -> dict[str, RenderedSample]:
    copied = {}
    for i, sample in enumerate(origin.samples):
        (folder / "samples").mkdir(exist_ok=True)
        for voice, wav in (("adapter", sample.adapted), ("base", sample.base)):
            if wav is not None:
                (folder / "samples" / f"{voice}_{i:02d}.wav").write_bytes(wav.read_bytes())
        copied[f"{i:02d}.wav"] = sample
    return copied


@contextmanager
def _whole(target: UPath, last: str, source: dict[str, str], unfinished: _Unfinished | None) -> Iterator[Path]:
    """Provide a local folder to fill, which becomes `target` if the block succeeds.

    A local target is written beside and renamed. In an object store the file `last` is uploaded last.

    Args:
        target: the directory or URL to create.
        last: name of the marker file.
        source: values by which a later export recognises a partial upload of this one.
        unfinished: partial upload of the same source, which is deleted.
    """
    if storage.is_local(target):
        with storage.publish_folder(Path(str(target))) as beside:
            yield beside
        return
    with storage.scratch_folder() as scratch:
        folder = scratch / "export"
        folder.mkdir()
        yield folder
        for name in unfinished.files if unfinished is not None else ():
            (target / name).unlink(missing_ok=True)
        content = _UNFINISHED_JSON.dump_json(_Unfinished(source, _sizes(folder, last)))
        storage.write_text(target / _UNFINISHED, content.decode())
        for file in _files(folder, last):
            storage.upload(file, target.joinpath(*file.relative_to(folder).parts))
        (target / _UNFINISHED).unlink()


def _sizes(folder: Path, last: str) -> dict[str, int]:
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in _files(folder, last)}


def _files(folder: Path, last: str) -> list[Path]:
    return sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: (file.name == last, file))
