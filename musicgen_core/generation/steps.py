"""The steps of one batch's generation: eagerly on any device, as a CUDA graph where the decoding kernels work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from musicgen_core.generation.sampling import Window
from musicgen_core.model.decoder import MusicgenLM

if TYPE_CHECKING:
    from musicgen_core.generation.decoding import Decoding  # Triton is not everywhere


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
