"""Parts of samples that occur in training clips, found by exact matches of code n-grams.

An n-gram is the codes of `NGRAM` consecutive frames in codebook 0, the coarsest, which carries the melody; of stereo,
that of the left channel. MusicLM (Agostinelli et al. 2023, section 5.4) and MusicGen (Copet et al. 2023, section 4.4)
look for memorized music in the same way, as equal codes at a sample and in a training clip. They compare the
continuations of a clip's beginning with that clip; here every sample is compared with every clip, at every alignment.

Figures behind the constants, of the demo model's codec on five recordings and 96 synthesized clips, are in
bench/RESULTS.md: n-grams of 0.2 s with fewer than five distinct codes, such as silence and held notes, account for all
n-grams that unrelated recordings have in common.

The search takes memory for the samples' n-grams and a block of clips, whatever the number of clips: hashes of the
n-grams of a block are looked up in a table of 1 MB, and the few that pass are compared with the samples' hashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from musicgen_core.codes import FRAME_RATE

NGRAM = 10
"""Frames of an n-gram: 0.2 s"""
FEWEST_DISTINCT = 5
"""Distinct codes that an n-gram must have to count"""
BRIDGED = FRAME_RATE // 2
"""Frames without a match that don't end a run at the same alignment: 0.5 s"""
CLIPS_AT_ONCE = 64
MOST_PAIRS = 2_000_000
"""Matches (position in a sample, position in a clip) held at a time, unless one clip has more"""
MOST_REPEATS = 16
"""Occurrences of an n-gram in a sample, from the first, whose alignments are followed"""

_TABLE_BITS = 20
_STEP = 0x9E3779B97F4A7C15  # odd, so that multiplication loses nothing
_OF_CODE = np.random.default_rng(0).integers(2**64, size=2**16, dtype=np.uint64)

Frames = NDArray[np.uint16]
"""Codes of codebook 0, [frames]"""
Hashes = NDArray[np.uint64]
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """A part of a sample that occurs in a training clip: n-grams in common at one alignment, gaps bridged.

    Attributes:
        frames: its length, from the first frame of the first n-gram to the last frame of the last one.
        start: its first frame in the sample.
        clip: the clip's number in the search.
        clip_start: its first frame in the clip.
    """

    frames: int
    start: int
    clip: int
    clip_start: int

    @property
    def seconds(self) -> float:
        return self.frames / FRAME_RATE


@dataclass(frozen=True)
class Matches:
    """What a sample has in common with training clips.

    Attributes:
        ngrams: number of its n-grams with enough distinct codes.
        shared: number of these that occur in a training clip.
        longest: its longest run, the first of several; None if nothing is shared.
    """

    ngrams: int
    shared: int
    longest: Run | None

    @property
    def share(self) -> float:
        return self.shared / self.ngrams if self.ngrams else 0.0


def find_matches(samples: Sequence[Frames], clips: Iterable[Frames]) -> list[Matches]:
    """Return what each sample has in common with the clips. The clips are read once, `CLIPS_AT_ONCE` at a time."""
    index = _Index(samples)
    shared = np.zeros(len(index.hashes), dtype=bool)
    longest: list[Run | None] = [None] * len(samples)
    if len(shared):
        for first, block in _blocks(clips):
            hits = index.hits_in(block)
            shared[hits.ngrams] = True
            for part in _in_parts(hits, index):
                for sample, run in _longest_runs(part, index, first):
                    before = longest[sample]
                    if before is None or run.frames > before.frames:
                        longest[sample] = run
    return [
        Matches(len(ngrams), int(shared[ngrams].sum()), run)
        for ngrams, run in zip(index.of_samples, longest, strict=True)
    ]


def repeated_share(sample: Frames) -> float:
    """Return the share of a sample's n-grams that repeat one that ended before they begin.

    N-grams with too few distinct codes are left out, so a held note is no repetition.
    """
    hashes, positions = _counted_ngrams(sample)
    if not len(hashes):
        return 0.0
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    return float((positions - positions[first][inverse] >= NGRAM).mean())


@dataclass(frozen=True)
class _Hits:
    """Positions in a block of clips at which an n-gram of the samples begins, ascending, [hits] each.

    Attributes:
        ngrams: numbers of the n-grams.
        positions: positions in the concatenated block.
        clips: numbers of the clips in the block.
        clip_starts: positions of these clips in the block.
    """

    ngrams: Positions
    positions: Positions
    clips: Positions
    clip_starts: Positions

    def part(self, start: int, stop: int) -> _Hits:
        arrays = (self.ngrams, self.positions, self.clips, self.clip_starts)
        return _Hits(*(array[start:stop] for array in arrays))


class _Index:
    """The n-grams of all samples that have enough distinct codes.

    Attributes:
        hashes: hashes of the distinct n-grams, ascending, [U].
        of_samples: for each sample, the numbers of its n-grams in `hashes`, in the order of their positions.
        starts: where the occurrences of each n-gram begin in `samples` and `positions`, [U + 1].
        samples: the sample of each occurrence.
        positions: the position of each occurrence in its sample.
    """

    def __init__(self, samples: Sequence[Frames]) -> None:
        counted = [_counted_ngrams(sample) for sample in samples]
        lengths = [len(hashes) for hashes, _ in counted]
        everything = np.concatenate([hashes for hashes, _ in counted]) if counted else np.zeros(0, np.uint64)
        self.hashes, numbers = np.unique(everything, return_inverse=True)
        self.of_samples = np.split(numbers, np.cumsum(lengths)[:-1]) if counted else []
        self._table = np.zeros(2**_TABLE_BITS, dtype=bool)
        self._table[self.hashes >> np.uint64(64 - _TABLE_BITS)] = True
        of_sample = np.repeat(np.arange(len(counted)), lengths)
        positions = np.concatenate([found for _, found in counted]) if counted else np.zeros(0, np.int64)
        order = np.lexsort((positions, of_sample, numbers))
        numbers, of_sample, positions = numbers[order], of_sample[order], positions[order]
        followed = _occurrence(numbers * max(1, len(counted)) + of_sample) < MOST_REPEATS
        self.samples, self.positions = of_sample[followed], positions[followed]
        self.starts = np.searchsorted(numbers[followed], np.arange(len(self.hashes) + 1))

    def hits_in(self, block: Sequence[Frames]) -> _Hits:
        ends = np.cumsum([len(clip) for clip in block])
        hashes = _hashes(np.concatenate(block))
        positions = self._table[hashes >> np.uint64(64 - _TABLE_BITS)].nonzero()[0]
        ngrams = np.searchsorted(self.hashes, hashes[positions]).clip(max=len(self.hashes) - 1)
        clips = np.searchsorted(ends, positions, side="right")
        is_hit = (self.hashes[ngrams] == hashes[positions]) & (positions + NGRAM <= ends[clips])  # within one clip
        ngrams, positions, clips = ngrams[is_hit], positions[is_hit], clips[is_hit]
        return _Hits(ngrams, positions, clips, ends[clips] - np.array([len(clip) for clip in block])[clips])


def _blocks(clips: Iterable[Frames]) -> Iterator[tuple[int, list[Frames]]]:
    """Yield the number of the first clip of each block, and the block."""
    first, remaining = 0, iter(clips)
    while block := list(islice(remaining, CLIPS_AT_ONCE)):
        yield first, block
        first += len(block)


def _in_parts(hits: _Hits, index: _Index) -> Iterator[_Hits]:
    """Yield the hits in parts of whole clips, each with at most `MOST_PAIRS` matches unless one clip has more."""
    pairs = np.cumsum(index.starts[hits.ngrams + 1] - index.starts[hits.ngrams])
    of_clips = (np.flatnonzero(np.diff(hits.clips, append=-1)) + 1).tolist()  # where the hits of each clip end
    start = before = 0
    for i, stop in enumerate(of_clips):
        is_last = i + 1 == len(of_clips)
        if is_last or pairs[of_clips[i + 1] - 1] - before > MOST_PAIRS:
            yield hits.part(start, stop)
            start, before = stop, int(pairs[stop - 1])


def _longest_runs(hits: _Hits, index: _Index, first_clip: int) -> Iterator[tuple[int, Run]]:
    """Yield each sample that the hits are of, with its longest run."""
    counts = index.starts[hits.ngrams + 1] - index.starts[hits.ngrams]
    hit = np.repeat(np.arange(len(counts)), counts)  # of each pair of positions, in a clip and in a sample
    pair = np.arange(len(hit)) + np.repeat(index.starts[hits.ngrams] - np.cumsum(counts) + counts, counts)
    samples, alignments = index.samples[pair], hits.positions[hit] - index.positions[pair]
    order = np.lexsort((hits.positions[hit], alignments, samples))
    hit, pair, samples, alignments = hit[order], pair[order], samples[order], alignments[order]
    positions, clips = hits.positions[hit], hits.clips[hit]
    is_new = np.ones(len(order) + 1, dtype=bool)
    is_new[1:-1] = (
        (np.diff(samples) != 0)
        | (np.diff(alignments) != 0)
        | (np.diff(clips) != 0)
        | (np.diff(positions) > NGRAM + BRIDGED)
    )
    borders = is_new.nonzero()[0]
    begins, ends = borders[:-1], borders[1:] - 1
    frames = positions[ends] - positions[begins] + NGRAM
    best = np.lexsort((positions[begins], -frames, samples[begins]))
    for run in best[np.diff(samples[begins][best], prepend=-1) != 0]:
        at = begins[run]
        yield (
            int(samples[at]),
            Run(
                frames=int(frames[run]),
                start=int(index.positions[pair[at]]),
                clip=first_clip + int(clips[at]),
                clip_start=int(positions[at] - hits.clip_starts[hit[at]]),
            ),
        )


def _counted_ngrams(codes: Frames) -> tuple[Hashes, Positions]:
    """Return the hashes and positions of the n-grams with enough distinct codes."""
    hashes = _hashes(codes)
    if not len(hashes):
        return hashes, np.zeros(0, dtype=np.int64)
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(codes, NGRAM), axis=1)
    distinct = 1 + (np.diff(windows, axis=1) != 0).sum(axis=1)
    positions = np.flatnonzero(distinct >= FEWEST_DISTINCT)
    return hashes[positions], positions


def _hashes(codes: Frames) -> Hashes:
    """Return the hash of the n-gram at each position, [frames − NGRAM + 1]: a polynomial modulo 2^64."""
    if len(codes) < NGRAM:
        return np.zeros(0, dtype=np.uint64)
    of_code = hashes = _OF_CODE[codes]
    length = 1
    for bit in f"{NGRAM:b}"[1:]:
        hashes = hashes[:-length] * _power(length) + hashes[length:]
        length *= 2
        if bit == "1":
            hashes = hashes[:-1] * _power(1) + of_code[length:]
            length += 1
    return hashes


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(_STEP, exponent, 2**64))


def _occurrence(keys: Positions) -> Positions:
    """Return for each of sorted keys how many equal ones are before it."""
    first = np.searchsorted(keys, keys)
    return np.arange(len(keys)) - first
