r"""Compare the decoding kernels with the model itself on a CPU, where Triton interprets them; run by test_decoding.

TRITON_INTERPRET=1 python interpreted.py interpreted_decoding.py BATCH BITS CACHE_BITS GIVEN_FRAMES CHROMA_FRAMES \
    NEGATIVES → the largest relative error of a step's logits, and whether greedy codes are those of the eager steps

NEGATIVES is the number of samples with a negative prompt in place of the null condition.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from musicgen_core.config import SamplingSettings
from musicgen_core.generation.decoding import Decoding
from musicgen_core.generation.engine import EagerSteps, GraphedSteps
from musicgen_core.generation.sampling import Window
from musicgen_core.model.decoder import Condition, MusicgenLM
from musicgen_core.model.weights import find_model, load_lm

FRAMES = 4


@torch.inference_mode()
def main(batch: int, bits: int, cache_bits: int, given: int, chroma_frames: int, negatives: int) -> None:
    lm = load_lm(find_model("debug"))
    generator = torch.Generator().manual_seed(0)
    chroma = None
    if chroma_frames:
        torch.manual_seed(0)
        lm = MusicgenLM(replace(lm.config, chroma_frames=chroma_frames)).eval().requires_grad_(False)
        chroma = torch.randint(12, (batch, chroma_frames), generator=generator)
        chroma = torch.cat([chroma, torch.zeros_like(chroma)])
    decoding = Decoding(lm, positions=16, bits=bits)
    states = torch.randn(batch, 5, lm.config.text_dim, generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (batch, 1), generator=generator)
    away, lengths = torch.zeros_like(mask), mask.sum(dim=1).repeat(2)
    away[:negatives] = torch.arange(5) < torch.randint(1, 6, (negatives, 1), generator=generator)
    lengths[batch : batch + negatives] = away[:negatives].sum(dim=1)
    states = torch.cat([states, torch.randn(states.shape, generator=generator) * away[..., None]])
    text = Condition(states, torch.cat([mask, away]), chroma, lengths)

    state = decoding.begin(text, torch.full((batch, 4, FRAMES + 1), lm.config.codes.special), cache_bits=cache_bits)
    state.sequence[:, :, :FRAMES] = torch.randint(2048, (batch, 4, FRAMES), generator=generator)
    errors = []
    logits = lm(torch.cat([state.sequence, state.sequence])[:, :, :FRAMES], text)
    for position, expected in enumerate(logits.unbind(dim=2)):
        state.position.fill_(position)
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
