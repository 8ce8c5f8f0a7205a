"""Notes, key and slides from spectral peaks."""

from __future__ import annotations

import torch
from torch import Tensor

from musicgen_core.analysis.features import in_parts, magnitudes
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.music_theory import A4_HZ, A4_MIDI, PITCH_CLASSES, SCALES, Mode

WINDOW, HOP = 8192, 2048  # samples: windows of 256 ms, which resolve notes 4 Hz apart
LOWEST_HZ, HIGHEST_HZ = 100.0, 2000.0  # of notes; fundamentals are searched from 40 Hz on
PEAKS = 16  # the loudest of each spectrum
QUIETEST = 0.15  # of the loudest peak
SILENT = 1e-4  # -80 dB
HARMONICS = 10
SLIDE_FRAMES = 7  # of 20 ms
OFF_HARMONIC = 0.012  # a fifth of a semitone
OFF_PITCH = 0.3  # semitones from equal temperament with A = 440 Hz; peaks farther off are not notes

ROOT, TRIAD, SCALE = 5.0, 4.0, 3.0  # how often a key has its root, its third or fifth, another note of its scale


def pitch_classes(audio: Tensor) -> Tensor:
    """Return the share of each pitch class among the detected notes, [B, 12]; 0 in clips without notes.

    Notes are spectral peaks, in windows of 256 ms every 64 ms, that are not harmonics of a lower peak.
    """
    counts = chromagram(audio).sum(-1)
    return counts / counts.sum(1, keepdim=True).clamp(min=1e-9)


def chromagram(audio: Tensor) -> Tensor:
    """Return the number of notes of each pitch class, from C to B, in frames of 64 ms, [B, 12, frames]."""
    return in_parts(_chromagram, audio)


def share_in_key(classes: Tensor, root: int, mode: Mode) -> float:
    """Return the share of a clip's notes, [12], on the scale of a key; 7/12 for random notes."""
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

    A tone slides if it moves in one direction for 140 ms, by 0.025 to 1 semitone every 20 ms. Vibrato turns sooner.
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
    """Return frequency in Hz and level of the loudest peaks, both [B, frames, 16]; missing ones have level 0."""
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
    """Refine peaks [B, frames, N] of spectra [B, frames, bins] by parabolic interpolation of log magnitudes."""
    a, b, c = (spectrum.gather(-1, peaks + shift).log() for shift in (-1, 0, 1))
    return peaks + (0.5 * (a - c) / (a - 2 * b + c).clamp(max=-1e-6)).clamp(-1, 1)
