"""A small dataset in the users' layout, made up from arithmetic: four audibly different styles, with descriptions."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 44_100  # Hz, as most people's files have it
Audio = NDArray[np.float64]


def make_demo_archives(folder: Path, archives: int = 3, clips: int = 32, seconds: float = 4.0) -> None:
    """Write `archive_batch_0001.zip` … and `metadata.jsonl`: stereo 16-bit wavs, the last one broken on purpose.

    The same arguments write the same audio.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for batch in range(1, archives + 1):
        with zipfile.ZipFile(folder / f"archive_batch_{batch:04d}.zip", "w", zipfile.ZIP_STORED) as archive:
            for index in range(clips):
                rng = np.random.default_rng([batch, index])
                style = list(STYLES)[index % len(STYLES)]
                play, description = STYLES[style]
                name = f"audio/{style}_{batch:02d}_{index:03d}.wav"
                archive.writestr(name, _wav(play(rng, seconds), rng))
                entry = {"path": name, "duration": seconds, "sample_rate": RATE, "description": description}
                lines.append(json.dumps(entry))
            if batch == archives:
                archive.writestr("audio/broken.wav", b"RIFF\x24\x00\x00\x00WAVE this is not audio")
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


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
