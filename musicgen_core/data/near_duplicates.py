"""Near duplicates of clips, found by MinHash over bigrams of the codes.

The same audio resampled, slightly quieter or cut later by whole frames has mostly the same codes in the same order. The
set of pairs of consecutive codes of the first codebook, which holds the coarsest structure (of stereo: of the left
channel), therefore overlaps with that of the original, and hardly with that of other music. Its MinHash signature
(Broder 1997) estimates the Jaccard index of two sets as the share of equal entries. Signatures are compared only within
the buckets of locality-sensitive hashing, which is sorting in NumPy here: 139,000 clips take a second, where
`datasketch.MinHashLSH` fills dictionaries clip by clip. Levels that differ by 3 dB and cuts in the middle of a frame
change too many codes: `levels.py` recognises the former. bench/RESULTS.md has figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from musicgen_core.codes import CARDINALITY

if TYPE_CHECKING:
    from datasketch import MinHash

Signatures = NDArray[np.uint16]
"""[clips, PERMUTATIONS]; zeros where a clip has no signature"""

PERMUTATIONS = 128
"""Entries of a signature; their number limits the standard error of the Jaccard index to 0.044"""
LEAST_BIGRAMS = 64
"""Clips with fewer distinct bigrams have no signature: 10 s of silence have 2, of a sine 6, of soft noise up to 40"""
LEAST_EQUAL = 58
"""Entries that two near duplicates have in common, a Jaccard index of 0.45; other pieces for the same solo instrument
reach 0.31"""
_PER_BAND = 4
"""Entries in the key of a bucket: pairs of Jaccard index 0.6 share one of the 32 with a probability of 98.8 %"""
_NEIGHBOURS = 32
"""Clips before it in a bucket with which a clip is compared"""
_PAIRS_AT_ONCE = 2**16
"""Pairs compared at once, in 32 MB"""


def signature(codes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return the signature of a clip's codes [codebooks, frames], [PERMUTATIONS]; zeros if it has too few bigrams."""
    coarse = codes[0].astype(np.uint32)
    bigrams = np.unique(coarse[:-1] * CARDINALITY + coarse[1:])
    if len(bigrams) < LEAST_BIGRAMS:
        return np.zeros(PERMUTATIONS, dtype=np.uint16)
    hashed = _empty().copy()
    hashed.update_batch(bigrams.tolist())
    # The low bits suffice: they differ by chance in one of 65,536 entries (Li and König 2010, b-bit minwise hashing).
    return hashed.hashvalues.astype(np.uint16)


@lru_cache(maxsize=1)
def _empty() -> MinHash:
    from datasketch import MinHash  # imports half of SciPy, and is only needed where shards are packed

    return MinHash(num_perm=PERMUTATIONS, seed=1, scheme="affine32", hashfunc=int)


def first_of_each(signatures: Signatures) -> NDArray[np.int64]:
    """Return for each clip the index of the first clip of its cluster of near duplicates, [clips].

    Clusters are connected: each clip is a near duplicate of another one of them. A clip without a signature or without
    near duplicates is a cluster of its own. Clips that are appended leave the clusters of the others as they are,
    unless they are near duplicates of clips of two clusters.
    """
    firsts = np.arange(len(signatures))
    signed = np.flatnonzero(signatures.any(axis=1))
    # Exact copies are collapsed first, so that thousands of them don't fill a bucket.
    _, originals, copy_of = np.unique(signatures[signed], axis=0, return_index=True, return_inverse=True)
    originals = originals[copy_of.reshape(-1)]
    distinct = np.unique(originals)  # the first of each, in the order of clips
    clusters = distinct[_clusters_of_distinct(signatures[signed[distinct]])]
    firsts[signed] = signed[clusters[np.searchsorted(distinct, originals)]]
    return firsts


def _no_versions(clip: int, others: list[int]) -> NDArray[np.bool_]:
    return np.zeros(len(others), dtype=bool)


def originals_of(
    signatures: Signatures,
    firsts: NDArray[np.int64],
    versions_among: Callable[[int, list[int]], NDArray[np.bool_]] = _no_versions,
) -> NDArray[np.int64]:
    """Return for each clip the index of an earlier clip that it is a near duplicate of, or its own, [clips].

    An original is never a near duplicate of another clip that stays: if all clips that are not their own original are
    removed, none of the others is.

    Args:
        signatures: of all clips.
        firsts: the first clip of each one's cluster, [clips].
        versions_among: which of some clips are versions of one clip at another level.
    """
    originals = np.arange(len(firsts))
    clusters: dict[int, list[int]] = {}  # the originals of each
    for clip in np.flatnonzero(np.bincount(firsts, minlength=len(firsts))[firsts] > 1).tolist():
        found = clusters.setdefault(int(firsts[clip]), [])
        is_near = (signatures[found] == signatures[clip]).sum(axis=1) >= LEAST_EQUAL
        if not (signatures[clip].any() and is_near.any()):
            is_near = versions_among(clip, found)
        if is_near.any():
            originals[clip] = found[int(is_near.argmax())]
        else:
            found.append(clip)
    return originals


def joined_keys(keys: NDArray[np.uint64], firsts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Join groups that have near duplicates in common: return the key of the first clip of each joined group, [clips].

    Args:
        keys: the key of each clip's group, [clips].
        firsts: the result of `first_of_each`, [clips].
    """
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return keys[joined_clusters(firsts, np.arange(len(keys)), first[inverse])]


def _clusters_of_distinct(signatures: Signatures) -> NDArray[np.int64]:
    """Return the result of `first_of_each` for signatures that all differ."""
    firsts = np.arange(len(signatures))
    for entry in range(0, PERMUTATIONS, _PER_BAND):
        keys = np.ascontiguousarray(signatures[:, entry : entry + _PER_BAND]).view(np.uint64)[:, 0]
        for pair in pairs_in_buckets(keys, _NEIGHBOURS):
            left, right = pair[firsts[pair[:, 0]] != firsts[pair[:, 1]]].T
            firsts = joined_clusters(firsts, *_near(signatures, left, right))
    return firsts


def pairs_in_buckets(keys: NDArray[np.uint64], neighbours: int) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of clips with equal keys, [pairs, 2], each clip with as many as `neighbours` before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    for distance in range(1, min(neighbours, len(keys) - 1) + 1):
        at = (ordered[distance:] == ordered[:-distance]).nonzero()[0]
        if not len(at):
            return
        yield np.stack([order[at], order[at + distance]], axis=1)


def _near(
    signatures: Signatures, left: NDArray[np.int64], right: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return those pairs whose signatures have enough entries in common."""
    is_near = np.zeros(len(left), dtype=bool)
    for start in range(0, len(left), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        is_near[some] = (signatures[left[some]] == signatures[right[some]]).sum(axis=1) >= LEAST_EQUAL
    return left[is_near], right[is_near]


def joined_clusters(firsts: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first clip of each cluster after joining the clusters of each pair, [clips]."""
    if not len(left):
        return firsts
    clips = np.arange(len(firsts))
    edges = np.concatenate([left, clips]), np.concatenate([right, firsts])
    graph = coo_array((np.ones(len(edges[0]), dtype=np.int8), edges), shape=(len(clips), len(clips)))
    _, components = connected_components(graph, directed=False)
    _, first, inverse = np.unique(components, return_index=True, return_inverse=True)
    return first[inverse]
