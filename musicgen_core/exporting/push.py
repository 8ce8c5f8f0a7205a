"""Export an adapter and push the export to the Hugging Face Hub, where others load it by its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ConfigError, MusicgenError, StorageError, reason_of
from musicgen_core.exporting.export import Exported, export, load_exported, target_of
from musicgen_core.exporting.model_card import LIBRARIES, TAGS, ExportKind
from musicgen_core.language import message
from musicgen_core.model.adapter_mix import identity_of
from musicgen_core.model.hub_target import Target, check_target
from musicgen_core.model.hub_upload import Listener, Pushed, upload_folder
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.stages import announce

MARKER = ".unfinished-push.json"
"""Exists in an export until it is pushed; it is not pushed itself."""


@dataclass(frozen=True)
class _Owed:
    """Content of `MARKER`: what was exported, for which repository."""

    adapter: str
    format: str
    model: str
    repo: str
    files: dict[str, int]


_OWED_JSON = TypeAdapter(_Owed)


def export_and_push(
    adapter: storage.Location | Sequence[WeightedAdapter],
    out: storage.Location,
    kind: ExportKind,
    model: str | None,
    repo: str,
    is_public: bool,
    listener: Listener,
) -> tuple[Exported, Pushed | None]:
    """Export an adapter and push the export to a repository of the Hub, which is created if there is none.

    The repository, its name and HF_TOKEN are checked before the export. If the upload fails, the export is kept, and
    another call with the same arguments only uploads it.

    Args:
        adapter, out, kind, model: as for `export`.
        repo: `USER/NAME`; an existing repository must hold an export of the same format, which is updated. If it is
            empty, the adapter is only exported.
        is_public: visibility of a new repository; an existing one keeps its own.
        listener: called with the progress of the upload.

    Raises:
        MusicgenError: the errors of `export`, and those of the Hub.
    """
    if not repo:
        if is_public:
            raise ConfigError(
                message("--public is given without a repository to push to"),
                message("Give --push-to USER/NAME, too, or leave --public out"),
            )
        return export(adapter, out, kind, model), None
    announce(message("asking the Hugging Face Hub about {repo}", repo=repo))
    target = check_target(repo, LIBRARIES[kind], TAGS[0])
    owed = _Owed(identity_of(*load_exported(adapter)), kind, model or "", repo, {})
    exported = _read(target_of(out), owed)
    if exported is None:
        exported = export(adapter, out, kind, model, repo)
        content = _OWED_JSON.dump_json(replace(owed, files=exported.files)).decode()
        storage.write_text(exported.directory / MARKER, content)
    return exported, _push(exported, target, is_public, listener)


def _read(directory: UPath, owed: _Owed) -> Exported | None:
    """Return the export that an earlier call left to be pushed, if it is whole and has the same content."""
    try:
        found = _OWED_JSON.validate_json(storage.read_text(directory / MARKER))
        is_whole = all((directory / name).stat().st_size == size for name, size in found.files.items())
    except (OSError, ValueError):
        return None
    is_same = asdict(replace(found, files={})) == asdict(owed)
    return Exported(directory, found.files) if is_same and is_whole else None


def _push(exported: Exported, target: Target, is_public: bool, listener: Listener) -> Pushed:
    announce(message("pushing the export to {repo}", repo=target.repo))
    names = list(exported.files)
    try:
        with _local(exported.directory, names) as folder:
            pushed = upload_folder(folder, names, target, is_public, listener)
    except OSError as error:
        raise StorageError(
            message(
                "the export can't be read from {place} ({reason})", place=exported.directory, reason=reason_of(error)
            ),
            _again(exported),
        ) from error
    except (ConfigError, StorageError) as error:
        raise type(error)(error.found, _with_advice(error, exported)) from error
    (exported.directory / MARKER).unlink(missing_ok=True)
    return pushed


def _with_advice(error: MusicgenError, exported: Exported) -> str:
    return message("{found}. {next_step}", found=error.next_step, next_step=_again(exported))


def _again(exported: Exported) -> str:
    return message(
        "The export in {place} is complete: exporting again with the same adapter, format, OUT and repository only "
        "pushes it",
        place=exported.directory,
    )


@contextmanager
def _local(directory: UPath, names: Sequence[str]) -> Iterator[Path]:
    """Provide the files of an export in a local folder: its own, or a copy that is deleted afterwards."""
    if storage.is_local(directory):
        yield Path(str(directory))
        return
    with storage.scratch_folder() as folder:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            directory.fs.get_file((directory / name).path, str(folder / name))
        yield folder
