"""Codes from prompts, one column of the delay pattern at a time, with keys and values kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.errors import Cancelled
from musicgen_core.generation.sampling import guide, sample
from musicgen_core.model.decoder import MusicgenLM, TextCondition
from musicgen_core.model.pattern import undelay
from musicgen_core.model.text import TextEncoder


@dataclass(frozen=True)
class Engine:
    """A language model ready to generate.

    Attributes:
        lm: the model, any adapter merged.
        text: its text encoder.
        guidance: the coefficient where the settings give none.
    """

    lm: MusicgenLM
    text: TextEncoder
    guidance: float

    def coefficient(self, settings: SamplingSettings) -> float:
        """How strongly the text guides with these settings."""
        return self.guidance if settings.guidance is None else settings.guidance

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str | None],
        settings: SamplingSettings,
        streams: Sequence[int],
        on_step: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Tensor:
        """Generate for prompts side by side.

        Args:
            prompts: texts; None generates without one.
            streams: a seed for each prompt's own random stream.
            on_step: called after each step with the steps done and in all.
            cancelled: asked before each step.

        Returns:
            codes [prompts, 4, frames], int64, on the CPU.

        Raises:
            Cancelled: `cancelled` said so.
        """
        config = self.lm.config
        frames = max(1, round(settings.duration * FRAME_RATE))
        steps = frames + config.codebooks - 1  # the last column is predicted, never fed
        text = self._with_null(self.text.encode(prompts))
        caches, mask = self.lm.new_cache(text, steps)
        noise = _noise(streams, config.codebooks, steps).to(mask.device)
        sequence = torch.full(
            (len(prompts), config.codebooks, steps + 1), config.special, dtype=torch.int64, device=mask.device
        )
        guidance = self.coefficient(settings)
        for position in range(steps):
            if cancelled():
                raise Cancelled(f"generating was cancelled at step {position} of {steps}")
            column = sequence[:, :, position : position + 1]
            logits = self.lm.step(torch.cat([column, column]), caches, mask, position)  # [2B, K, cardinality]
            conditional, unconditional = logits.chunk(2)
            chosen = sample(guide(conditional, unconditional, guidance), settings, noise[:, :, position])  # [B, K]
            first = max(0, position - frames + 1)  # codebooks first…last have a frame in the next column
            last = min(config.codebooks - 1, position)
            sequence[:, first : last + 1, position + 1] = chosen[:, first : last + 1]
            on_step(position + 1, steps)
        return undelay(sequence, frames).cpu()

    @staticmethod
    def _with_null(text: TextCondition) -> TextCondition:
        """The prompts' conditions followed by as many null conditions."""
        return TextCondition(
            torch.cat([text.states, torch.zeros_like(text.states)]),
            torch.cat([text.mask, torch.zeros_like(text.mask)]),
        )


def _noise(streams: Sequence[int], codebooks: int, steps: int) -> Tensor:
    """[streams, codebooks, steps], uniform on [0, 1), drawn on the CPU so that it is the same for every device."""
    draws = []
    for seed in streams:
        # Step by step, so that a longer piece begins with the draws of a shorter one.
        generator = torch.Generator().manual_seed(seed)
        draws.append(torch.rand(steps, codebooks, generator=generator).T)
    return torch.stack(draws)
