"""Compare the decoding kernels with the model itself on a CPU, where Triton interprets them; run by test_decoding.

TRITON_INTERPRET=1 python interpreted.py interpreted_decoding.py BATCH BITS CACHE_BITS GIVEN_FRAMES → the largest
relative error of a step's logits, and whether greedy codes are those of the eager steps
"""

from __future__ import annotations

import sys

import torch

from musicgen_core.config import SamplingSettings
from musicgen_core.generation.decoding import Decoding
from musicgen_core.generation.engine import EagerSteps, GraphedSteps
from musicgen_core.generation.sampling import Window
from musicgen_core.model.decoder import Condition
from musicgen_core.model.weights import find_model, load_lm

FRAMES = 6


@torch.inference_mode()
def main(batch: int, bits: int, cache_bits: int, given: int) -> None:
    lm = load_lm(find_model("debug"))
    decoding = Decoding(lm, positions=16, bits=bits)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(batch, 5, lm.config.text_dim, generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (batch, 1), generator=generator)
    text = Condition(torch.cat([states, 0 * states]), torch.cat([mask, 0 * mask]).bool())

    state = decoding.begin(text, torch.full((batch, 4, FRAMES + 1), lm.config.codes.special), cache_bits=cache_bits)
    caches, text_mask = lm.new_cache(text, FRAMES)
    state.sequence[:, :, :FRAMES] = torch.randint(2048, (batch, 4, FRAMES), generator=generator)
    errors = []
    for position in range(FRAMES):
        state.position.fill_(position)
        current = state.sequence[:, :, position : position + 1]
        expected = lm.step(torch.cat([current, current]), caches, text_mask, position)
        errors.append(((decoding.step(state) - expected).norm() / expected.norm()).item())

    known = torch.randint(2048, (batch, 4, given), generator=generator)
    noise = torch.rand(batch, 4, FRAMES + 3, generator=generator)
    frames = torch.full((batch,), FRAMES)
    window = Window(text, known, frames, noise, lm.config.codes, SamplingSettings(greedy=True), 3.0)
    graphed, eager = GraphedSteps(decoding, window, cache_bits), EagerSteps(lm, window)
    for _ in range(FRAMES + 3 - given):
        graphed.advance()
        eager.advance()
    print(torch.tensor(errors).max().item(), torch.equal(graphed.sequence, eager.sequence))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
