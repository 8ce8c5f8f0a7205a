"""Versions of the same music at another level, found by what repeats in a clip, whatever its codes are.

At a level that differs by 3 dB or more, a clip has mostly other codes, but the vectors that they stand for have nearly
the same directions. Two steps recognise it:

1. The profile of a clip: the mean cosine of its frames and those 1 to 128 frames (2.56 s) later, less its mean. It
   tells tempo, rhythm and how long notes last, and changes neither with the level nor with where the clip was cut.
   Profiles of versions have a cosine of 0.87 or more, also at -6 dB; those of other music rarely. Candidates are the
   pairs that share a bucket of random hyperplanes (Charikar 2002) and have such a cosine.
2. The mean cosine of a candidate's frames at the best alignment: 0.68 or more for versions, 0.62 at most for others.

Frames are sums of the vectors of their codes, centred on the mean of the clip. bench/RESULTS.md has figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from musicgen_core.codes import CODEBOOKS
from musicgen_core.data.near_duplicates import joined_clusters, pairs_in_buckets

Profiles = NDArray[np.int8]
"""[clips, LAGS]; zeros where a clip has no profile"""
CodeVectors = NDArray[np.float32]
"""[CODEBOOKS, cardinality, D], of the codes of one channel"""

LAGS = 128
DIMENSIONS = 16
"""Of the vectors: as many principal components separate versions from other music as well as all of them"""
SHORTEST = 2 * LAGS
"""Frames below which a clip has no profile"""
_ALIKE = 0.85
"""Cosine of the profiles of candidates"""
_SAME = 0.66
"""Mean cosine of the frames of versions at the best alignment"""
_LEAST_STRUCTURE = 0.02
"""Norm of a profile below which nothing tells the clip from others, as in noise, silence and held notes"""
_BANDS, _BITS = 64, 16
"""Buckets: pairs with a cosine of 0.9 share one with a probability of 99.6 %, with 0.85 of 94 %"""
_NEIGHBOURS = 8
"""Clips before it in a bucket with which a clip's profile is compared"""
_MOST_CANDIDATES = 4
"""Earlier clips at most with which a clip is compared frame by frame, which takes 1.6 ms for clips of 30 s"""


def reduced(vectors: CodeVectors) -> CodeVectors:
    """Return vectors in the principal components of those of the first codebook, of which D is DIMENSIONS at most."""
    coarse = vectors[0] - vectors[0].mean(axis=0)
    _, axes = np.linalg.eigh(coarse.T @ coarse)
    return (vectors @ axes[:, -DIMENSIONS:]).astype(np.float32)


def profile(codes: NDArray[np.uint16], vectors: CodeVectors) -> NDArray[np.int8]:
    """Return the profile of a clip's codes [codebooks, frames], [LAGS]; zeros if it is short or has no structure."""
    if codes.shape[1] < SHORTEST:
        return np.zeros(LAGS, dtype=np.int8)
    frames = _frames(codes, vectors)
    size = fft.next_fast_len(frames.shape[1] + LAGS, real=True)
    spectra = fft.rfft(frames, size)
    power = np.square(spectra.real) + np.square(spectra.imag)
    cosines = fft.irfft(power.sum(axis=0), size)[1 : LAGS + 1] / (frames.shape[1] - np.arange(1, LAGS + 1))
    centred = cosines - cosines.mean()
    norm = np.linalg.norm(centred)
    if norm < _LEAST_STRUCTURE:
        return np.zeros(LAGS, dtype=np.int8)
    return np.round(127 * centred / np.abs(centred).max()).astype(np.int8)


def is_same_music(one: NDArray[np.uint16], other: NDArray[np.uint16], vectors: CodeVectors) -> bool:
    """Return whether two clips [codebooks, frames] are versions of the same music, with half of it in common."""
    first, second = _frames(one, vectors), _frames(other, vectors)
    length = min(first.shape[1], second.shape[1])
    size = fft.next_fast_len(first.shape[1] + second.shape[1], real=True)
    product = fft.rfft(first, size) * fft.rfft(second, size).conj()
    sums = fft.irfft(product.sum(axis=0), size)
    lags = np.arange(length // 2 - second.shape[1], first.shape[1] - length // 2 + 1)
    overlaps = np.minimum(first.shape[1] - np.maximum(lags, 0), second.shape[1] + np.minimum(lags, 0))
    return bool((sums[lags] / overlaps).max() >= _SAME)


@dataclass(frozen=True)
class Versions:
    """Recognises versions of the same music at another level among clips, which are given by their indices.

    Attributes:
        profiles: of all clips.
        codes_of: returns the codes of a clip, [codebooks, frames].
        vectors: returns those of the codes; not called where no clip has a profile.
    """

    profiles: Profiles
    codes_of: Callable[[int], NDArray[np.uint16]]
    vectors: Callable[[], CodeVectors]

    def join(self, firsts: NDArray[np.int64], some: NDArray[np.int64]) -> NDArray[np.int64]:
        """Join clusters of near duplicates whose first clips are versions of the same music.

        Args:
            firsts: the result of `near_duplicates.first_of_each` for some clips, as indices into these.
            some: indices of the clips.

        Returns:
            The first clip of each cluster. Clips that are appended leave it as it is for the others.
        """
        distinct = np.flatnonzero(self.profiles[some].any(axis=1) & (firsts == np.arange(len(firsts))))
        clips = some[distinct]
        same = [(a, b) for a, b in _candidates(_directions(self.profiles[clips])) if self._are(clips[a], clips[b])]
        return joined_clusters(firsts, *distinct[np.array(same, np.int64).reshape(-1, 2).T])

    def among(self, clip: int, others: list[int]) -> NDArray[np.bool_]:
        """Return which of some clips are versions of one, [others]."""
        alike = _directions(self.profiles[others]) @ _directions(self.profiles[[clip]])[0] >= _ALIKE
        return np.array([near and self._are(other, clip) for near, other in zip(alike, others, strict=True)], bool)

    def _are(self, one: int, other: int) -> bool:
        return is_same_music(self.codes_of(int(one)), self.codes_of(int(other)), self.vectors())


def _frames(codes: NDArray[np.uint16], vectors: CodeVectors) -> NDArray[np.float32]:
    """Return the direction of each frame from the clip's mean, [DIMENSIONS, frames]. Of stereo, the left channel."""
    own = codes[:: len(codes) // CODEBOOKS]
    frames = np.sum([vectors[book][code] for book, code in enumerate(own)], axis=0)
    frames -= frames.mean(axis=0)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True) + np.float32(1e-6)
    return np.ascontiguousarray(frames.T)


def _directions(profiles: Profiles) -> NDArray[np.float32]:
    floats = profiles.astype(np.float32)
    return floats / np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), 1e-6)


def _candidates(directions: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Return pairs of clips with similar profiles, the earlier one first; the most similar ones of each clip."""
    found, clips = np.zeros(0, np.int64), len(directions)
    for planes in _planes():
        keys = (directions @ planes > 0) @ (1 << np.arange(_BITS))
        pairs = [found]
        for pair in pairs_in_buckets(keys.astype(np.uint64), _NEIGHBOURS):
            near = np.einsum("pl,pl->p", directions[pair[:, 0]], directions[pair[:, 1]]) >= _ALIKE
            pairs.append(pair[near] @ [1, clips])  # the later clip counts more, so that each has its pairs together
        found = np.unique(np.concatenate(pairs))
    late, early = np.divmod(found, clips)
    cosines = np.einsum("pl,pl->p", directions[early], directions[late])
    order = np.lexsort((early, -cosines, late))
    begins = np.searchsorted(late[order], late[order])
    kept = order[np.arange(len(order)) - begins < _MOST_CANDIDATES]
    return list(zip(early[kept].tolist(), late[kept].tolist(), strict=True))


@lru_cache(maxsize=1)
def _planes() -> NDArray[np.float32]:
    """Return random hyperplanes, [_BANDS, LAGS, _BITS]."""
    return np.random.default_rng(0).normal(size=(_BANDS, LAGS, _BITS)).astype(np.float32)
