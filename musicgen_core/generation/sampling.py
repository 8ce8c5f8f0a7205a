"""Sample the next codes of a batch from logits: guidance, temperature, top-k and top-p."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from musicgen_core.codes import CodeShape
from musicgen_core.config import SamplingSettings
from musicgen_core.model.decoder import Condition, delay


def guide(conditional: Tensor, unconditional: Tensor, coefficient: float) -> Tensor:
    """Return logits after classifier-free guidance, of any shape.

    Source: Ho & Salimans 2022; audiocraft `_sample_next_token`.
    """
    return unconditional + (conditional - unconditional) * coefficient


def sample(logits: Tensor, settings: SamplingSettings, noise: Tensor) -> Tensor:
    """Sample codes.

    Args:
        logits: [..., cardinality].
        settings: sampling settings.
        noise: [...], uniform on [0, 1), one draw per code, the only source of randomness: a prompt's codes don't depend
            on the rest of the batch.

    Returns:
        [...], int64.
    """
    if settings.greedy:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / settings.temperature, dim=-1)
    keep = min(settings.top_k, logits.shape[-1])
    if settings.top_p == 0 and keep > 0:
        ordered, codes = probabilities.topk(keep, dim=-1)
    else:
        ordered, codes = probabilities.sort(dim=-1, descending=True, stable=True)
    if settings.top_p > 0:
        # Keep codes until the probability before them reaches top_p, like audiocraft's sample_top_p.
        ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered > settings.top_p, 0)
    cumulative = ordered.cumsum(dim=-1)
    threshold = noise[..., None] * cumulative[..., -1:]
    # The first code whose cumulative probability exceeds the threshold: its own probability is above 0.
    chosen = (cumulative <= threshold).sum(dim=-1, keepdim=True).clamp(max=ordered.shape[-1] - 1)
    return codes.gather(-1, chosen)[..., 0]


@dataclass(frozen=True)
class Window:
    """A batch of samples within the model's context, and how to generate it.

    Attributes:
        condition: [2 B, …], the prompts' conditions and as many of their negative prompts, or null conditions.
        known: [B, K, P], the codes of the first frames, which are given.
        frames: [B], the final length of each sample, from P up to what `noise` suffices for.
        noise: [B, K, steps], see `sample`; the draws of a codebook's frame f are at step f + its delay.
        shape: of the codes.
        settings: sampling settings.
        guidance: the coefficient of classifier-free guidance.
    """

    condition: Condition
    known: Tensor
    frames: Tensor
    noise: Tensor
    shape: CodeShape
    settings: SamplingSettings
    guidance: float

    @property
    def given(self) -> int:
        """Frames that are known, and so the steps that need not be generated."""
        return self.known.shape[-1]

    def delayed_sequence(self) -> Tensor:
        """Return the delayed sequence [B, K, steps + 1] with the known codes in it, and special codes elsewhere."""
        return delay(self.known, self.shape, steps=self.noise.shape[-1] + 1)

    def choose(self, logits: Tensor, noise: Tensor, position: int, current: Tensor) -> Tensor:
        """Return the codes of the step after `position`.

        Args:
            logits: [2 B, K, cardinality].
            noise: [B, K].
            position: the step that was read last.
            current: [B, K], the next step's codes so far, which are kept where there is no frame to fill.

        Returns:
            [B, K], int64.
        """
        conditional, unconditional = logits.chunk(2)
        chosen = sample(guide(conditional, unconditional, self.guidance), self.settings, noise)
        frame = position - torch.tensor(self.shape.delays, device=current.device)  # of each codebook in that step
        return chosen.where((frame >= self.given) & (frame < self.frames[:, None]), current)
