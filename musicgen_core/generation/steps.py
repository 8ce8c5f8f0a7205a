"""The steps of one batch's generation: eagerly on any device, as a CUDA graph where the decoding kernels work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from musicgen_core.config import SamplingSettings
from musicgen_core.generation.sampling import guide, sample
from musicgen_core.model.decoder import MusicgenLM, TextCondition
from musicgen_core.model.pattern import delay

if TYPE_CHECKING:
    from musicgen_core.generation.decoding import Decoding  # Triton is not everywhere


@dataclass(frozen=True)
class Window:
    """A batch of samples within the model's context, and how to generate it.

    Attributes:
        text: [2 B, …], the prompts' conditions and as many null conditions.
        known: [B, K, P], the codes of the first frames, which are given.
        frames: [B], the final length of each sample, from P up to what `noise` suffices for.
        noise: [B, K, steps], see `sampling.sample`; the draws of codebook k and frame f are at step f + k.
        settings: sampling settings.
        guidance: the coefficient of classifier-free guidance.
    """

    text: TextCondition
    known: Tensor
    frames: Tensor
    noise: Tensor
    settings: SamplingSettings
    guidance: float

    @property
    def given(self) -> int:
        """Frames that are known, and so the steps that need not be generated."""
        return self.known.shape[-1]

    def delayed_sequence(self, special: int) -> Tensor:
        """Return the delayed sequence [B, K, steps + 1] with the known codes in it, and special codes elsewhere."""
        return delay(self.known, special, steps=self.noise.shape[-1] + 1)

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
        frame = position - torch.arange(current.shape[1], device=current.device)  # of each codebook in that step
        return chosen.where((frame >= self.given) & (frame < self.frames[:, None]), current)


class Steps(Protocol):
    """Generation of one batch; each `advance` fills the next step of `sequence` [B, K, steps]."""

    sequence: Tensor

    def advance(self) -> None: ...


class EagerSteps:
    """Runs the model's own forward pass, on any device."""

    def __init__(self, lm: MusicgenLM, window: Window) -> None:
        self._lm, self._window = lm, window
        self.sequence = window.delayed_sequence(lm.config.special)
        self._caches, self._mask = lm.new_cache(window.text, window.noise.shape[-1])
        self._position = window.given
        lm.prefill(_both(self.sequence[:, :, : window.given]), self._caches, self._mask)

    def advance(self) -> None:
        at, window = self._position, self._window
        logits = self._lm.step(_both(self.sequence[:, :, at : at + 1]), self._caches, self._mask, at)
        current = self.sequence[:, :, at + 1]
        self.sequence[:, :, at + 1] = window.choose(logits, window.noise[:, :, at], at, current)
        self._position += 1


class GraphedSteps:
    """Runs the kernels of `decoding`: compiled in the first step, captured as a CUDA graph in the second one."""

    def __init__(self, decoding: Decoding, window: Window, cache_bits: int) -> None:
        self._decoding, self._window = decoding, window
        sequence = window.delayed_sequence(decoding.config.special)
        self._state = decoding.begin(window.text, sequence, window.given, cache_bits)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._begun = False
        self.sequence = self._state.sequence

    def advance(self) -> None:
        if not self._begun or not self.sequence.is_cuda:
            self._step()
            self._begun = True
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # captures without running
                self._step()
        self._graph.replay()

    def _step(self) -> None:
        self._decoding.step(self._state)
        self._decoding.choose(self._state, self._window)


def _both(sequence: Tensor) -> Tensor:
    """Return the sequence twice: for the text and for the null condition."""
    return torch.cat([sequence, sequence])
