"""How well a generated sample came out, by measures of its sound: `--best-of` keeps the candidate with the best score.

    tempo       the prompt's tempo is met: 1 where it is exactly the measured one, or half or twice it, 0 from 10 % on
    key         the prompt's key is met: 1; half for its relative, which has the same notes; else 0
    nearness    to the music that the adapter has learned from: 1 / (1 + d), with d the mean squared distance of the
                sample's mean features from those of the training music, in variances of the latter, in musicnn's space
    repetition  1 less the share of code n-grams that repeat earlier ones (`repeated_share`)
    clipping    1 without clipped samples, 0 from 1 % on

The score is the mean of the measures that apply. Tempo and key are those that the text states in the words of captions,
`90 bpm` and `A minor`, and are measured as captions measure them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from musicgen_core.captioning.key import measure_key
from musicgen_core.captioning.levels import clipped_share
from musicgen_core.captioning.musicnn import Musicnn
from musicgen_core.captioning.tagger_features import WINDOW_SECONDS, window_features
from musicgen_core.captioning.tempo import measure_tempo
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.music_theory import PITCH_CLASSES, key_name, parse_key
from musicgen_core.ngrams import repeated_share

OFF_TEMPO = 0.1
MOST_CLIPPED = 0.01
RELATIVE_SEMITONES = 3
"""From the tonic of a minor key up to that of its relative major"""
_TEMPO = re.compile(r"(?<![\w.])(\d{2,3}(?:\.\d+)?) ?bpm\b", re.IGNORECASE)
_KEY = re.compile(r"\b[A-G][#♯b♭]? (?:major|minor)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Reference:
    """Features of the music that an adapter has learned from.

    Attributes:
        tagger: of the features.
        mean: [400].
        variance: [400].
    """

    tagger: Musicnn
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def reference_of(sounds: Sequence[NDArray[np.float32]], tagger: Musicnn) -> Reference:
    """Return mean and variance of the features of sounds [samples] at 32 kHz with at least two windows together."""
    features = window_features(tagger, sounds)
    variance = features.var(axis=0, ddof=1)
    return Reference(tagger, features.mean(axis=0), variance + 1e-3 * variance.mean())


def stated_tempo(text: str) -> float | None:
    """Return the last tempo that a text states in the words of captions, `90 bpm`; None if it states none."""
    found = _TEMPO.findall(text)
    return float(found[-1]) if found else None


def stated_key(text: str) -> str | None:
    """Return the last key that a text states in the words of captions, `A minor`; None if it states none."""
    found = _KEY.findall(text)
    return parse_key(found[-1]) if found else None


def measure(text: str, codes: Tensor, sound: Tensor, reference: Reference | str) -> tuple[float, dict[str, Any]]:
    """Return the score of a sample, and its measures: objects with a score, or the reason why one doesn't apply.

    Args:
        text: its prompt.
        codes: [K, frames].
        sound: [channels, samples], 32 kHz, as it is decoded.
        reference: the training music's features, or why there are none.
    """
    mono = sound.mean(dim=0, keepdim=True).float()
    found: dict[str, Any] = {
        "tempo": _tempo(mono, stated_tempo(text)),
        "key": _key(mono, stated_key(text)),
        "nearness": _nearness(mono, reference),
        "repetition": _repetition(codes),
        "clipping": _clipping(sound),
    }
    scores = [one["score"] for one in found.values() if isinstance(one, dict)]
    return round(sum(scores) / len(scores), 4), found


def _tempo(mono: Tensor, wanted: float | None) -> dict[str, Any] | str:
    if wanted is None:
        return "the prompt states no tempo"
    bpm = float(measure_tempo(mono).bpm[0])
    if math.isnan(bpm):
        return {"wanted": wanted, "measured": None, "score": 0.0}
    deviation = min(abs(bpm / (wanted * octave) - 1) for octave in (0.5, 1, 2))
    return {"wanted": wanted, "measured": round(bpm, 1), "score": round(max(0.0, 1 - deviation / OFF_TEMPO), 4)}


def _key(mono: Tensor, wanted: str | None) -> dict[str, Any] | str:
    if wanted is None:
        return "the prompt states no key"
    key = measure_key(mono)
    root, is_minor = int(key.root[0]), bool(key.minor[0])
    if root < 0:
        return {"wanted": wanted, "measured": None, "score": 0.0}
    relative = (root + (RELATIVE_SEMITONES if is_minor else -RELATIVE_SEMITONES)) % PITCH_CLASSES
    measured = key_name(root, "minor" if is_minor else "major")
    score = {measured: 1.0, key_name(relative, "major" if is_minor else "minor"): 0.5}.get(wanted, 0.0)
    return {"wanted": wanted, "measured": measured, "score": score}


def _nearness(mono: Tensor, reference: Reference | str) -> dict[str, Any] | str:
    if isinstance(reference, str):
        return reference
    if mono.shape[-1] < WINDOW_SECONDS * SAMPLE_RATE:
        return f"the sample is shorter than {WINDOW_SECONDS} s"
    mean = window_features(reference.tagger, [mono[0].cpu().numpy()]).mean(axis=0)
    distance = float((np.square(mean - reference.mean) / reference.variance).mean())
    return {"distance": round(distance, 4), "score": round(1 / (1 + distance), 4)}


def _repetition(codes: Tensor) -> dict[str, Any]:
    share = repeated_share(codes[0].cpu().numpy().astype(np.uint16))
    return {"share": round(share, 4), "score": round(1 - share, 4)}


def _clipping(sound: Tensor) -> dict[str, Any]:
    share = float(clipped_share(sound.float().clamp(-1, 1)).mean())
    return {"share": round(share, 6), "score": round(max(0.0, 1 - share / MOST_CLIPPED), 4)}
