"""A linear classifier of clips, fitted to reference clips of known classes.

It distinguishes only the classes that it was fitted to. Fit it also to clips that went through the codec, so that it
doesn't mistake codec artifacts for a difference between classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from musicgen_core.analysis.spectra import log_mel, onsets

PENALTY = 3.0
LARGEST = 5.0  # standard deviations


def features(audio: Tensor) -> Tensor:
    """Return the level, variation and onset strength of each mel band, [B, 256]."""
    mel = log_mel(audio)
    rises = onsets(mel)
    return torch.cat([mel.mean(-1), mel.std(-1), rises.mean(-1), rises.std(-1)], dim=1)


class Classifier:
    """Ridge regression of one-hot classes on standardized features."""

    def __init__(self, reference: Tensor, labels: Sequence[str]) -> None:
        """Fit to the features [N, D] of clips with these labels [N]."""
        self.classes = sorted(set(labels))
        self._mean, self._deviation = reference.mean(0), reference.std(0) + 1e-3
        inputs = self._standardized(reference)
        one_hot = torch.tensor([[float(label == of) for of in self.classes] for label in labels]).to(inputs)
        penalty = PENALTY * torch.eye(inputs.shape[1]).to(inputs)
        self._weights = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ one_hot)

    def classify(self, given: Tensor) -> list[str]:
        """Return the class of each clip from its features, [N, D]."""
        scores = self._standardized(given) @ self._weights
        return [self.classes[index] for index in scores.argmax(1).tolist()]

    def _standardized(self, given: Tensor) -> Tensor:
        scaled = ((given - self._mean) / self._deviation).double().clamp(-LARGEST, LARGEST)
        return torch.nn.functional.pad(scaled, (0, 1), value=1.0)  # a constant
