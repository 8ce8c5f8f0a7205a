"""Notes, key and slides, from the peaks of spectra."""

from __future__ import annotations

import torch
from torch import Tensor

from musicgen_core.analysis.spectra import in_parts, magnitudes
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.music_theory import A4_HZ, A4_MIDI, PITCH_CLASSES, SCALES, Mode

WINDOW, HOP = 8192, 2048  # samples: 256 ms, within which notes are told apart by 4 Hz
LOWEST_HZ, HIGHEST_HZ = 100.0, 2000.0  # of notes; fundamentals are looked for from 40 Hz on
PEAKS = 16  # the loudest of each spectrum
QUIETEST = 0.15  # of the loudest peak
SILENT = 1e-4  # -80 dB
HARMONICS = 10
SLIDE_FRAMES = 7  # of 20 ms
OFF_HARMONIC = 0.012  # a fifth of a semitone
OFF_PITCH = 0.3  # semitones from the equal temperament of A = 440 Hz; what lies between its pitches is no note

ROOT, TRIAD, SCALE = 5.0, 4.0, 3.0  # how often a key has its root, its third or fifth, another note of its scale


def pitch_classes(audio: Tensor) -> Tensor:
    """Return the share of each pitch class among the notes that are found, [B, 12]; 0 in clips without any.

    Notes are the peaks of spectra of 256 ms, 64 ms apart, that are not harmonics of a lower peak.
    """
    counts = chromagram(audio).sum(-1)
    return counts / counts.sum(1, keepdim=True).clamp(min=1e-9)


def chromagram(audio: Tensor) -> Tensor:
    """Return how many notes of each pitch class, from C to B, sound in each 64 ms, [B, 12, frames]."""
    return in_parts(_chromagram, audio)


def share_in_key(classes: Tensor, root: int, mode: Mode) -> float:
    """Return the share of a clip's notes, [12], that lie on the scale of a key; of random notes 7/12 do."""
    return float(sum(classes[(root + step) % PITCH_CLASSES] for step in SCALES[mode]))


def estimate_key(classes: Tensor) -> tuple[int, Mode]:
    """Return the root and mode whose scale and tonic triad correlate best with the notes of a clip, [12].

    A few bars often fit several keys: a key and its relative (C major, A minor), or neighbours in the circle of fifths.
    """
    centred = classes - classes.mean()
    scores: dict[tuple[int, Mode], float] = {}
    for mode, scale in SCALES.items():
        expected = torch.zeros(PITCH_CLASSES)
        expected[list(scale)] = SCALE
        expected[[scale[2], scale[4]]] = TRIAD
        expected[0] = ROOT
        expected = ((expected - expected.mean()) / expected.std()).to(classes)
        scores |= {(root, mode): float(centred @ expected.roll(root)) for root in range(PITCH_CLASSES)}
    return max(scores, key=scores.__getitem__)


def slides(audio: Tensor) -> Tensor:
    """Return the share of time in which the loudest tone between 250 and 2,500 Hz slides, [B].

    It does where it moves in one direction for 140 ms, by 0.025 to 1 semitone every 20 ms. Vibrato turns sooner.
    """
    return in_parts(_slides, audio)


def _chromagram(audio: Tensor) -> Tensor:
    hertz, level = _peaks(audio)
    loud = level > QUIETEST * level.amax(-1, keepdim=True)
    ratio = hertz[..., :, None] / hertz[..., None, :].clamp(min=1)  # [B, frames, peak, possible fundamental]
    number = ratio.round()
    harmonic = ((ratio / number.clamp(min=1) - 1).abs() < OFF_HARMONIC) & (number >= 2) & (number <= HARMONICS)
    overtone = (harmonic & loud[..., None, :]).any(-1)
    pitch = PITCH_CLASSES * (hertz.clamp(min=1) / A4_HZ).log2() + A4_MIDI
    in_tune = (pitch - pitch.round()).abs() < OFF_PITCH
    notes = loud & in_tune & ~overtone & (hertz > LOWEST_HZ) & (level > SILENT)
    classes = pitch.round().long() % PITCH_CLASSES  # [B, frames, peak]
    counts = torch.zeros(*classes.shape[:2], PITCH_CLASSES, device=audio.device)
    return counts.scatter_add_(2, classes, notes.float()).transpose(1, 2)


def _peaks(audio: Tensor) -> tuple[Tensor, Tensor]:
    """Return frequency in Hz and level of the loudest peaks of each spectrum, both [B, frames, 16]; level 0: none."""
    bins = WINDOW / SAMPLE_RATE
    low, high = int(40 * bins), int(HIGHEST_HZ * bins)
    spectrum = magnitudes(audio, WINDOW, HOP).transpose(1, 2).clamp(min=1e-9)
    before, here, after = (spectrum[..., low + shift : high + shift] for shift in (-1, 0, 1))
    is_peak = (here > before) & (here >= after)
    level, index = (here * is_peak).topk(PEAKS, dim=-1)
    return _exact_bins(spectrum, index + low) / bins, level


def _slides(audio: Tensor) -> Tensor:
    window = 4096  # 128 ms: in shorter ones the peak between two bins isn't found exactly enough
    bins = window / SAMPLE_RATE
    low, high = round(250 * bins), round(2500 * bins)
    spectrum = magnitudes(audio, window, SAMPLE_RATE // 50).transpose(1, 2).clamp(min=1e-9)
    level, index = spectrum[..., low:high].max(-1)
    exact = _exact_bins(spectrum, index[..., None] + low)[..., 0]
    moved = PITCH_CLASSES * exact.log2().diff(dim=-1)  # semitones
    runs = []
    for direction in (1, -1):
        moves = (direction * moved > 0.025) & (direction * moved < 1.0)
        runs.append(moves.unfold(-1, SLIDE_FRAMES, 1).all(-1))
    loud = level[:, SLIDE_FRAMES:] > 0.1 * level.amax(1, keepdim=True)
    return ((runs[0] | runs[1]) & loud).sum(1) / loud.sum(1).clamp(min=1)


def _exact_bins(spectrum: Tensor, peaks: Tensor) -> Tensor:
    """Peaks [B, frames, N] of spectra [B, frames, bins] → those of the parabolas through their logarithms."""
    a, b, c = (spectrum.gather(-1, peaks + shift).log() for shift in (-1, 0, 1))
    return peaks + (0.5 * (a - c) / (a - 2 * b + c).clamp(max=-1e-6)).clamp(-1, 1)
