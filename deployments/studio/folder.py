"""The folder of the studio's music: its history, the files that pages may read, and recordings to continue."""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from musicgen_core import storage
from musicgen_core.data.audio import DecodedClip, decode
from musicgen_core.errors import ConfigError
from musicgen_core.escaping import printable
from musicgen_core.generation.files import COMPANIONS, FULL_SCALE
from musicgen_core.generation.numbering import Numbering, stem_of
from musicgen_core.generation.page import MUSIC, PAGE, file_names
from musicgen_core.generation.page_rows import prompt_rows
from musicgen_core.generation.sidecars import Sidecar, adapter_entries, strength_of
from musicgen_core.generation.sidecars import number_of as _number
from musicgen_core.generation.sound_file import read_sound, refused
from musicgen_core.language import message
from musicgen_core.run_layout import short_name
from musicgen_core.settings import LONGEST_SECONDS

SOURCES = "sources"
"""Subfolder of recordings that samples continue: uploads, and beginnings of samples"""
MOST_UPLOAD_BYTES = 64 << 20
MOST_DECODED_BYTES = 512 << 20
SHOWN_PIECES = 200
"""The newest samples, which the page lists"""
SHOWN_COMPARISONS = 20
_FILE = re.compile(rf"generated_\d{{3,9}}\.(?:wav|json|{'|'.join(COMPANIONS)})", re.ASCII)
_STEM = re.compile(r"generated_\d{3,9}", re.ASCII)
_SOURCE = re.compile(r"(?:upload|generated_\d{3,9})_[0-9a-f]{16}\.wav", re.ASCII)


class MusicFolder:
    """A local folder of generated music, for any number of threads.

    Raises:
        ConfigError: it isn't local, or can't be used, see `Numbering`.
    """

    def __init__(self, location: str) -> None:
        path = storage.as_path(location)
        if not storage.is_local(path):
            raise ConfigError(
                message("the studio plays from a local folder, and {path} is none", path=path),
                message("Give a folder of this machine"),
            )
        storage.make_folder(path)
        self.path = Path(str(path)).resolve()
        self._read = Numbering(storage.as_path(self.path))
        self._lock = threading.Lock()

    def pieces(self) -> list[dict[str, Any]]:
        """Return the newest samples for the page, the newest first."""
        with self._lock:
            sidecars = self._read.sidecars(0)
            names = file_names(storage.as_path(self.path))
            numbers = [number for number in sidecars if f"{stem_of(number)}.wav" in names]
            newest = sorted(numbers, reverse=True)[:SHOWN_PIECES]
            return [_piece(stem_of(number), sidecars[number], names) for number in newest]

    @property
    def version(self) -> str:
        """A text that changes when files of the folder are added, replaced or deleted, by whichever program."""
        return str(self.path.stat().st_mtime_ns)

    def comparisons(self) -> list[dict[str, Any]]:
        """Return the newest comparisons of samples that differ in their adapters alone, the newest first."""
        with self._lock:
            sidecars = self._read.sidecars(0)
            names = file_names(storage.as_path(self.path))
        newest = [(stem_of(number), sidecars[number]) for number in sorted(sidecars, reverse=True)[:SHOWN_PIECES]]
        rows = prompt_rows(newest[::-1], {}, names)
        found = [dict(comparison) for row in reversed(rows) for comparison in row.comparisons]
        for comparison in found:
            comparison["pieces"] = [piece | {"url": f"files/{piece['file']}"} for piece in comparison["pieces"]]
        return found[:SHOWN_COMPARISONS]

    def sidecars_of(self, names: Sequence[str]) -> dict[str, Sidecar]:
        """Return the sidecars of samples by the names of their wavs; names of no sample are left out."""
        with self._lock:
            sidecars = self._read.sidecars(0)
            found = {f"{stem_of(number)}.wav": sidecar for number, sidecar in sidecars.items()}
        return {name: found[name] for name in names if name in found and self.file(name)}

    def file(self, name: str) -> Path | None:
        """Return the path of a sample's file or of the page of all; None for others and for links out of the folder."""
        path = (self.path / name).resolve() if _FILE.fullmatch(name) or name == PAGE else None
        if path is None or path.parent != self.path or not path.is_file():
            return None
        return path if name != PAGE or MUSIC.is_at(storage.as_path(path)) else None

    def source(self, name: str, until: float | None, stereo: bool) -> tuple[str, float]:
        """Return path and seconds of a recording to continue.

        Args:
            name: the stem of a sample, or the name that `upload` returned.
            until: seconds of it to keep; None for all.
            stereo: whether the model has two channels.

        Raises:
            ConfigError: there is no such recording, or it can't be read.
        """
        if _STEM.fullmatch(name) and (wav := self.file(f"{name}.wav")):
            path = wav
        elif _SOURCE.fullmatch(name) and (own := self._sources() / name).is_file() and not own.is_symlink():
            path = own
        else:
            raise ConfigError(message("there is no sample {name} in the folder", name=name), message("Choose another"))
        clip = read_sound(str(path), _unreadable, stereo)
        if until is None or until >= clip.seconds:
            return str(path), clip.seconds
        kept = DecodedClip(clip.samples[..., : round(until * clip.rate)], clip.rate)
        digest = hashlib.sha256(kept.samples.tobytes()).hexdigest()[:16]
        target = self._sources() / f"{path.stem}_{digest}.wav"
        _write(target, kept)
        return str(target), kept.seconds

    def _sources(self) -> Path:
        """Return the subfolder of recordings to continue.

        Raises:
            ConfigError: it is a link, which may lead out of the folder.
        """
        path = self.path / SOURCES
        if path.is_symlink():
            raise ConfigError(
                message("{folder} is a link", folder=path), message("Put a folder in its place, or delete the link")
            )
        return path

    def continued(self, sidecar: Mapping[str, Any]) -> tuple[str, float] | None:
        """Return name and seconds of the recording that a sample continues, as `source` takes it.

        None without one, and if it lies outside the folder or has another content than the sample was made with.
        """
        try:
            path = Path(_text(sidecar.get("continued_from"))).resolve()
            name = path.stem if path.parent == self.path else path.name
            is_known = _STEM.fullmatch(name) or _SOURCE.fullmatch(name)
            if not is_known or path.parent not in (self.path, self.path / SOURCES):
                return None
            seconds, content = float(soundfile.info(path).duration), storage.content_sha256(storage.as_path(path))
        except (OSError, ValueError, soundfile.LibsndfileError):
            return None
        return (name, seconds) if sidecar.get("continued_from_sha256") in (None, content) else None

    def upload(self, content: bytes, stereo: bool) -> tuple[str, float]:
        """Keep a recording that was sent, decoded as the clips of archives are; return its name and seconds.

        Raises:
            ConfigError: it is too long, or no sound.
        """
        with tempfile.TemporaryFile() as file, refused(message("the file"), _unreadable):
            file.write(content)
            file.flush()
            clip = decode(file, max_bytes=MOST_DECODED_BYTES, stereo=stereo)
        if clip.seconds >= LONGEST_SECONDS:
            raise ConfigError(
                message("the file lasts {seconds:.0f} s", seconds=clip.seconds),
                message("Send one of less than {most} s", most=LONGEST_SECONDS),
            )
        name = f"upload_{hashlib.sha256(content).hexdigest()[:16]}.wav"
        _write(self._sources() / name, clip)
        return name, clip.seconds


def _write(target: Path, clip: DecodedClip) -> None:
    pcm = np.clip(np.round(clip.samples.T * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, clip.rate, subtype="PCM_16", format="WAV")
    path = storage.as_path(target)
    storage.make_folder(path.parent)
    with storage.publish(path) as partial:
        partial.write_bytes(buffer.getvalue())


def _unreadable(name: str, error: Exception) -> ConfigError:
    return ConfigError(message("{name} can't be continued: {error}", name=name, error=error), message("Send a wav"))


def _piece(stem: str, sidecar: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Return what the page shows of a sample: values of the types that it expects, whatever the sidecar holds."""
    fields = sidecar.get("fields")
    fields = fields if isinstance(fields, Mapping) else {}
    return {
        "stem": stem,
        "prompt": _text(fields.get("prompt")) or _text(sidecar.get("prompt")),
        "seed": _number(sidecar.get("seed")),
        "seconds": _number(sidecar.get("duration")) or 0,
        "is_continued": bool(sidecar.get("continued_from")),
        "adapters": [
            {"name": short_name(_text(one.get("path"))), "strength": strength_of(one)}
            for one in adapter_entries(sidecar)
        ],
        "files": [ending for ending in ("wav", "flac", "mp3", "png", "json") if f"{stem}.{ending}" in names],
    }


def _text(value: Any) -> str:
    return printable(value) if isinstance(value, str) else ""
