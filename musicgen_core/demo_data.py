"""Synthesized demo data set in the layout of users' archives: styles that the model `demo` knows, and a new one."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.errors import ConfigError
from musicgen_core.language import message
from musicgen_core.synthesis.composing import compose
from musicgen_core.synthesis.rendering import SoundBank

KNOWN_STYLES = ("lofi", "techno", "folk")
NEW_STYLE = "theremin"  # also the trigger word, which is in all captions of the style and in no others
RATE = 44_100  # Hz, as most people's files have it
FIRST_SEED = 80_000_000  # of the clips; demo_model trains and measures on others
_WIDTH = 0.2
_METADATA, _BROKEN = "metadata.jsonl", "audio/broken.wav"


def make_demo_archives(folder: Path, archives: int = 3, clips: int = 32, seconds: float = 8.0) -> None:
    """Write `archive_batch_0001.zip` … and `metadata.jsonl`: stereo 16-bit wavs, the last one broken on purpose.

    The same arguments write the same bytes.

    Raises:
        ConfigError: a file of one of these names exists and holds other clips.
    """
    names_in = {f"archive_batch_{batch:04d}.zip": _names(batch, clips) for batch in range(1, archives + 1)}
    _check_own(folder, {**names_in, _METADATA: [name for names in names_in.values() for name in names]})
    folder.mkdir(parents=True, exist_ok=True)
    bank = SoundBank()
    lines = []
    for batch, (file, names) in enumerate(names_in.items(), start=1):
        with (
            storage.publish(UPath(folder / file)) as path,
            zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        ):
            for name, (caption, audio) in zip(names, _play(bank, batch, clips, seconds), strict=True):
                archive.writestr(_member(name), _wav(audio, seconds))
                entry = {"path": name, "duration": seconds, "sample_rate": RATE, "description": caption}
                lines.append(json.dumps(entry))
            if batch == archives:
                archive.writestr(_member(_BROKEN), b"RIFF\x24\x00\x00\x00WAVE this is not audio")
    storage.write_text(UPath(folder / _METADATA), "\n".join(lines) + "\n")


def _names(batch: int, clips: int) -> list[str]:
    return [f"audio/{_style(index)}_{batch:02d}_{index:03d}.wav" for index in range(clips)]


def _style(index: int) -> str:
    """Return the style of a clip: every other one is new; the known styles in between prevent forgetting."""
    return NEW_STYLE if index % 2 == 0 else KNOWN_STYLES[index // 2 % len(KNOWN_STYLES)]


def _check_own(folder: Path, files: Mapping[str, list[str]]) -> None:
    """Raise a ConfigError if one of `files` exists and names other clips than those given."""
    for file, names in files.items():
        path = folder / file
        if path.exists() and set(_named_in(path)) - set(names) - {_BROKEN}:
            raise ConfigError(
                message("{path} is not the demo's, and the demo would write over it", path=path),
                message("Give another --workdir, such as ./demo"),
            )


def _named_in(path: Path) -> Iterator[str]:
    """Yield the clip names of an archive or of metadata; for any other file, a name that no clip has."""
    try:
        storage.require_file(UPath(path))
        if path.name == _METADATA:
            yield from (json.loads(line)["path"] for line in path.read_text(encoding="utf-8").splitlines())
        else:
            with zipfile.ZipFile(path) as archive:
                yield from archive.namelist()
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile):
        yield ""


def _play(bank: SoundBank, batch: int, clips: int, seconds: float) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield caption and audio of each clip in an archive."""
    frames, seed = math.ceil(seconds * FRAME_RATE), FIRST_SEED + 100_000 * batch
    composed = [compose(seed + index, _style(index), frames) for index in range(clips)]
    yield from zip((clip.caption for clip in composed), bank.render(composed, frames).numpy(), strict=True)


def _member(name: str) -> zipfile.ZipInfo:
    """Return a zip member with a fixed time, so that equal content gives equal archives."""
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o644 << 16
    return member


def _wav(mono: NDArray[np.float32], seconds: float) -> bytes:
    mono = soxr.resample(mono, SAMPLE_RATE, RATE)[: round(seconds * RATE)]
    side = _WIDTH * np.roll(mono, RATE // 100)  # stereo width, which cancels in the mean of the channels
    stereo: NDArray[np.float32] = np.clip(np.stack([mono + side, mono - side], axis=1), -1, 1)
    buffer = io.BytesIO()
    soundfile.write(buffer, stereo, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
