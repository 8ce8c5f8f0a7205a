"""Key from the pitch classes of spectral peaks, for any tuning.

A clip's chroma is correlated with the profile of each key (Krumhansl 1990, "Cognitive Foundations of Musical Pitch",
chapter 4). A key and its relative (C major, A minor) have the same notes, often even the same chords, so the bass
counts a second time, and most at the start of a clip: pieces tend to begin on the tonic.

The profile is the tonic triad over the natural scale. On synthesized music, whose minor is natural, as in most popular
music, it is right more often with this chroma than the profiles of Krumhansl and Kessler (1982), Temperley (2007),
Albrecht and Shanahan (2013) and Sha'ath (2011).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from musicgen_core.captioning.spectra import in_parts, power_spectra
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.music_theory import A4_HZ, A4_MIDI, PITCH_CLASSES, SCALES, Mode

WINDOW, HOP = 16_384, 6_400  # samples at 32 kHz: 512 ms every 200 ms; resolves semitones from 65 Hz on
LOWEST_HZ, HIGHEST_HZ = 50.0, 2_000.0
PEAKS = 24  # the loudest of each spectrum
QUIETEST, QUIETEST_BASS = 0.03, 0.15  # of the loudest peak of the frame
SILENT = 0.003  # of the loudest peak of the clip
HIGHEST_BASS_HZ = 400.0
HARMONICS, OFF_HARMONIC = 10, 0.012  # of a lower peak; a fifth of a semitone
FUNDAMENTAL = 0.3  # of the level of its harmonics, at least
OVERTONE = 0.3  # weight of a peak that is a harmonic of another
OFF_PITCH = 0.35  # semitones from the nearest note of the clip's tuning; peaks farther off are not notes

ROOT, TRIAD, SCALE = 5.0, 4.0, 3.0  # profile of a key: its tonic, its third and fifth, the rest of its scale
BASS_PROFILE = (2.0, 0.5)  # tonic, fifth
BASS, FIRST_BASS = 0.03, 0.07  # weights of their correlations; that of the chroma is 1
FIRST_FRAMES = 5  # a second

UNTUNED, TUNED = 0.3, 0.4  # agreement of the peaks with a tuning: below for drums and noise, above for notes
CERTAIN = 0.2  # margin above which the best key of a synthesized clip is nearly always right
MODES: tuple[Mode, ...] = ("major", "minor")


class Key(NamedTuple):
    """Key of each clip.

    Attributes:
        root: pitch class, [B], 0 for C; -1 where the clip has no notes, as percussion, speech and noise.
        minor: whether the mode is minor rather than major, [B].
        confidence: from 0 to 1, [B]: the margin between the correlations of the best and the next key, scaled. Low
            mostly between relatives.
    """

    root: Tensor
    minor: Tensor
    confidence: Tensor


def measure_key(audio: Tensor) -> Key:
    """Measure the key of mono audio at 32 kHz, [B, samples]."""
    hertz, level = in_parts(_peaks, audio).unbind(1)
    tuning, agreement = _tuning(hertz, level)
    chroma, bass = _pitch_classes(hertz, level, tuning)
    first = bass * (bass.sum(2).cumsum(1) <= FIRST_FRAMES)[..., None]
    scores = _correlation(chroma.sum(1), _scale_profiles(audio.device))
    for weight, counts in ((BASS, bass), (FIRST_BASS, first)):
        scores = scores + weight * _correlation(counts.sum(1), _bass_profiles(audio.device))
    best, index = scores.topk(2, dim=1)
    tonal = ((agreement - UNTUNED) / (TUNED - UNTUNED)).clamp(0, 1)
    confidence = tonal * ((best[:, 0] - best[:, 1]) / CERTAIN).clamp(max=1)
    key = index[:, 0]
    return Key(torch.where(tonal > 0, key % PITCH_CLASSES, -1), key >= PITCH_CLASSES, confidence)


def _peaks(audio: Tensor) -> Tensor:
    """Return frequency in Hz and level of the loudest spectral peaks, [B, 2, frames, 24]; missing ones have level 0."""
    bins = WINDOW / SAMPLE_RATE
    low, high = int(LOWEST_HZ * bins), math.ceil(HIGHEST_HZ * bins)
    spectra = power_spectra(audio, WINDOW, HOP)[:, low - 1 : high + 1].transpose(1, 2)
    before, here, after = spectra[..., :-2], spectra[..., 1:-1], spectra[..., 2:]
    level, index = (here * ((here > before) & (here >= after))).topk(PEAKS, dim=-1)
    a, b, c = (spectra.gather(-1, index + shift).clamp(min=1e-30).log() for shift in (0, 1, 2))
    offset = (0.5 * (a - c) / (a - 2 * b + c).clamp(max=-1e-6)).clamp(-1, 1)  # vertex of a parabola
    return torch.stack([(index + low + offset) / bins, level.sqrt()], dim=1)


def _tuning(hertz: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Return the deviation from A = 440 Hz in semitones, -0.5 to 0.5, and how well peaks agree with it, 0 to 1, [B]."""
    angles = 2 * math.pi * _pitch(hertz)
    weight = level * ((hertz > 100) & (hertz < 1500))
    x, y = ((weight * part).sum((1, 2)) for part in (angles.cos(), angles.sin()))
    return torch.atan2(y, x) / (2 * math.pi), torch.hypot(x, y) / weight.sum((1, 2)).clamp(min=1e-12)


def _pitch_classes(hertz: Tensor, level: Tensor, tuning: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight of each pitch class in each frame, and the class of its lowest note, both [B, frames, 12]."""
    loudest = level.amax(-1, keepdim=True)
    loudest_of_clip = level.amax((1, 2), keepdim=True)
    sounds = (level > QUIETEST * loudest) & (level > SILENT * loudest_of_clip)
    ratio = hertz[..., :, None] / hertz[..., None, :]  # [B, frames, peak, possible fundamental]
    number = ratio.round().clamp(1, HARMONICS + 1)
    harmonic = ((ratio / number - 1).abs() < OFF_HARMONIC) & (number >= 2) & (number <= HARMONICS)
    loud_enough = level[..., None, :] > FUNDAMENTAL * level[..., :, None]
    overtone = (harmonic & loud_enough & sounds[..., None, :]).any(-1)
    pitch = _pitch(hertz) - tuning[:, None, None]
    in_tune = (pitch - pitch.round()).abs() < OFF_PITCH
    weight = (sounds & in_tune) * (level / loudest.clamp(min=1e-12)).sqrt() * torch.where(overtone, OVERTONE, 1.0)
    weight = weight * (loudest / loudest_of_clip.clamp(min=1e-12)).sqrt()
    classes = pitch.round().long() % PITCH_CLASSES
    chroma = torch.zeros(*level.shape[:2], PITCH_CLASSES, device=level.device).scatter_add_(2, classes, weight)

    could_be_bass = sounds & (level > QUIETEST_BASS * loudest) & (hertz < HIGHEST_BASS_HZ)
    lowest, index = torch.where(could_be_bass, hertz, torch.inf).min(-1, keepdim=True)
    bass = F.one_hot(classes.gather(-1, index)[..., 0], PITCH_CLASSES) * lowest.isfinite()
    return chroma, bass.float()


def _pitch(hertz: Tensor) -> Tensor:
    return PITCH_CLASSES * (hertz / A4_HZ).log2() + A4_MIDI


def _scale_profiles(device: torch.device) -> Tensor:
    """Return the expected chroma of each key, [24, 12]: major from C to B, then minor."""
    profiles = []
    for mode in MODES:
        scale = SCALES[mode]
        profile = torch.zeros(PITCH_CLASSES, device=device)
        profile[list(scale)] = SCALE
        profile[[scale[2], scale[4]]] = TRIAD
        profile[0] = ROOT
        profiles += [profile.roll(root) for root in range(PITCH_CLASSES)]
    return torch.stack(profiles)


def _bass_profiles(device: torch.device) -> Tensor:
    """Return the expected bass of each key, [24, 12]."""
    profile = torch.zeros(PITCH_CLASSES, device=device)
    profile[[0, 7]] = torch.tensor(BASS_PROFILE, device=device)
    return torch.stack([profile.roll(root) for _ in MODES for root in range(PITCH_CLASSES)])


def _correlation(counts: Tensor, profiles: Tensor) -> Tensor:
    """Return Pearson's correlation of [B, 12] with each of the profiles [K, 12], [B, K]; 0 for constant counts."""
    centred, expected = (values - values.mean(-1, keepdim=True) for values in (counts, profiles))
    return F.normalize(centred, dim=-1) @ F.normalize(expected, dim=-1).T
