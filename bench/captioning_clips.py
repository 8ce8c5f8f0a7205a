"""Clips of known tempo and key for bench.captioning_accuracy: the project's synthesis, and variations of it.

A variation plays the notes of a composed clip on a second synthesizer at 44.1 kHz, which is then resampled to 32 kHz:
other timbres and drum sounds, drums added or removed, a tuning up to 30 cents off, a tempo off the synthesis's grid,
onsets up to some 10 ms early or late, and noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torchaudio.functional
from numpy.typing import NDArray
from torch import Tensor

from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.music_theory import A4_HZ, A4_MIDI, Mode
from musicgen_core.synthesis.composing import Clip, compose, compose_many
from musicgen_core.synthesis.instruments import DRUMS, NOTES
from musicgen_core.synthesis.rendering import SoundBank

RATE = 44_100
LONGEST_NOTE = 4.0  # seconds
Audio = NDArray[np.float64]


@dataclass(frozen=True)
class Known:
    """What is known of a clip; bpm is None without a beat, the root None without a key."""

    style: str
    bpm: float | None
    root: int | None
    mode: Mode
    drums: bool


def synthesized(seed: int, count: int, seconds: float) -> tuple[Tensor, list[Known]]:
    """Return clips of the project's synthesis, [count, samples], of consecutive seeds."""
    frames = round(seconds * FRAME_RATE)
    clips = compose_many(count, seed, frames=frames)
    audio = torch.cat([SoundBank().render(clips[at : at + 8], frames) for at in range(0, count, 8)])
    return audio, [_known(clip, 1.0, clip.truth.drums) for clip in clips]


def varied(seed: int, count: int, seconds: float) -> tuple[Tensor, list[Known]]:
    """Return variations, [count, samples], of clips with consecutive seeds."""
    made = [_variation(seed + index, seconds) for index in range(count)]
    return torch.stack([audio for audio, _ in made]), [known for _, known in made]


def _known(clip: Clip, stretch: float, drums: bool) -> Known:
    bar = round(clip.truth.meter * 60 / clip.truth.bpm * FRAME_RATE) / FRAME_RATE * stretch
    return Known(
        style=clip.truth.style,
        bpm=60 * clip.truth.meter / bar if clip.truth.beat else None,
        root=clip.truth.root if clip.truth.pitched else None,
        mode=clip.truth.mode,
        drums=drums,
    )


def _variation(seed: int, seconds: float) -> tuple[Tensor, Known]:
    rng = np.random.default_rng(seed)
    stretch = rng.uniform(0.9, 1.1)
    clip = compose(seed, frames=round(seconds / stretch * FRAME_RATE))
    pitched = [event for event in clip.events if NOTES[int(event[0])][0] not in DRUMS]
    hits = [(NOTES[int(event[0])][0], float(event[1]), float(event[4])) for event in clip.events[: len(clip.events)]]
    hits = [hit for hit in hits if hit[0] in DRUMS]
    if clip.truth.beat and pitched and rng.random() < 0.5:
        hits = [] if hits else _added_drums(clip, seconds / stretch)
    player = _Player(rng, stretch / FRAME_RATE, tuning=rng.uniform(-30, 30), jitter=rng.uniform(0, 0.006))
    audio = np.zeros(round(seconds * RATE) + round(6 * RATE))
    for index, onset, sustain, release, velocity in np.array(pitched, np.float64).reshape(-1, 5):
        player.play(audio, NOTES[int(index)], onset, sustain, release, velocity)
    for drum, onset, velocity in hits:
        player.hit(audio, drum, onset, velocity)
    audio = audio[: round(seconds * RATE)]
    audio /= np.abs(audio).max() / rng.uniform(0.1, 0.9)
    noise_db = rng.uniform(-50, -15)
    audio += np.sqrt(np.mean(audio**2)) * 10 ** (noise_db / 20) * rng.normal(size=len(audio))
    resampled = torchaudio.functional.resample(torch.from_numpy(audio.astype(np.float32)), RATE, SAMPLE_RATE)
    return resampled[: round(seconds * SAMPLE_RATE)], _known(clip, stretch, bool(hits))


def _added_drums(clip: Clip, seconds: float) -> list[tuple[str, float, float]]:
    """Return a plain drum pattern for a clip without drums: drum, onset in frames, velocity."""
    meter = clip.truth.meter
    bar = round(meter * 60 / clip.truth.bpm * FRAME_RATE)
    strong = (0,) if meter == 3 else (0, 2)
    hits = []
    for start in range(0, round(seconds * FRAME_RATE), bar):
        for beat in range(meter):
            hits.append(("kick" if beat in strong else "snare", start + bar * beat / meter, 0.8))
            hits += [("closed hat", start + bar * (beat + half) / meter, 0.4) for half in (0, 0.5)]
    return hits


class _Player:
    """A synthesizer with random timbres; `seconds_per_frame` converts onsets and lengths."""

    def __init__(self, rng: np.random.Generator, seconds_per_frame: float, tuning: float, jitter: float) -> None:
        self.rng, self.scale, self.tuning, self.jitter = rng, seconds_per_frame, tuning, jitter
        self.timbres: dict[str, Callable[[float], Audio]] = {}
        self.sounds: dict[tuple[str, int], Audio] = {}
        self.gains = {drum: rng.uniform(0.3, 0.8) for drum in DRUMS}

    def play(
        self, audio: Audio, note: tuple[str, int, int], onset: float, sustain: float, release: float, velocity: float
    ) -> None:
        name, pitch, _ = note
        if name not in self.timbres:
            self.timbres[name] = _timbre(self.rng)
        if (name, pitch) not in self.sounds:
            hertz = A4_HZ * 2 ** ((pitch - A4_MIDI + self.tuning / 100) / 12)
            self.sounds[name, pitch] = self.timbres[name](hertz)
        held, fade = (round(frames * self.scale * RATE) for frames in (sustain, release))
        sound = self.sounds[name, pitch][: held + fade].copy()
        tail = min(fade, len(sound))
        sound[-tail:] *= np.linspace(1, 0, tail)
        self._add(audio, 0.25 * velocity * sound, onset)

    def hit(self, audio: Audio, drum: str, onset: float, velocity: float) -> None:
        if (drum, 0) not in self.sounds:
            self.sounds[drum, 0] = _drum(self.rng, drum)
        self._add(audio, self.gains[drum] * velocity * self.sounds[drum, 0], onset)

    def _add(self, audio: Audio, sound: Audio, onset: float) -> None:
        start = max(0, round((onset * self.scale + self.rng.normal(0, self.jitter)) * RATE))
        sound = sound[: max(0, len(audio) - start)]
        audio[start : start + len(sound)] += sound


def _timbre(rng: np.random.Generator) -> Callable[[float], Audio]:
    """Draw a timbre: harmonics that fall off by 4 to 14 dB an octave, perhaps odd ones only, plucked or blown."""
    slope, odd = rng.uniform(0.7, 2.3), rng.random() < 0.25
    attack, decay, brightness = rng.uniform(0.002, 0.03), rng.choice((0.2, 1.0, 2.5)), rng.uniform(0, 0.6)
    vibrato, stiffness = rng.choice((0.0, 0.0, 0.002)), rng.choice((0.0, 0.0002))
    weights = rng.uniform(0.4, 1.0, 20)
    t = np.arange(round(LONGEST_NOTE * RATE)) / RATE

    def sound(hertz: float) -> Audio:
        wave = np.zeros(len(t))
        phase = 2 * np.pi * hertz * (t + vibrato / (2 * np.pi * 5.5) * np.sin(2 * np.pi * 5.5 * t))
        for number in range(1, 21, 2 if odd else 1):
            ratio = number * np.sqrt((1 + stiffness * number**2) / (1 + stiffness))
            if ratio * hertz < 14_000:
                level = weights[number - 1] / number**slope
                wave += level * np.sin(ratio * phase) * np.exp(-brightness * (number - 1) * t)
        return wave * np.exp(-decay * t) * np.minimum(t / attack, 1)

    return sound


def _drum(rng: np.random.Generator, drum: str) -> Audio:
    """Draw the sound of a drum: a sine that falls in pitch, filtered noise, or both."""
    t = np.arange(round(0.5 * RATE)) / RATE
    noise = rng.normal(size=len(t))
    if drum == "kick" or drum.endswith("tom"):
        low = rng.uniform(40, 65) if drum == "kick" else rng.uniform(80, 180)
        phase = 2 * np.pi * (low * t + low * rng.uniform(1, 3) / 40 * (1 - np.exp(-40 * t)))
        return np.sin(phase) * np.exp(-t / rng.uniform(0.08, 0.2))
    high = np.diff(noise, prepend=0.0) if drum not in ("snare", "clap") else noise
    lengths = {"snare": 0.08, "clap": 0.06, "closed hat": 0.025, "open hat": 0.12, "ride": 0.15, "crash": 0.3}
    body = 0.4 * np.sin(2 * np.pi * rng.uniform(150, 250) * t) if drum == "snare" else 0.0
    return 0.4 * (high + body) * np.exp(-t / (lengths.get(drum, 0.1) * rng.uniform(0.7, 1.4)))
