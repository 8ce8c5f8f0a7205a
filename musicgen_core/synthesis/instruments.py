"""One note of each instrument and pitch, and one hit of each drum, at 32 kHz.

Most instruments are a sum of harmonics, each of which may fade faster than the one below it, as those of strings do:

    y(t) = Σ_h a_h · exp(-h·d·t) · sin(2π·h·f·t) = Im P(w(t)),   w(t) = exp((2πi·f - d)·t),   P(w) = Σ_h a_h · w^h

So a note is a polynomial in one decaying phasor, evaluated by Horner's rule: one complex multiplication a harmonic and
sample. Harmonics above 14 kHz are left out, so nothing aliases. Every note starts with the same phases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicgen_core.codes import SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.music_theory import A4_HZ, A4_MIDI

Audio = NDArray[np.float64]
HIGHEST_HZ = 14_000.0


@dataclass(frozen=True)
class Instrument:
    """A pitched instrument.

    Attributes:
        play: MIDI pitch → audio [samples].
        lowest, highest: its range in MIDI pitches, both included.
    """

    play: Callable[[int], Audio]
    lowest: int
    highest: int


def piano(pitch: int) -> Audio:
    """Play a hammered string."""
    h = _numbers(16)
    amplitudes = np.abs(np.sin(np.pi * h / 7.3)) / h**1.1
    return _fade(0.62 * _decay(2.4, 1.3) * _harmonics(pitch, 2.4, amplitudes, damping=0.55), attack=0.003)


def electric_piano(pitch: int) -> Audio:
    """Feedback FM of a sine, with a tine that rings at the attack (Chowning 1973)."""
    t, x = _times(2.0), _phase(pitch, 2.0)
    tine = 0.2 * np.sin(7 * x) * np.exp(-14 * t) if 7 * _hertz(pitch) < HIGHEST_HZ else 0.0
    return _fade(0.42 * np.exp(-1.8 * t) * (np.sin(x + 1.0 * np.exp(-3.5 * t) * np.sin(x)) + tine), attack=0.003)


def organ(pitch: int) -> Audio:
    """Drawbars: sines at 1, 2, 3, 4, 6 and 8 times the pitch."""
    drawbars = np.array([1.0, 0.7, 0.5, 0.35, 0.0, 0.2, 0.0, 0.12])
    return _fade(0.2 * _harmonics(pitch, 4.2, drawbars), attack=0.02)


def pad(pitch: int) -> Audio:
    """Three detuned, filtered saws that swell."""
    voices = [_harmonics(pitch + cents / 100, 4.2, _saw(pitch, 1400.0)) for cents in (-6, 0, 7)]
    return _fade(0.13 * np.sum(voices, axis=0), attack=0.3, release=0.5)


def plucked_string(pitch: int) -> Audio:
    """A string plucked at a seventh of its length: harmonics sin(πh/7)/h, of which high ones fade first."""
    h = _numbers(24)
    amplitudes = np.sin(np.pi * h / 7) / h
    return _fade(0.75 * _decay(1.6, 2.2) * _harmonics(pitch, 1.6, amplitudes, damping=0.9), attack=0.002)


def upright_bass(pitch: int) -> Audio:
    """A low plucked string with few harmonics."""
    return _fade(0.75 * _decay(1.4, 2.0) * _harmonics(pitch, 1.4, np.array([1.0, 0.5, 0.22, 0.1, 0.05]), damping=1.2))


def sub_bass(pitch: int) -> Audio:
    """A sine and a little of its octave."""
    return _fade(0.6 * _decay(2.0, 0.7) * _harmonics(pitch, 2.0, np.array([1.0, 0.25])), attack=0.008)


def synth_bass(pitch: int) -> Audio:
    """An overdriven saw through a low-pass filter."""
    return _fade(0.5 * _decay(1.0, 2.5) * np.tanh(2.5 * _harmonics(pitch, 1.0, _saw(pitch, 700.0))))


def synth_lead(pitch: int) -> Audio:
    """A saw whose filter closes."""
    return _fade(0.36 * _harmonics(pitch, 1.2, _saw(pitch, 6000.0), damping=0.8))


def square_wave(pitch: int) -> Audio:
    """Odd harmonics, as in the sound chips of old game consoles."""
    h = _numbers(200)
    return _fade(0.36 * _decay(1.0, 1.5) * _harmonics(pitch, 1.0, (h % 2) / h))


def triangle_wave(pitch: int) -> Audio:
    """Odd harmonics that fall with their square."""
    h = _numbers(40)
    return _fade(0.55 * _decay(1.4, 0.8) * _harmonics(pitch, 1.4, (h % 2) * np.sin(np.pi * h / 2) / h**2))


def distorted_guitar(pitch: int) -> Audio:
    """A power chord: root, fifth and octave, each through soft clipping, and a cabinet."""
    strings = [np.tanh(2.5 * _harmonics(pitch + interval, 1.6, _saw(pitch, 1800.0))) for interval in (0, 7, 12)]
    return _fade(0.17 * _decay(1.6, 0.9) * _cabinet(np.sum(strings, axis=0)))


def bell(pitch: int) -> Audio:
    """A music box: a sine and the first overtones of a struck bar, 2.76 and 5.40 times its pitch."""
    t, x = _times(2.0), _phase(pitch, 2.0)
    ring = np.sin(x) * np.exp(-2.4 * t)
    for ratio, level, rate in ((2.76, 0.3, 7.0), (5.40, 0.15, 16.0)):
        if ratio * _hertz(pitch) < HIGHEST_HZ:
            ring += level * np.sin(ratio * x) * np.exp(-rate * t)
    return _fade(0.42 * ring, attack=0.001)


def flute(pitch: int) -> Audio:
    """A soft attack, few harmonics, vibrato that sets in after 0.3 s."""
    t = _times(2.4)
    vibrato = 0.2 * np.sin(2 * np.pi * 5.0 * t) * np.clip(2 * (t - 0.3), 0, 1)
    return _fade(0.34 * _sum_of_sines(pitch + vibrato, (1.0, 0.3, 0.12, 0.04)), attack=0.04)


def theremin(pitch: int, interval: int) -> Audio:
    """A tone that slides by `interval` semitones into its pitch within 0.9 s, then a vibrato."""
    t = _times(2.6)
    slide = interval * (0.5 + 0.5 * np.cos(np.pi * np.clip(t / 0.9, 0, 1)))
    vibrato = 0.25 * np.sin(2 * np.pi * 5.5 * t) * np.clip(t - 1.2, 0, 1)
    return _fade(0.36 * _sum_of_sines(pitch - slide + vibrato, (1.0, 0.35, 0.15)), attack=0.03, release=0.1)


def kick() -> Audio:
    t = _times(0.36)
    return _fade(np.sin(2 * np.pi * 47.6 * t - 14 * np.exp(-32 * t)) * np.exp(-11 * t))


def snare() -> Audio:
    t = _times(0.28)
    return _fade(0.26 * _noise(t, 1) * np.exp(-20 * t) + 0.4 * np.sin(2 * np.pi * 190.4 * t) * np.exp(-26 * t))


def clap() -> Audio:
    t = _times(0.25)
    bursts = sum((t >= start) * np.exp(-60 * np.clip(t - start, 0, None)) for start in (0.0, 0.011, 0.023))
    return _fade(0.1 * _noise(t, 2, differences=1) * (bursts + 2 * np.exp(-18 * t)))


def closed_hat() -> Audio:
    t = _times(0.12)
    return _fade(0.06 * _noise(t, 3, differences=2) * np.exp(-55 * t))


def open_hat() -> Audio:
    t = _times(0.36)
    return _fade(0.06 * _noise(t, 4, differences=2) * np.exp(-9 * t))


def ride() -> Audio:
    t = _times(0.5)
    return _fade(
        0.045 * _noise(t, 5, differences=2) * np.exp(-12 * t) + 0.03 * np.sin(2 * np.pi * 4730 * t) * np.exp(-9 * t)
    )


def crash() -> Audio:
    t = _times(1.4)
    return _fade(0.12 * _noise(t, 6, differences=1) * np.exp(-3.2 * t))


def low_tom() -> Audio:
    return _tom(84.8)


def high_tom() -> Audio:
    return _tom(142.7)


INSTRUMENTS: dict[str, Instrument] = {
    "piano": Instrument(piano, 36, 88),
    "electric piano": Instrument(electric_piano, 40, 88),
    "organ": Instrument(organ, 36, 84),
    "pad": Instrument(pad, 43, 81),
    "plucked string": Instrument(plucked_string, 40, 88),
    "upright bass": Instrument(upright_bass, 28, 52),
    "sub bass": Instrument(sub_bass, 28, 52),
    "synth bass": Instrument(synth_bass, 28, 52),
    "synth lead": Instrument(synth_lead, 48, 88),
    "square wave": Instrument(square_wave, 48, 96),
    "triangle wave": Instrument(triangle_wave, 28, 72),
    "distorted guitar": Instrument(distorted_guitar, 36, 59),
    "bell": Instrument(bell, 48, 96),
    "flute": Instrument(flute, 60, 91),
    "theremin": Instrument(lambda pitch: theremin(pitch, 0), 57, 88),
}
DRUMS: dict[str, Callable[[], Audio]] = {
    "kick": kick,
    "snare": snare,
    "clap": clap,
    "closed hat": closed_hat,
    "open hat": open_hat,
    "ride": ride,
    "crash": crash,
    "low tom": low_tom,
    "high tom": high_tom,
}
SLIDES = tuple(interval for interval in range(-9, 10) if interval)
"""Semitones by which a theremin slides up into a note; negative: down"""

Note = tuple[str, int, int]
"""Instrument or drum, MIDI pitch (0 for drums), semitones of the slide into it"""

NOTES: tuple[Note, ...] = (
    *((name, pitch, 0) for name, of in INSTRUMENTS.items() for pitch in range(of.lowest, of.highest + 1)),
    *(("theremin", pitch, slide) for pitch in range(57, 89) for slide in SLIDES),
    *((drum, 0, 0) for drum in DRUMS),
)
"""All sounds; events refer to them by index"""

INDEX: dict[Note, int] = {note: index for index, note in enumerate(NOTES)}


def note_frames(note: Note) -> NDArray[np.float32]:
    """Return the audio of a note in codec frames of 20 ms, [frames, 640], the last one filled with silence."""
    name, pitch, slide = note
    if name in DRUMS:
        audio = DRUMS[name]()
    elif slide:
        audio = theremin(pitch, slide)
    else:
        audio = INSTRUMENTS[name].play(pitch)
    missing = -len(audio) % SAMPLES_PER_FRAME
    return np.pad(audio, (0, missing)).reshape(-1, SAMPLES_PER_FRAME).astype(np.float32)


def _times(seconds: float) -> Audio:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _hertz(pitch: float) -> float:
    return A4_HZ * 2.0 ** ((pitch - A4_MIDI) / 12)


def _phase(pitch: float, seconds: float) -> Audio:
    return 2 * np.pi * _hertz(pitch) * _times(seconds)


def _decay(seconds: float, rate: float) -> Audio:
    return np.exp(-rate * _times(seconds))


def _numbers(count: int) -> Audio:
    return np.arange(1.0, count + 1)


def _saw(pitch: float, cutoff_hz: float) -> Audio:
    """Return the amplitudes of a saw's harmonics after a low-pass filter of 12 dB per octave."""
    h = _numbers(min(120, int(4 * cutoff_hz / _hertz(pitch)) + 2))
    return 1 / h / (1 + (h * _hertz(pitch) / cutoff_hz) ** 2)


def _harmonics(pitch: float, seconds: float, amplitudes: Audio, damping: float = 0.0) -> Audio:
    """Sum sines at multiples of a pitch, of which the h-th decays with exp(-(h - 1) · damping · t)."""
    audible = amplitudes[: max(1, int(HIGHEST_HZ / _hertz(pitch)))]
    times = _times(seconds)
    phasor = np.exp((2j * np.pi * _hertz(pitch) - damping) * times).astype(np.complex64)
    total = np.zeros_like(phasor)
    for amplitude in audible[::-1].astype(np.float32):  # Horner's rule
        total += amplitude
        total *= phasor
    return total.imag.astype(np.float64) * np.exp(damping * times)


def _sum_of_sines(pitch: Audio, amplitudes: tuple[float, ...]) -> Audio:
    """Sum harmonics of a moving pitch, [samples]."""
    phase = 2 * np.pi * np.cumsum(A4_HZ * 2.0 ** ((pitch - A4_MIDI) / 12)) / SAMPLE_RATE
    return np.sum([level * np.sin(number * phase) for number, level in enumerate(amplitudes, start=1)], axis=0)


def _noise(times: Audio, seed: int, differences: int = 0) -> Audio:
    """Return white noise, or its n-th difference, which is brighter."""
    return np.diff(np.random.default_rng(seed).normal(size=len(times) + differences), n=differences)


def _cabinet(audio: Audio) -> Audio:
    """Low-pass filter like the loudspeaker of a guitar amplifier."""
    hertz = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    filtered: Audio = np.fft.irfft(np.fft.rfft(audio) / (1 + (hertz / 5000) ** 8), len(audio))
    return filtered


def _tom(hertz: float) -> Audio:
    t = _times(0.4)
    return _fade(0.7 * np.sin(2 * np.pi * hertz * t - 3 * np.exp(-20 * t)) * np.exp(-9 * t))


def _fade(audio: Audio, attack: float = 0.0005, release: float = 0.02) -> Audio:
    """Ramp the first and the last samples, so that nothing clicks; both in seconds."""
    rise, fall = round(attack * SAMPLE_RATE), round(release * SAMPLE_RATE)
    audio[:rise] *= np.linspace(0, 1, rise)
    audio[-fall:] *= np.linspace(1, 0, fall)
    return audio
