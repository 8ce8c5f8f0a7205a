"""Estimate time and disk space of captioning and tokenizing, as measured with a sample of the clips."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.config import TrainSettings
from musicgen_core.data.archive import open_archive
from musicgen_core.data.archive_sample import ArchiveSample, list_archives, take_samples, total_clips
from musicgen_core.data.audio import DecodedClip
from musicgen_core.data.decoding import decoded_clips
from musicgen_core.data.members import Limits
from musicgen_core.data.shards import Rejected, Row, ShardWriter
from musicgen_core.encoding import Encoded
from musicgen_core.errors import ArchiveError, Cancelled, ClipRejected
from musicgen_core.language import message, stored_message
from musicgen_core.tokenizing import Tokenizer
from musicgen_core.wording import counted

if TYPE_CHECKING:
    from musicgen_core.captioning.measuring import Measurer

WARM_UP_CLIPS = 4
MOST_MEASURED = 16
"""Clips of the sample that are measured for captions: on two CPU cores a 30 s clip takes a second"""
LEAST_SECONDS = 5.0
"""Minimum duration of the measurement. A fast GPU takes less than a second for the sample, so it is repeated."""
PROBE_BYTES = 32 << 20
"""Bytes read from a remote archive, in one read as staging does, to measure the download rate"""

SEGMENT_SECONDS: float = TrainSettings.model_fields["segment_seconds"].default
"""Seconds of a clip used per training epoch, at most"""

Result = tuple[str, Encoded | ClipRejected]


@dataclass(frozen=True)
class Estimate:
    """Time and space of captioning and tokenizing.

    All but `archives`, `archive_bytes` and, if `is_exact`, `clips` are estimates.

    Attributes:
        archives: number of readable archives.
        archive_bytes: total size of the readable archives.
        unreadable: why other archives can't be read, and how to repair them.
        clips: clips in all readable archives, including those that will be rejected.
        is_exact: whether `clips` was counted; False if there are tars among the archives.
        asked_clips: requested size of the sample.
        sampled_clips: actual size of the sample, including rejected clips.
        sampled_archives: archives that the sample was taken from.
        rejected: rejected clips of the sample.
        audio_seconds: duration of all usable clips.
        epoch_seconds: duration used by one training epoch, at most 30 s of each clip.
        clips_per_sec: throughput from file to codes, including rejected clips.
        audio_seconds_per_sec: throughput from file to codes.
        captioned_seconds_per_sec: throughput of captioning, which comes first; None if the clips have descriptions.
        download_bytes_per_sec: rate of remote archives with one download per worker; None if all are local.
        tokens_bytes: size of all shards.
        scratch_bytes: disk space of staged archives, one per worker; 0 if all are local.
        workers: archives processed in parallel, at most as many as there are.
        device: the device that encoded the sample.
        gpu: name of the GPU; empty on a CPU.
    """

    archives: int
    archive_bytes: int
    unreadable: Sequence[str]
    clips: int
    is_exact: bool
    asked_clips: int
    sampled_clips: int
    sampled_archives: int
    rejected: Sequence[Rejected]
    audio_seconds: float
    epoch_seconds: float
    clips_per_sec: float
    audio_seconds_per_sec: float
    captioned_seconds_per_sec: float | None
    download_bytes_per_sec: float | None
    tokens_bytes: int
    scratch_bytes: int
    workers: int
    device: str
    gpu: str

    @property
    def encoding_hours(self) -> float:
        return self.audio_seconds / self.audio_seconds_per_sec / 3600

    @property
    def captioning_hours(self) -> float:
        return self.audio_seconds / self.captioned_seconds_per_sec / 3600 if self.captioned_seconds_per_sec else 0.0

    @property
    def download_hours(self) -> float:
        """Return the time of downloading all archives: twice if they are captioned first."""
        if not self.download_bytes_per_sec:
            return 0.0
        return (2 if self.captioned_seconds_per_sec else 1) * self.archive_bytes / self.download_bytes_per_sec / 3600

    @property
    def hours_to_go(self) -> float:
        """Return an upper bound in hours, as downloads overlap with encoding if there are several workers."""
        return self.captioning_hours + self.encoding_hours + self.download_hours

    def cost(self, hourly_price: float) -> float:
        return self.hours_to_go * hourly_price


def estimate(
    archives: Sequence[UPath],
    load_codec: Callable[[], Codec],
    clips: int = 100,
    workers: int = 1,
    on_clip: Callable[[], None] = lambda: None,
    load_measurer: Callable[[], Measurer] | None = None,
) -> Estimate:
    """Measure a sample of the clips through the whole pipeline, writing only temporary files.

    Args:
        archives: zips and tars, local or remote. Remote ones are not staged; only the sample is fetched.
        load_codec: loads the codec; called only once the archives have been found to be readable, since it is slow.
        clips: size of the sample, taken from at most 4 archives; smaller if those hold fewer clips.
        workers: archives processed in parallel.
        on_clip: called after each clip of the sample, from any thread.
        load_measurer: loads what measures clips for their captions; None if the clips have descriptions.

    Raises:
        ArchiveError: no archive is readable, a sampled one is damaged, or none of the sampled clips can be used.
        OSError: storage fails.
    """
    listed, unreadable = list_archives(archives)
    workers = min(workers, len(listed))
    codec = load_codec()
    with storage.scratch_folder() as folder:
        samples = take_samples(listed, clips, folder, workers)
        tokenizer = Tokenizer(codec, storage.as_path(folder))
        filled = [sample for sample in samples if sample.places]
        results, clips_per_sec, audio_seconds_per_sec = _measure(tokenizer, filled, workers, on_clip)
        rows, rejected = _sorted(results)
        captioned = _measure_captioning(load_measurer(), filled) if load_measurer else None
        shard = folder / "sample.parquet"
        with ShardWriter(shard, codec.identity, codec.shape, codec.model) as writer:
            for row in rows:
                writer.add(row)
        shard_bytes = shard.stat().st_size
    total, is_exact = total_clips(listed, samples)
    usable = total * len(rows) / len(results)
    remote = [sample.listed.archive for sample in samples if not storage.is_local(sample.listed.archive)]
    return Estimate(
        archives=len(listed),
        archive_bytes=sum(entry.archive_bytes for entry in listed),
        unreadable=unreadable,
        clips=total,
        is_exact=is_exact,
        asked_clips=clips,
        sampled_clips=len(results),
        sampled_archives=len(filled),
        rejected=rejected,
        audio_seconds=usable * sum(row.duration for row in rows) / len(rows),
        epoch_seconds=usable * sum(min(row.duration, SEGMENT_SECONDS) for row in rows) / len(rows),
        clips_per_sec=clips_per_sec,
        audio_seconds_per_sec=audio_seconds_per_sec,
        captioned_seconds_per_sec=captioned,
        download_bytes_per_sec=_download_rate(remote, workers) if remote else None,
        tokens_bytes=round(usable * shard_bytes / len(rows)),
        scratch_bytes=max(entry.archive_bytes for entry in listed) * workers if remote else 0,
        workers=workers,
        device=str(codec.device),
        gpu=torch.cuda.get_device_name(codec.device) if codec.device.type == "cuda" else "",
    )


def _measure(
    tokenizer: Tokenizer, samples: Sequence[ArchiveSample], workers: int, on_clip: Callable[[], None]
) -> tuple[list[Result], float, float]:
    """Encode the samples, one per worker at a time, repeatedly until the measurement is long enough.

    Returns:
        The results, each clip once; clips/s; and seconds of audio/s.
    """
    for _ in _encode(tokenizer, replace(samples[0], places=samples[0].places[:WARM_UP_CLIPS])):
        pass
    stop = threading.Event()
    least_seconds = LEAST_SECONDS * min(workers, len(samples)) / len(samples)
    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        repeat = partial(_repeat, tokenizer, least_seconds=least_seconds, on_clip=on_clip, stop=stop)
        runs = [pool.submit(repeat, sample) for sample in samples]
        try:
            wait(runs, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # otherwise the other threads would continue after Ctrl-C or an error
    took = time.monotonic() - started
    passes = [run.result() for run in runs]
    seconds = sum(clip.seconds for results in passes for _, clip in results if isinstance(clip, Encoded))
    once = [result for results, sample in zip(passes, samples, strict=True) for result in results[: len(sample.places)]]
    return once, sum(map(len, passes)) / took, seconds / took


def _measure_captioning(measurer: Measurer, samples: Sequence[ArchiveSample]) -> float | None:
    """Return the seconds of audio per second of measuring up to `MOST_MEASURED` clips for their captions, if any."""
    used = [replace(sample, places=sample.places[: max(1, MOST_MEASURED // len(samples))]) for sample in samples]
    for _ in measurer.measure(islice(_decoded(used[0]), 1)):  # warm-up
        pass
    lengths: list[float] = []

    def counted_clips() -> Generator[tuple[str, DecodedClip | ClipRejected]]:
        for name, clip in chain.from_iterable(map(_decoded, used)):
            lengths.append(0.0 if isinstance(clip, ClipRejected) else clip.seconds)
            yield name, clip

    started = time.monotonic()
    for _ in measurer.measure(counted_clips()):
        pass
    return sum(lengths) / (time.monotonic() - started) or None


def _decoded(sample: ArchiveSample) -> Generator[tuple[str, DecodedClip | ClipRejected]]:
    with (
        open_archive(sample.path) as opened,
        closing(decoded_clips(sample.members(opened), Limits().max_clip_bytes)) as clips,
    ):
        yield from clips


def _repeat(
    tokenizer: Tokenizer,
    sample: ArchiveSample,
    least_seconds: float,
    on_clip: Callable[[], None],
    stop: threading.Event,
) -> list[Result]:
    """Encode a sample repeatedly for `least_seconds`, or until `stop` is set."""
    results: list[Result] = []
    started = time.monotonic()
    while not stop.is_set() and (not results or time.monotonic() - started < least_seconds):
        _drop_from_memory(sample.path)
        with suppress(Cancelled), closing(_encode(tokenizer, sample, stop.is_set)) as encoded:
            for result in encoded:
                if stop.is_set():
                    return results
                results.append(result)
                if len(results) <= len(sample.places):
                    on_clip()
    return results


def _encode(
    tokenizer: Tokenizer, sample: ArchiveSample, cancelled: Callable[[], bool] = lambda: False
) -> Generator[Result]:
    with (
        open_archive(sample.path) as opened,
        closing(tokenizer.encoded_clips(sample.members(opened), cancelled)) as clips,
    ):
        yield from clips


def _drop_from_memory(file: Path) -> None:
    """Evict a file from the page cache, so that it is read from disk as in a real run."""
    if sys.platform == "linux":
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sorted(sample: Sequence[Result]) -> tuple[list[Row], list[Rejected]]:
    """Split results into rows and rejections; raise an ArchiveError if all clips are rejected."""
    rows = [
        Row(clip=name, description=None, duration=clip.seconds, codes=clip.codes, chroma=clip.chroma)
        for name, clip in sample
        if isinstance(clip, Encoded)
    ]
    rejected = [Rejected(name, str(clip)) for name, clip in sample if isinstance(clip, ClipRejected)]
    if not rows:
        raise ArchiveError(
            message(
                "none of the {clips} tried can be used; {clip}: {reason}",
                clips=counted(len(sample), "clip"),
                clip=rejected[0].clip,
                reason=stored_message(rejected[0].reason),
            ),
            message("Check what the archives hold"),
        )
    return rows, rejected


def _download_rate(archives: Sequence[UPath], workers: int) -> float:
    """Return the download rate of remote archives in bytes/s, with one download per worker.

    It can't be derived from the sample, whose clips are read one by one at the cost of round trips that staging avoids.
    """
    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        pieces = pool.map(lambda archive: len(archive.fs.cat_file(archive.path, start=0, end=PROBE_BYTES)), archives)
        return sum(pieces) / (time.monotonic() - started)
