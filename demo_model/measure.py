"""Figures of clips beside the parameters that were asked for: style, tempo, metre, key, drums, all from audio alone.

    uv run python -m demo_model.measure --clips 40

prints what synthesized clips reach, which is the most that a model can, and what chance does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from musicgen_core.analysis.classifier import Classifier, features
from musicgen_core.analysis.distances import frechet_distance_diagonal
from musicgen_core.analysis.harmony import estimate_key, pitch_classes, share_in_key, slides
from musicgen_core.analysis.rhythm import meters, tempo_matches, tempos
from musicgen_core.synthesis.captions import Truth
from musicgen_core.synthesis.composing import Clip, compose_many
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.synthesis.styles import ALL_STYLES

SLIDING = 0.1  # share of the time; of all styles only a theremin reaches it
Figures = dict[str, float]


class Judge:
    """Measures music; styles and drums are recognised by classifiers that are fitted to reference clips."""

    def __init__(self, truths: Sequence[Truth], *renderings: Tensor) -> None:
        """Fit to reference clips.

        Args:
            truths: of the clips [N].
            renderings: their audio, each [N, samples]: as synthesized, and as the codec decodes it.
        """
        reference = [features(audio) for audio in renderings]
        self._features = reference[0]
        self._styles = Classifier(torch.cat(reference), [truth.style for truth in truths] * len(reference))
        self._drums = Classifier(torch.cat(reference), [str(truth.drums) for truth in truths] * len(reference))

    def styles(self, audio: Tensor) -> list[str]:
        """Return the style that each clip sounds like most."""
        return self._styles.classify(features(audio))

    def measure(self, audio: Tensor, truths: Sequence[Truth]) -> Figures:
        """Return the share of clips [B, samples] that are as they were asked for, from 0 to 1.

        Tempo and metre are measured where there is a beat, the key where there are notes. `by chance` is what the
        same clips reach against the parameters of others. `in key` is the mean share of notes on the scale. Fréchet's
        distance is that to the reference clips.
        """
        given = features(audio)
        shuffled = np.random.default_rng(0).permutation(len(truths))
        beats = [index for index, truth in enumerate(truths) if truth.beat]
        notes = [index for index, truth in enumerate(truths) if truth.pitched]
        bpm, meter = tempos(audio).tolist(), meters(audio).tolist()
        classes = pitch_classes(audio).cpu()
        other = [truths[index] for index in shuffled]
        return {
            "style": _share(of == truth.style for of, truth in zip(self._styles.classify(given), truths, strict=True)),
            "drums": _share(
                of == str(truth.drums) for of, truth in zip(self._drums.classify(given), truths, strict=True)
            ),
            "tempo": _share(tempo_matches(bpm[index], truths[index].bpm) for index in beats),
            "tempo by chance": _share(tempo_matches(bpm[index], other[index].bpm) for index in beats),
            "metre": _share(meter[index] == truths[index].meter for index in beats),
            "metre by chance": _share(meter[index] == other[index].meter for index in beats),
            "in key": _share(share_in_key(classes[i], truths[i].root, truths[i].mode) for i in notes),
            "in key by chance": _share(share_in_key(classes[i], other[i].root, other[i].mode) for i in notes),
            "key": _share(estimate_key(classes[i]) == (truths[i].root, truths[i].mode) for i in notes),
            "slides": _share((slides(audio) > SLIDING).tolist()),
            "fréchet": frechet_distance_diagonal(self._features, given),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40, help="of each style")
    parser.add_argument("--frames", type=int, default=500, help="of 20 ms, of each clip")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    bank = SoundBank(options.device)
    reference, audio = _rendered(bank, options.clips, first_seed=60_000_000, frames=options.frames)
    judge = Judge([clip.truth for clip in reference], audio)
    start = time.monotonic()
    clips, audio = _rendered(bank, options.clips, first_seed=70_000_000, frames=options.frames)
    seconds = time.monotonic() - start
    rows = {"all": judge.measure(audio, [clip.truth for clip in clips])}
    for style in ALL_STYLES:
        of_style = [index for index, clip in enumerate(clips) if clip.truth.style == style]
        rows[style] = judge.measure(audio[of_style], [clips[index].truth for index in of_style])
    print(f"{len(clips)} clips composed and rendered in {1e3 * seconds / len(clips):.0f} ms each")
    print(f"| {'':10s} | " + " | ".join(rows["all"]) + " |\n" + "|---" * (len(rows["all"]) + 1) + "|")
    for name, figures in rows.items():
        print(f"| {name:10s} | " + " | ".join(f"{figure:.2f}" for figure in figures.values()) + " |")


def _rendered(bank: SoundBank, clips: int, first_seed: int, frames: int) -> tuple[list[Clip], Tensor]:
    composed = [
        clip
        for number, style in enumerate(ALL_STYLES)
        for clip in compose_many(clips, first_seed + number * clips, style, frames, full_caption=True)
    ]
    parts = [bank.render(composed[start : start + 32], frames) for start in range(0, len(composed), 32)]
    return composed, torch.cat(parts)


def _share(figures: Iterable[float]) -> float:
    """The mean, or NaN of none."""
    values = list(figures)
    return sum(values) / len(values) if values else float("nan")


if __name__ == "__main__":
    main()
