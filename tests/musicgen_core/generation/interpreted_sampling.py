"""Compare the sampling kernel with `Window.choose` on a CPU, where Triton interprets it; run by test_decoding.

TRITON_INTERPRET=1 python interpreted.py interpreted_sampling.py SETTINGS_AS_JSON CHANNELS → codes that differ,
different codes that were chosen, and whether any was written where no frame is generated for
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch

from musicgen_core.codes import MONO, STEREO, CodeShape
from musicgen_core.config import SamplingSettings
from musicgen_core.generation.decoding import Decoding
from musicgen_core.generation.sampling import Window
from musicgen_core.model.decoder import Condition

PROMPTS, GIVEN, STEPS = 24, 2, 9


def main(settings: str, shape: CodeShape) -> None:
    generator = torch.Generator().manual_seed(0)
    text = Condition(torch.zeros(2 * PROMPTS, 1, 1), torch.ones(2 * PROMPTS, 1).bool())
    known = torch.randint(2048, (PROMPTS, shape.codebooks, GIVEN), generator=generator)
    frames = torch.randint(GIVEN + 1, STEPS - shape.most_delay, (PROMPTS,), generator=generator)
    noise = torch.rand(PROMPTS, shape.codebooks, STEPS + 7, generator=generator)[:, :, 3 : STEPS + 3]  # as of a window
    noise[0, :, :] = 0
    noise[1, :, :] = 1 - 2**-24  # the largest draw there is
    window = Window(text, known, frames, noise, shape, SamplingSettings.model_validate_json(settings), 3.0)
    state: Any = SimpleNamespace(sequence=window.delayed_sequence(), position=torch.tensor(GIVEN))
    decoding: Any = SimpleNamespace(_delays=torch.tensor(shape.delays))
    expected = state.sequence.clone()
    for at in range(GIVEN, STEPS):
        state.logits = torch.randn(2 * PROMPTS, shape.codebooks, 2048, generator=generator)
        step = window.choose(state.logits, noise[:, :, at], at, expected[:, :, at + 1])
        expected[:, :, at + 1] = step
        Decoding.choose(decoding, state, window)
    assert state.position == STEPS
    generated = expected != window.delayed_sequence()
    found = state.sequence
    print(
        (found != expected).sum().item(), len(found[generated].unique()), (found != expected)[~generated].any().item()
    )


if __name__ == "__main__":
    main(sys.argv[1], STEREO if sys.argv[2] == "2" else MONO)
