"""Seeds of independent random streams: each sample of music has its own, whatever it is batched with."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count

import numpy as np


def stream_of(*numbers: int) -> int:
    """Return a seed for each combination of numbers, in the range of torch's generators."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def stream_seed(seed: int, prompt: str, repetition: int = 0) -> int:
    """Return the seed of a prompt's random stream, which differs for each repetition."""
    text = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big")
    return stream_of(seed, text, repetition)


def repetitions(samples: Iterable[tuple[int, str]]) -> list[int]:
    """Return for each pair of seed and prompt how often it occurred before."""
    counters: defaultdict[tuple[int, str], Iterator[int]] = defaultdict(count)
    return [next(counters[sample]) for sample in samples]


def streams_of(seed: int, prompts: Sequence[str]) -> list[int]:
    """Return the seeds of the prompts' random streams."""
    numbers = repetitions((seed, prompt) for prompt in prompts)
    return [stream_seed(seed, prompt, number) for prompt, number in zip(prompts, numbers, strict=True)]
