"""Music tagger for any labels: zero-shot classification by a CLAP model (Wu et al. 2023, arXiv:2211.06687).

The labels of a category are written as sentences, and each sentence's embedding is compared with that of the clip. The
softmax of the similarities, multiplied by the factor that the model was trained with, gives the probability that the
clip is described by that sentence rather than by the others. So probabilities of a category sum to 1: of two
instruments that are heard alike each has at most a half, and the more labels there are, the lower each of them is.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from musicgen_core.captioning.taggers import OPTION, ChosenTagger
from musicgen_core.model.clap import Clap
from musicgen_core.music_tags import Category, Tag, without_contradictions

TEMPLATES: dict[Category, str] = {
    "genre": "This audio is a {label} song.",
    "instruments": "This is a sound of {label}.",
    "mood": "This is {label} music.",
    "vocals": "This is a song with {label}.",
}
"""Sentences of the labels; that of instruments is the one by which CLAP models are usually evaluated on sounds"""

LEAST_RATIO = 3.0
"""A label counts if it is at least so many times as probable as the others of its category are on average.

Of 36 genres these are the ones above 0.08, of 4 kinds of vocals the one above 0.5. The ratio doesn't depend on how
many labels there are. It was not fitted to labelled music.
"""


class ClapTagger:
    """A CLAP model with labels.

    Raises:
        ModelError: there are no usable weights.
    """

    def __init__(self, chosen: ChosenTagger, device: torch.device) -> None:
        assert chosen.clap is not None
        self._clap = Clap(chosen.clap, OPTION)
        self._clap.to(device)
        self.name, self.rate = chosen.name, self._clap.rate
        self._labels = chosen.labels
        self._texts = {
            category: torch.from_numpy(
                self._clap.of_texts([TEMPLATES[category].format(label=label) for label in labels]).astype(np.float32)
            ).to(device)  # [labels, D]
            for category, labels in chosen.labels
        }

    @torch.inference_mode()
    def tag(self, audio: Tensor) -> list[list[Tag]]:
        """Return the tags of each clip of mono audio at `rate`, [B, samples]."""
        sounds = F.normalize(self._clap.of_batch(audio), dim=1)  # [B, D]
        found: list[list[Tag]] = [[] for _ in audio]
        for category, labels in self._labels:
            probabilities = (self._clap.logit_scale * sounds @ self._texts[category].T).softmax(dim=1)
            for tags, values in zip(found, probabilities.tolist(), strict=True):
                tags += choose_labels(category, labels, values)
        return found


def choose_labels(category: Category, labels: tuple[str, ...], probabilities: list[float]) -> list[Tag]:
    """Return the tags of a clip in a category, the most probable first, by `LEAST_RATIO`."""
    others = len(labels) - 1
    return without_contradictions(
        category,
        [
            Tag(category, label, probability)
            for label, probability in zip(labels, probabilities, strict=True)
            if probability * others >= LEAST_RATIO * (1 - probability)
        ],
    )
