"""Batches of clips for training and validation: stateless random crops, prefetched.

Everything random derives from the seed, the epoch and the clip, so a position in the data is a step number and
nothing else has to be saved. Batches are prefetched, so that the GPU never waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicgen_core.data.dataset import Clips
from musicgen_core.data.training_text import TextVariation
from musicgen_core.melody import NO_CLASS, crop_chroma, match_length
from musicgen_core.prefetch import prefetch

_AS_DESCRIBED = TextVariation()


@dataclass(frozen=True)
class Batch:
    """A batch of clips.

    Attributes:
        codes: [B, K, T] int64, zero-padded at the end.
        frames: [B], the true lengths.
        texts: texts or None, [B].
        hashes: of the clips, [B].
        chroma: pitch classes of the melodies, [B, chroma frames] int64; None for a model that takes no melody.
    """

    codes: Tensor
    frames: Tensor
    texts: list[str | None]
    hashes: NDArray[np.uint64]
    chroma: Tensor | None = None

    def pinned(self) -> Batch:
        """Return the batch in pinned memory, for asynchronous copies to a GPU."""
        chroma = None if self.chroma is None else self.chroma.pin_memory()
        return replace(self, codes=self.codes.pin_memory(), frames=self.frames.pin_memory(), chroma=chroma)


def training_batch(
    clips: Clips,
    indices: Sequence[int],
    segment_frames: int,
    cfg_dropout: float,
    seed: int,
    epoch: int,
    columns: int | None = None,
    word_dropout: float = 0.0,
    variation: TextVariation = _AS_DESCRIBED,
    chroma_frames: int = 0,
    melody_dropout: float = 0.0,
) -> Batch:
    """Return random crops with random text, word and melody dropout. Deterministic in its arguments.

    Args:
        segment_frames: maximum frames of a crop.
        cfg_dropout: share of clips whose text and melody are dropped, for classifier-free guidance.
        word_dropout: share of words dropped from the remaining texts, as in audiocraft's `T5Conditioner`.
        variation: how fields are added to the descriptions.
        columns: T of the batch, at least `segment_frames`, for a constant shape; by default the longest crop's frames.
        chroma_frames: frames of a melody's chroma that the model reads; 0 if it takes no melody.
        melody_dropout: share of the other clips whose melody alone is dropped, as in audiocraft's `AttributeDropout`.

    Raises:
        TokensError: codes were damaged in the cache, or a clip has no chroma and the model reads it.
    """
    segments, texts, melodies = [], [], []
    for index in indices:
        rng = np.random.default_rng([seed, epoch, int(clips.hashes[index])])
        codes = clips.codes_of(index)
        start = int(rng.integers(0, max(0, codes.shape[1] - segment_frames) + 1))
        segments.append(codes[:, start : start + segment_frames])
        is_unconditional = rng.random() < cfg_dropout
        text = None if is_unconditional else clips.text_of(index, variation, seed, epoch)
        if text and word_dropout:
            text = " ".join(word for word in text.split(" ") if rng.random() >= word_dropout)
        texts.append(text)
        if chroma_frames:
            is_dropped = rng.random() < melody_dropout or is_unconditional
            melodies.append(None if is_dropped else crop_chroma(clips.chroma_of(index), start, segments[-1].shape[1]))
    return _collate(segments, texts, clips.hashes[list(indices)], columns, chroma_frames, melodies)


def validation_batch(
    clips: Clips, indices: Sequence[int], segment_frames: int, columns: int | None = None, chroma_frames: int = 0
) -> Batch:
    """Return the beginning of each clip, with its text and its melody.

    `columns`, `chroma_frames` and errors are as in `training_batch`.
    """
    segments = [clips.codes_of(index)[:, :segment_frames] for index in indices]
    texts = [clips.description(index) for index in indices]
    melodies = [
        crop_chroma(clips.chroma_of(index), 0, segment.shape[1])
        for index, segment in zip(indices, segments, strict=True)
        if chroma_frames
    ]
    return _collate(segments, texts, clips.hashes[list(indices)], columns, chroma_frames, melodies)


def _collate(
    segments: list[NDArray[np.uint16]],
    texts: list[str | None],
    hashes: NDArray[np.uint64],
    columns: int | None,
    chroma_frames: int,
    melodies: Sequence[NDArray[np.uint8] | None],
) -> Batch:
    frames = torch.tensor([segment.shape[1] for segment in segments])
    codes = torch.zeros(len(segments), segments[0].shape[0], columns or int(frames.max()), dtype=torch.int64)
    for row, segment in zip(codes, segments, strict=True):
        row[:, : segment.shape[1]] = torch.from_numpy(segment.astype(np.int64))
    chroma = None
    if chroma_frames:
        chroma = torch.full((len(melodies), chroma_frames), NO_CLASS, dtype=torch.int64)
        for row, melody in zip(chroma, melodies, strict=True):
            if melody is not None:
                row[:] = match_length(torch.from_numpy(melody.astype(np.int64)), chroma_frames)
    return Batch(codes=codes, frames=frames, texts=texts, hashes=hashes, chroma=chroma)


@contextmanager
def prefetched(
    batches: Iterable[Callable[[], Batch]], ahead: int = 2, device: torch.device | None = None
) -> Iterator[Iterator[Batch]]:
    """Provide the results of `batches` in order, computed ahead in threads.

        with prefetched((partial(training_batch, clips, step) for step in steps), device=device) as batches:
            for batch in batches: ...

    All randomness of a batch derives from its arguments, so threading doesn't affect the result.

    Args:
        ahead: batches held ready beside the one in use, which is also the number of concurrent disk reads.
        device: CUDA device for which to pin the batches' memory; nothing is pinned for other devices and None.

    Raises:
        Exception: any exception of a batch or of the iterator `batches`, at its position in the order.
    """
    pin = device is not None and device.type == "cuda"

    def make(batch: Callable[[], Batch]) -> Batch:
        return batch().pinned() if pin else batch()

    with (
        ThreadPoolExecutor(ahead, "batches", *_on(device if pin else None)) as pool,
        closing(prefetch(pool, batches, make, lambda _: 1, limit=ahead + 1)) as results,
    ):
        yield results


def _on(device: torch.device | None) -> tuple[()] | tuple[Callable[..., None], tuple[int]]:
    """Return a thread initializer that sets the device: pinning from another one would take memory on both."""
    if device is None:
        return ()
    return torch.cuda.set_device, (torch.cuda.current_device() if device.index is None else device.index,)
