"""A small dataset in the users' layout, made up from arithmetic: four audibly different styles, with descriptions."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ConfigError

RATE = 44_100  # Hz, as most people's files have it
Audio = NDArray[np.float64]
_METADATA, _BROKEN = "metadata.jsonl", "audio/broken.wav"


def make_demo_archives(folder: Path, archives: int = 3, clips: int = 32, seconds: float = 4.0) -> None:
    """Write `archive_batch_0001.zip` … and `metadata.jsonl`: stereo 16-bit wavs, the last one broken on purpose.

    The same arguments write the same audio.

    Raises:
        ConfigError: a file of one of these names is there, with other clips in it.
    """
    names_in = {f"archive_batch_{batch:04d}.zip": _names(batch, clips) for batch in range(1, archives + 1)}
    _check_own(folder, {**names_in, _METADATA: [name for names in names_in.values() for name in names]})
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for batch, (file, names) in enumerate(names_in.items(), start=1):
        with (
            storage.publish(UPath(folder / file)) as path,
            zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        ):
            for index, name in enumerate(names):
                rng = np.random.default_rng([batch, index])
                play, description = STYLES[_style(index)]
                archive.writestr(name, _wav(play(rng, seconds), rng))
                entry = {"path": name, "duration": seconds, "sample_rate": RATE, "description": description}
                lines.append(json.dumps(entry))
            if batch == archives:
                archive.writestr(_BROKEN, b"RIFF\x24\x00\x00\x00WAVE this is not audio")
    storage.write_text(UPath(folder / _METADATA), "\n".join(lines) + "\n")


def _names(batch: int, clips: int) -> list[str]:
    return [f"audio/{_style(index)}_{batch:02d}_{index:03d}.wav" for index in range(clips)]


def _style(index: int) -> str:
    return list(STYLES)[index % len(STYLES)]


def _check_own(folder: Path, files: Mapping[str, list[str]]) -> None:
    """Raises ConfigError if one of `files` exists and names other clips than those given."""
    for file, names in files.items():
        path = folder / file
        if path.exists() and set(_named_in(path)) - set(names) - {_BROKEN}:
            raise ConfigError(
                f"{path} is not the demo's, and the demo would write over it", "Give another --workdir, such as ./demo"
            )


def _named_in(path: Path) -> Iterator[str]:
    """The clips of an archive or of metadata; for another file something that no clip is called."""
    try:
        storage.require_file(UPath(path))
        if path.name == _METADATA:
            yield from (json.loads(line)["path"] for line in path.read_text(encoding="utf-8").splitlines())
        else:
            with zipfile.ZipFile(path) as archive:
                yield from archive.namelist()
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile):
        yield ""


def _wav(mono: Audio, rng: np.random.Generator) -> bytes:
    mono = 0.7 * mono / np.abs(mono).max()
    delay = int(rng.integers(20, 200))  # a little width: the right channel comes later
    stereo = np.stack([mono, np.concatenate([np.zeros(delay), mono[:-delay]])], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, stereo, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def _hertz(semitones: float) -> float:
    return 220.0 * 2 ** (semitones / 12)


def _times(seconds: float) -> Audio:
    return np.arange(int(seconds * RATE)) / RATE


def _add(track: Audio, sound: Audio, at_seconds: float) -> None:
    start = int(at_seconds * RATE)
    room = track[start : start + len(sound)]
    room += sound[: len(room)]


def _plucked(rng: np.random.Generator, seconds: float) -> Audio:
    """Karplus-Strong strings (Karplus & Strong 1983) playing an arpeggio."""
    track = np.zeros(int(seconds * RATE))
    chord = rng.choice([0, 2, 4, 5]) + np.array([0, 4, 7, 12, 7, 4])
    for number, start in enumerate(np.arange(0, seconds, 0.2)):
        period = int(RATE / _hertz(chord[number % len(chord)]))
        burst = rng.uniform(-1, 1, period)
        periods = []
        for _ in range(int(0.8 * RATE / period)):
            periods.append(burst)
            burst = 0.996 * 0.5 * (burst + np.roll(burst, 1))
        _add(track, np.concatenate(periods), start)
    return track


def _drums(rng: np.random.Generator, seconds: float) -> Audio:
    """Kick, snare, hi-hat and a bass line at 120 beats a minute."""
    track = np.zeros(int(seconds * RATE))
    short = _times(0.25)
    kick = np.sin(2 * np.pi * 50 * short - 12 * np.exp(-short * 30)) * np.exp(-short * 14)
    bass_notes = _hertz(-24 + rng.choice([0, 3, 5]))
    for number, start in enumerate(np.arange(0, seconds, 0.25)):
        hat = rng.normal(size=len(short)) * np.exp(-short * 90) * 0.3
        _add(track, np.diff(hat, prepend=0.0), start)
        if number % 4 == 0:
            _add(track, kick, start)
        if number % 4 == 2:
            _add(track, rng.normal(size=len(short)) * np.exp(-short * 25) * 0.5, start)
        bass = np.tanh(3 * np.sin(2 * np.pi * bass_notes * short)) * np.exp(-short * 4) * 0.4
        _add(track, bass, start)
    return track


def _pad(rng: np.random.Generator, seconds: float) -> Audio:
    """Slow detuned chords that swell."""
    times = _times(seconds)
    root = rng.choice([-12, -10, -7, -5])
    track = np.zeros_like(times)
    for interval in (0, 3, 7, 10):
        for detune in (-0.08, 0.0, 0.08):
            track += np.sin(2 * np.pi * _hertz(root + interval + detune) * times + rng.uniform(0, 6.28))
    return track * (0.6 - 0.4 * np.cos(2 * np.pi * times / seconds))


def _chip(rng: np.random.Generator, seconds: float) -> Audio:
    """A fast square-wave melody on a pentatonic scale."""
    track = np.zeros(int(seconds * RATE))
    note = _times(0.125)
    scale = np.array([0, 3, 5, 7, 10, 12, 15])
    degree = int(rng.integers(len(scale)))
    for start in np.arange(0, seconds, 0.125):
        degree = int(np.clip(degree + rng.integers(-2, 3), 0, len(scale) - 1))
        pitch = _hertz(12 + scale[degree])
        _add(track, np.sign(np.sin(2 * np.pi * pitch * note)) * np.exp(-note * 6), start)
    return track


STYLES: dict[str, tuple[Callable[[np.random.Generator, float], Audio], str]] = {
    "plucked": (_plucked, "calm plucked strings playing an arpeggio"),
    "drums": (_drums, "energetic drum loop with a distorted bass line, 120 bpm"),
    "pad": (_pad, "slow warm ambient synthesizer chords"),
    "chip": (_chip, "fast cheerful chiptune melody with square waves"),
}
