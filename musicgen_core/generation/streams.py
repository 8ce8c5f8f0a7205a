"""Each piece of music draws from a random stream of its own, whatever else is rendered with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

from musicgen_core.seeds import stream_of


def stream_seed(seed: int, prompt: str, repetition: int = 0) -> int:
    """The seed of a prompt's own stream; a repeated prompt gets another."""
    text = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big")
    return stream_of(seed, text, repetition)


def streams_of(pieces: Iterable[tuple[int, str]]) -> list[int]:
    """`stream_seed` of each of these seeds and prompts."""
    before: Counter[tuple[int, str]] = Counter()
    streams = []
    for seed, prompt in pieces:
        streams.append(stream_seed(seed, prompt, before[seed, prompt]))
        before[seed, prompt] += 1
    return streams
