"""Each piece of music draws from a random stream of its own, whatever else is rendered with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from musicgen_core.seeds import stream_of


def stream_seed(seed: int, prompt: str, repetition: int = 0) -> int:
    """The seed of a prompt's own stream; a repeated prompt gets another."""
    text = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big")
    return stream_of(seed, text, repetition)


def repetitions(pieces: Iterable[tuple[int, str]]) -> list[int]:
    """How often each of these seeds and prompts came before."""
    before: Counter[tuple[int, str]] = Counter()
    counts = []
    for piece in pieces:
        counts.append(before[piece])
        before[piece] += 1
    return counts


def streams_of(seed: int, prompts: Sequence[str]) -> list[int]:
    """`stream_seed` of each of these prompts."""
    numbers = repetitions((seed, prompt) for prompt in prompts)
    return [stream_seed(seed, prompt, number) for prompt, number in zip(prompts, numbers, strict=True)]
