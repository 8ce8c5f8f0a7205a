"""The steps of one batch's generation: eagerly anywhere, and as CUDA graphs where the GPU has kernels for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from musicgen_core.config import SamplingSettings
from musicgen_core.generation.sampling import guide, sample
from musicgen_core.model.decoder import MusicgenLM, TextCondition

if TYPE_CHECKING:
    from musicgen_core.generation.decoding import Decoding  # Triton is not everywhere


class Steps(Protocol):
    """Generation of one batch; each `advance` fills the next column of `sequence` [B, K, columns]."""

    sequence: Tensor

    def advance(self) -> None: ...


class EagerSteps:
    """On any device.

    Args:
        text: [2 B, …], the prompts' conditions and as many null conditions.
        noise: [B, K, steps], see `sampling.sample`.
        frames: of each piece.
    """

    def __init__(
        self,
        lm: MusicgenLM,
        text: TextCondition,
        noise: Tensor,
        frames: int,
        settings: SamplingSettings,
        guidance: float,
    ) -> None:
        batch, codebooks, steps = noise.shape
        self._lm, self._noise, self._frames = lm, noise, frames
        self._settings, self._guidance = settings, guidance
        self._caches, self._mask = lm.new_cache(text, steps)
        self._position = 0
        shape = batch, codebooks, steps + 1
        self.sequence = torch.full(shape, lm.config.special, dtype=torch.int64, device=noise.device)

    def advance(self) -> None:
        position = self._position
        column = self.sequence[:, :, position : position + 1]
        logits = self._lm.step(torch.cat([column, column]), self._caches, self._mask, position)
        noise = self._noise[:, :, position]
        chosen = _choose(logits, self._guidance, self._settings, noise)
        first = max(0, position - self._frames + 1)  # codebooks first…last have a frame in the next column
        last = min(self._lm.config.codebooks - 1, position)
        self.sequence[:, first : last + 1, position + 1] = chosen[:, first : last + 1]
        self._position += 1


class GraphedSteps:
    """With `decoding`'s kernels. The first step compiles; from the second on one is recorded and replayed.

    Args: as those of `EagerSteps`.
    """

    def __init__(
        self,
        decoding: Decoding,
        text: TextCondition,
        noise: Tensor,
        frames: int,
        settings: SamplingSettings,
        guidance: float,
    ) -> None:
        self._decoding, self._noise, self._frames = decoding, noise, frames
        self._settings, self._guidance = settings, guidance
        self._session = decoding.begin(text, noise.shape[2])
        self._codebook = torch.arange(noise.shape[1], device=noise.device)
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
        session = self._session
        logits = self._decoding.step(session)
        at = session.position.view(1)
        noise = self._noise.index_select(2, at)[:, :, 0]
        chosen = _choose(logits, self._guidance, self._settings, noise)
        frame = session.position - self._codebook  # of each codebook in the next column
        there = (frame >= 0) & (frame < self._frames)
        filled = chosen.where(there, self._decoding.config.special)
        self.sequence.index_copy_(2, at + 1, filled[:, :, None])
        session.position += 1


def _choose(logits: Tensor, guidance: float, settings: SamplingSettings, noise: Tensor) -> Tensor:
    """logits [2 B, K, cardinality], noise [B, K] → codes [B, K]."""
    conditional, unconditional = logits.chunk(2)
    return sample(guide(conditional, unconditional, guidance), settings, noise)
