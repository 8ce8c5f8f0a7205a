"""The steps of one batch's generation: eagerly anywhere, and as CUDA graphs where the GPU has kernels for it."""

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
    """What one batch of pieces is to get within the model's reach.

    Attributes:
        text: [2 B, …], the prompts' conditions and as many null conditions.
        known: [B, K, P], the codes of the first frames, which are given.
        frames: [B], how many each piece has in the end; from P up to what `noise` has room for.
        noise: [B, K, steps], see `sampling.sample`; the draws of codebook k and frame f are at step f + k.
    """

    text: TextCondition
    known: Tensor
    frames: Tensor
    noise: Tensor
    settings: SamplingSettings
    guidance: float

    @property
    def given(self) -> int:
        """Frames that are known, and steps that are so spared."""
        return self.known.shape[-1]

    def columns(self, special: int) -> Tensor:
        """The delayed sequence [B, K, steps + 1] with what is known in it, and special codes elsewhere."""
        return delay(self.known, special, columns=self.noise.shape[-1] + 1)

    def choose(self, logits: Tensor, noise: Tensor, position: int, column: Tensor) -> Tensor:
        """The codes after `position`.

        Args:
            logits: [2 B, K, cardinality].
            noise: [B, K].
            position: of what was read last.
            column: [B, K], what stands in the next column until now, and stays where there is no frame to fill.

        Returns:
            [B, K], int64.
        """
        conditional, unconditional = logits.chunk(2)
        chosen = sample(guide(conditional, unconditional, self.guidance), self.settings, noise)
        frame = position - torch.arange(column.shape[1], device=column.device)  # of each codebook in that column
        return chosen.where((frame >= self.given) & (frame < self.frames[:, None]), column)


class Steps(Protocol):
    """Generation of one batch; each `advance` fills the next column of `sequence` [B, K, columns]."""

    sequence: Tensor

    def advance(self) -> None: ...


class EagerSteps:
    """On any device."""

    def __init__(self, lm: MusicgenLM, window: Window) -> None:
        self._lm, self._window = lm, window
        self.sequence = window.columns(lm.config.special)
        self._caches, self._mask = lm.new_cache(window.text, window.noise.shape[-1])
        self._position = window.given
        lm.prefill(_both(self.sequence[:, :, : window.given]), self._caches, self._mask)

    def advance(self) -> None:
        at, window = self._position, self._window
        logits = self._lm.step(_both(self.sequence[:, :, at : at + 1]), self._caches, self._mask, at)
        column = self.sequence[:, :, at + 1]
        self.sequence[:, :, at + 1] = window.choose(logits, window.noise[:, :, at], at, column)
        self._position += 1


class GraphedSteps:
    """With `decoding`'s kernels. The first step compiles; from the second on one is recorded and replayed."""

    def __init__(self, decoding: Decoding, window: Window, cache_bits: int) -> None:
        self._decoding, self._window = decoding, window
        sequence = window.columns(decoding.config.special)
        self._session = decoding.begin(window.text, sequence, window.given, cache_bits)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._begun = False
        self.sequence = self._session.sequence

    def advance(self) -> None:
        if not self._begun or not self.sequence.is_cuda:
            self._step()
            self._begun = True
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # which records, and doesn't run
                self._step()
        self._graph.replay()

    def _step(self) -> None:
        self._decoding.step(self._session)
        self._decoding.choose(self._session, self._window)


def _both(columns: Tensor) -> Tensor:
    """The same sequence under the text and under the null condition."""
    return torch.cat([columns, columns])
