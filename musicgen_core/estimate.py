"""Estimate time and disk space: of tokenizing as measured with a sample of the clips, of training at known speeds."""

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
from pathlib import Path

import torch
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.config import DEFAULT_MODEL, TrainSettings
from musicgen_core.data.archive import open_archive
from musicgen_core.data.archive_sample import ArchiveSample, list_archives, take_samples, total_clips
from musicgen_core.data.dataset import ENOUGH_CLIPS
from musicgen_core.data.shards import Rejected, Row, ShardWriter
from musicgen_core.encoding import Encoded
from musicgen_core.errors import ArchiveError, Cancelled, ClipRejected
from musicgen_core.language import message, stored_message
from musicgen_core.tokenizing import Tokenizer
from musicgen_core.wording import counted, lasting, sized

WARM_UP_CLIPS = 4
LEAST_SECONDS = 5.0
"""Minimum duration of the measurement. A fast GPU takes less than a second for the sample, so it is repeated."""
PROBE_BYTES = 32 << 20
"""Bytes read from a remote archive, in one read as staging does, to measure the download rate"""

SEGMENT_SECONDS: float = TrainSettings.model_fields["segment_seconds"].default
"""Seconds of a clip used per training epoch, at most"""
SHOWN_REASONS = 3

SPEEDS = {"NVIDIA H200": 720.0, "NVIDIA H100 80GB HBM3": 703.0}
"""Training throughput of one GPU in audio seconds/s: musicgen-large, bf16, 30 s clips (bench/RESULTS.md)"""
_MEASURE_YOURS = message("train with --max-steps 20 logs its seconds of audio per second (audio-s/s)")

Result = tuple[str, Encoded | ClipRejected]


@dataclass(frozen=True)
class Estimate:
    """Time and space of tokenizing. All but `archives`, `archive_bytes` and, if `is_exact`, `clips` are estimates.

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
    def download_hours(self) -> float:
        return self.archive_bytes / self.download_bytes_per_sec / 3600 if self.download_bytes_per_sec else 0.0

    @property
    def hours_to_go(self) -> float:
        """Return an upper bound in hours, as downloads overlap with encoding if there are several workers."""
        return self.encoding_hours + self.download_hours

    def cost(self, hourly_price: float) -> float:
        return self.hours_to_go * hourly_price


def estimate(
    archives: Sequence[UPath],
    load_codec: Callable[[], Codec],
    clips: int = 100,
    workers: int = 1,
    on_clip: Callable[[], None] = lambda: None,
) -> Estimate:
    """Measure a sample of the clips through the whole pipeline, writing only temporary files.

    Args:
        archives: zips and tars, local or remote. Remote ones are not staged; only the sample is fetched.
        load_codec: loads the codec; called only once the archives have been found to be readable, since it is slow.
        clips: size of the sample, taken from at most 4 archives; smaller if those hold fewer clips.
        workers: archives processed in parallel.
        on_clip: called after each clip of the sample, from any thread.

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
        shard = folder / "sample.parquet"
        with ShardWriter(shard, codec.identity, codec.cardinality, codec.model) as writer:
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
        Row(clip=name, description=None, duration=clip.seconds, codes=clip.codes)
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


def rows_of(
    found: Estimate, model: str, hourly_price: float | None, left_out: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Return the rows of a table as (name, value).

    Args:
        model: the base model to train.
        hourly_price: price of this machine per hour; None: no cost is shown.
        left_out: reasons why some archives are left out.
    """
    return [*estimated_rows(found, hourly_price, left_out), *training_rows(found, model, hourly_price)]


def estimated_rows(found: Estimate, hourly_price: float | None, left_out: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the rows on tokenizing."""
    of_clips = {"clips": found.clips, "time": lasting(found.audio_seconds)}
    if found.is_exact:
        clips = message("{clips:,}, about {time} of audio", **of_clips)
    else:
        clips = message("about {clips:,}, about {time} of audio", **of_clips)
    rows: list[tuple[str, str]] = [
        (message("archives"), f"{found.archives:,}, {sized(found.archive_bytes)}"),
        *((message("  can't be read"), stored_message(reason)) for reason in found.unreadable[:SHOWN_REASONS]),
        *_more(found.unreadable),
        *((message("  left out"), remark) for remark in left_out[:SHOWN_REASONS]),
        *_more(left_out),
        (message("clips"), clips),
        (message("sample"), _sample(found)),
        *((f"  {entry.clip}", stored_message(entry.reason)) for entry in found.rejected[:SHOWN_REASONS]),
        *_more(found.rejected),
        (message("speed"), _speed(found)),
        (message("time to go"), _time_to_go(found)),
        (message("disk"), message("about {size} of tokens", size=sized(found.tokens_bytes))),
    ]
    if found.scratch_bytes:
        at_once = counted(found.workers, "archive")
        scratch = message(
            "{size}, for {archives} downloaded at a time", size=sized(found.scratch_bytes), archives=at_once
        )
        rows.append((message("scratch disk"), scratch))
    if hourly_price is not None:
        rows.append((message("cost"), _cost(found.cost(hourly_price), hourly_price)))
    return rows


def _cost(cost: float, hourly_price: float) -> str:
    return message("about {cost:,.2f} at {price:,.2f} an hour", cost=cost, price=hourly_price)


def training_rows(found: Estimate, model: str, hourly_price: float | None) -> list[tuple[str, str]]:
    """Return the rows on training with default settings on one GPU; the cost only for GPUs of known speed."""
    epochs = TrainSettings.model_fields["num_epochs"].default
    seconds = epochs * found.epoch_seconds
    work = message("{epochs} of {time} of audio", epochs=counted(epochs, "epoch"), time=lasting(found.epoch_seconds))
    gpu = found.gpu if found.gpu in SPEEDS and model == DEFAULT_MODEL else None
    if model != DEFAULT_MODEL:
        text = message(
            "{work}; the speed of {model} has not been measured: {advice}",
            work=work,
            model=model,
            advice=_MEASURE_YOURS,
        )
    elif gpu is None:
        known, speed = next(iter(SPEEDS.items()))
        text = message(
            "{work}: about {time} on an {known}; {device} has not been measured: {advice}",
            work=work,
            time=lasting(seconds / speed),
            known=known.removeprefix("NVIDIA "),
            device=found.gpu or message("a CPU"),
            advice=_MEASURE_YOURS,
        )
    else:
        text = message(
            "{work}: about {time} at {speed:,.0f} seconds of audio a second, measured on an {gpu}",
            work=work,
            time=lasting(seconds / SPEEDS[gpu]),
            speed=SPEEDS[gpu],
            gpu=gpu.removeprefix("NVIDIA "),
        )
    rows: list[tuple[str, str]] = [(message("training"), text)]
    if gpu and hourly_price is not None:
        rows.append((message("cost of training"), _cost(seconds / SPEEDS[gpu] / 3600 * hourly_price, hourly_price)))
    if found.clips < ENOUGH_CLIPS:
        few = message("fewer than {enough} clips: too few are held out to judge an adapter by", enough=ENOUGH_CLIPS)
        rows.append((message("note"), few))
    return rows


def _sample(found: Estimate) -> str:
    clips, archives = counted(found.sampled_clips, "clip"), counted(found.sampled_archives, "archive")
    text = message("{clips} of {archives}", clips=clips, archives=archives)
    if found.sampled_clips < found.asked_clips:
        text = message("{sample}, which have no more (asked for: {asked:,})", sample=text, asked=found.asked_clips)
    if found.rejected:
        text = message(
            "{sample}; {number:,} rejected ({share:.1%}), and as many are taken off the whole",
            sample=text,
            number=len(found.rejected),
            share=len(found.rejected) / found.sampled_clips,
        )
    return text


def _speed(found: Estimate) -> str:
    return message(
        "{clips:,.1f} clips/s, {seconds:,.0f} seconds of audio a second, on {device}, {archives} at a time",
        clips=found.clips_per_sec,
        seconds=found.audio_seconds_per_sec,
        device=found.device,
        archives=counted(found.workers, "archive"),
    )


def _time_to_go(found: Estimate) -> str:
    time = lasting(3600 * found.hours_to_go)
    if found.download_bytes_per_sec is None:
        return message("about {time}, plus start-up (loading, compiling)", time=time)
    return message(
        "about {time} at most, plus start-up (loading, compiling): {encoding} of encoding and {downloading} of "
        "downloading at {speed}/s, which run at the same time where they can",
        time=time,
        encoding=lasting(3600 * found.encoding_hours),
        downloading=lasting(3600 * found.download_hours),
        speed=sized(found.download_bytes_per_sec),
    )


def _more(entries: Sequence[object]) -> list[tuple[str, str]]:
    return [("  …", message("and {number:,} more", number=more))] if (more := len(entries) - SHOWN_REASONS) > 0 else []
