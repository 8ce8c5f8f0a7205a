"""Codes from prompts, one column of the delay pattern at a time, with keys and values kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.devices import can_compile
from musicgen_core.errors import Cancelled
from musicgen_core.generation.steps import EagerSteps, GraphedSteps, Steps
from musicgen_core.model.decoder import MusicgenLM, TextCondition
from musicgen_core.model.pattern import undelay
from musicgen_core.model.text import TextEncoder

if TYPE_CHECKING:
    from musicgen_core.generation.decoding import Decoding

WAIT_STEPS = 25
MOST_POSITIONS = 2048
"""More than the 1,503 steps of 30 s"""


@dataclass(frozen=True)
class Engine:
    """A language model ready to generate.

    Attributes:
        lm: the model, any adapter merged.
        text: its text encoder.
        guidance: the coefficient where the settings give none.
        eager: run the model's own forward pass even where there are kernels for it, which repack its weights.
    """

    lm: MusicgenLM
    text: TextEncoder
    guidance: float
    eager: bool = False

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
        frames = max(1, round(settings.duration * FRAME_RATE))
        steps = frames + self.lm.config.codebooks - 1  # the last column is predicted, never fed
        text = self._with_null(self.text.encode(prompts))
        noise = _noise(streams, self.lm.config.codebooks, steps).to(text.mask.device)
        session = self._steps(text, noise, frames, settings)
        for done in range(steps):
            if cancelled():
                raise Cancelled(f"generating was cancelled at step {done} of {steps}")
            session.advance()
            if done % WAIT_STEPS == 0 and noise.is_cuda:  # the GPU works behind: what is told should have happened
                torch.cuda.synchronize()
            on_step(done + 1, steps)
        return undelay(session.sequence, frames).cpu()

    def _steps(self, text: TextCondition, noise: Tensor, frames: int, settings: SamplingSettings) -> Steps:
        guidance = self.coefficient(settings)
        if self._decoding is not None:
            return GraphedSteps(self._decoding, text, noise, frames, settings, guidance)
        return EagerSteps(self.lm, text, noise, frames, settings, guidance)

    @cached_property
    def _decoding(self) -> Decoding | None:
        """The model for the GPU's own kernels, where these work."""
        weight = self.lm.enc_to_dec_proj.weight
        if self.eager or not decodes_fast(weight):
            return None
        from musicgen_core.generation.decoding import Decoding  # Triton is not everywhere

        return Decoding(self.lm, MOST_POSITIONS)

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


def decodes_fast(weight: Tensor) -> bool:
    """Whether a model with such weights can run on `decoding`'s kernels."""
    half = weight.dtype in (torch.bfloat16, torch.float16)
    return weight.is_cuda and half and torch.cuda.get_device_capability(weight.device) >= (8, 0) and can_compile()
