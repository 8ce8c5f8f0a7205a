"""Clips for training: codes of every shard in one memory-mapped file, a stable split, and crops that need no state.

Everything random derives from the seed, the epoch and the clip, so a position in the data is a step number and
nothing else has to be saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import CODEBOOKS
from musicgen_core.data.shards import read_report, read_rows, shard_codec, shard_paths
from musicgen_core.errors import TokensError


@dataclass(frozen=True)
class Clips:
    """All clips of a directory of shards.

    Attributes:
        codes: [codes of all clips], uint16, memory-mapped; a clip's codes lie as [4, frames] from its offset.
        offsets: [clips], where each clip's codes start.
        frames: [clips].
        descriptions: [clips].
        hashes: [clips], uint64, a stable hash of archive and member.
        skipped: shards that are not whole, which are left out.
    """

    codes: NDArray[np.uint16]
    offsets: NDArray[np.int64]
    frames: NDArray[np.int32]
    descriptions: list[str | None]
    hashes: NDArray[np.uint64]
    skipped: list[str]

    def __len__(self) -> int:
        return len(self.frames)

    def codes_of(self, index: int) -> NDArray[np.uint16]:
        """[4, frames]."""
        start = self.offsets[index]
        return self.codes[start : start + CODEBOOKS * self.frames[index]].reshape(CODEBOOKS, -1)


def load_clips(tokens: UPath, codec: str, packed: Path) -> Clips:
    """Read every whole shard of `tokens` into the local file `packed`.

    Args:
        codec: the identity of the model's codec; codes of another mean nothing to it.
        packed: a file to write the codes to; 12 kB per 30 s clip.

    Raises:
        TokensError: no whole shards, or codes of another codec.
    """
    stems = sorted(path.stem for path in tokens.iterdir() if path.suffix == ".parquet") if tokens.is_dir() else []
    skipped, frames, descriptions, hashes = [], [], [], []
    with open(packed, "wb") as file:
        for stem in stems:
            if read_report(tokens, stem) is None:
                skipped.append(stem)
                continue
            with storage.staged(shard_paths(tokens, stem)[0]) as parquet:
                _check_codec(parquet, codec)
                for row in read_rows(parquet):
                    file.write(np.ascontiguousarray(row.codes).tobytes())
                    frames.append(row.codes.shape[1])
                    descriptions.append(row.description)
                    hashes.append(clip_hash(stem, row.clip))
    if not frames:
        raise TokensError(
            f"there are no tokenized clips in {tokens}"
            + (f" (not whole: {', '.join(skipped[:5])})" if skipped else ""),
            "Run musicgen-flows tokenize first, or check the path",
        )
    lengths = np.array(frames, dtype=np.int32)
    offsets = np.concatenate([[0], (lengths.astype(np.int64) * CODEBOOKS).cumsum()[:-1]])
    return Clips(
        codes=np.memmap(packed, dtype=np.uint16, mode="r"),
        offsets=offsets,
        frames=lengths,
        descriptions=descriptions,
        hashes=np.array(hashes, dtype=np.uint64),
        skipped=skipped,
    )


def _check_codec(parquet: Path, codec: str) -> None:
    found = shard_codec(parquet)
    if found != codec:
        raise TokensError(
            f"the shard {parquet.name} was encoded with the codec {found}, but the model's codec is {codec}",
            "Train with the model that the tokens were made for, or tokenize again into another directory",
        )


def clip_hash(stem: str, member: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{stem}/{member}".encode(), digest_size=8).digest(), "big")


def split(hashes: NDArray[np.uint64], validation_fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training, validation) indices. A clip's side depends on its hash alone, so it stays when archives are added.

    With two clips or more and a fraction above 0, each side has at least one; with one clip, it trains.
    """
    everything = np.arange(len(hashes))
    if validation_fraction == 0 or len(hashes) < 2:
        return everything, everything[:0]
    held_out = hashes.astype(np.float64) / 2.0**64 < validation_fraction
    held_out[np.argmin(hashes)] = True
    if held_out.all():
        held_out[np.argmax(hashes)] = False
    return everything[~held_out], everything[held_out]


@dataclass(frozen=True)
class Batch:
    """codes [B, 4, T] int64 padded at the end with 0, frames [B], and a text or None for each."""

    codes: Tensor
    frames: Tensor
    texts: list[str | None]


def training_batch(
    clips: Clips, indices: Sequence[int], segment_frames: int, cfg_dropout: float, seed: int, epoch: int
) -> Batch:
    """Random crops, with texts dropped at random. The same arguments give the same batch, always."""
    segments, texts = [], []
    for index in indices:
        rng = np.random.default_rng([seed, epoch, int(clips.hashes[index])])
        codes = clips.codes_of(index)
        start = int(rng.integers(0, max(0, codes.shape[1] - segment_frames) + 1))
        segments.append(codes[:, start : start + segment_frames])
        texts.append(None if rng.random() < cfg_dropout else clips.descriptions[index])
    return _collate(segments, texts)


def validation_batch(clips: Clips, indices: Sequence[int], segment_frames: int) -> Batch:
    """The beginning of each clip, with its text."""
    return _collate(
        [clips.codes_of(index)[:, :segment_frames] for index in indices],
        [clips.descriptions[index] for index in indices],
    )


def _collate(segments: list[NDArray[np.uint16]], texts: list[str | None]) -> Batch:
    frames = torch.tensor([segment.shape[1] for segment in segments])
    codes = torch.zeros(len(segments), CODEBOOKS, int(frames.max()), dtype=torch.int64)
    for row, segment in zip(codes, segments, strict=True):
        row[:, : segment.shape[1]] = torch.from_numpy(segment.astype(np.int64))
    return Batch(codes, frames, texts)
