"""Tokenizing end to end, compared with the encoder alone and with a plain loop over single clips.

    python -m bench.tokenize MODEL --device cuda --workdir DIR [--archives 4] [--clips 500] [--seconds 30] [--mixed]

Builds zip archives of 44.1 kHz stereo 16-bit clips, then measures in one run: the encoder on audio that is already
in its memory, at several batch sizes; the loop over some clips; and archives to shards. Last, the share of codes that
equal those of the same clip encoded alone.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file, this folder would come first, and its `tokenize` before Python's own
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import io
import os
import resource
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import soundfile
import torch

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import find_archives, open_archive
from musicgen_core.data.audio import decode, resample
from musicgen_core.data.shards import read_rows, shard_paths
from musicgen_core.devices import pick_device
from musicgen_core.melody import WHOLE
from musicgen_core.model.weights import find_model
from musicgen_core.tokenizing import Tokenizer

RATE = 44_100
DISTINCT = 64


def make_wav(seed: int, seconds: float) -> bytes:
    """Return a wav of chords with noise, stereo, 16-bit."""
    rng = np.random.default_rng(seed)
    time_axis = np.arange(round(seconds * RATE), dtype=np.float32) / RATE
    audio = 0.03 * rng.standard_normal((len(time_axis), 2), dtype=np.float32)
    for hertz in rng.uniform(60, 3000, 5):
        swell = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.1, 3) * time_axis)
        audio += (0.1 * swell * np.sin(2 * np.pi * hertz * time_axis))[:, None] * rng.uniform(0.3, 1, 2).astype("f")
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def make_archives(folder: Path, archives: int, clips: int, seconds: float, mixed: bool) -> float:
    """Write the archives, and return their seconds of audio."""
    folder.mkdir(parents=True)
    lengths = np.random.default_rng(0).uniform(0.2, 2.0, DISTINCT) * seconds if mixed else np.full(DISTINCT, seconds)
    with ThreadPoolExecutor() as pool:
        wavs = list(pool.map(make_wav, range(DISTINCT), lengths))

    def write(number: int) -> float:
        with zipfile.ZipFile(folder / f"archive_batch_{number:04}.zip", "w") as archive:
            for clip in range(clips):
                archive.writestr(f"audio/{clip:04}.wav", wavs[(clip * 7 + number) % DISTINCT])
        return sum(lengths[(clip * 7 + number) % DISTINCT] for clip in range(clips))

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(write, range(archives)))


class Table:
    def __init__(self) -> None:
        self.rows: list[str] = []

    @contextmanager
    def timed(self, name: str, audio_seconds: float) -> Iterator[None]:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took = time.monotonic() - started
        row = f"{name:<58} {audio_seconds / took:9.1f} audio-s/s {took:8.2f} s"
        if torch.cuda.is_available():
            row += f" {torch.cuda.max_memory_allocated() / 2**30:6.1f} GiB"
        print(row, flush=True)
        self.rows.append(row)


def measure_encoder(table: Table, codec: Codec, batches: Sequence[int], seconds: float, repeats: int) -> None:
    for batch in batches:
        wav = 0.3 * torch.randn(batch, 1, round(32_000 * seconds), device=codec.device)
        codec.encode(wav)
        with table.timed(f"encoder alone, batch {batch}", batch * seconds * repeats):
            for _ in range(repeats):
                codec.encode(wav)


def measure_loop(table: Table, codec: Codec, archive: Path, clips: int) -> None:
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()[:clips]
        seconds = sum(soundfile.info(io.BytesIO(opened.read(name))).duration for name in names)
        with table.timed(f"one clip at a time, {clips} clips", seconds):
            for name in names:
                audio, rate = soundfile.read(io.BytesIO(opened.read(name)), dtype="float32", always_2d=True)
                mono = resample(audio.mean(axis=1), rate)
                codec.encode(torch.from_numpy(mono)[None, None])[0].cpu().numpy()


def measure_tokenizing(table: Table, tokenizer: Tokenizer, archives: Path, workers: int, seconds: float) -> None:
    found = find_archives(archives)
    with table.timed(f"archives to shards, {workers} at a time", seconds), ThreadPoolExecutor(workers) as pool:
        for report in pool.map(tokenizer.tokenize, found):
            assert not report.rejected, report.rejected[:3]


def compare_codes(tokenizer: Tokenizer, archive: Path, clips: int) -> str:
    """Compare the codes and the chroma in the shard with those of the clip encoded in a batch of one."""
    with storage.staged(shard_paths(tokenizer.tokens, archive.stem)[0]) as parquet, open_archive(archive) as opened:
        equal = total = equal_chroma = frames = 0
        for row, member, _ in zip(read_rows(parquet), opened.clips(), range(clips), strict=False):
            with member.open() as file:
                clip = decode(file)
            started = tokenizer.codec.start([clip.samples], clip.rate, [WHOLE] if row.chroma is not None else ())
            alone = started.codes()[0]
            equal += int((alone == row.codes).sum())
            total += alone.size
            for chroma in started.chroma():
                equal_chroma += int((chroma == row.chroma).sum())
                frames += len(chroma)
    of_chroma = f", and {100 * equal_chroma / frames:.4f} % of {frames:,} frames of chroma" if frames else ""
    return f"{100 * equal / total:.4f} % of {total:,} codes{of_chroma} are those of the clip encoded alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--archives", type=int, default=4)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--mixed", action="store_true", help="clips of 0.2 to 2 times that length")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32, 64])
    parser.add_argument("--loop-clips", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=4, help="of each batch of the encoder alone")
    given = parser.parse_args()

    archives = given.workdir / "archives"
    seconds = make_archives(archives, given.archives, given.clips, given.seconds, given.mixed)
    print(f"{given.archives} archives of {given.clips} clips, {seconds:,.0f} s of audio", flush=True)
    table = Table()
    codec = Codec(find_model(given.model), pick_device(given.device))
    tokenizer = Tokenizer(codec, storage.as_path(given.workdir / "tokens"), TokenizeSettings())
    first = archives / "archive_batch_0000.zip"
    measure_encoder(table, codec, given.batches, given.seconds, given.repeats)
    measure_loop(table, codec, first, given.loop_clips)
    if codec.device.type == "cuda":
        torch.cuda.empty_cache()
    measure_tokenizing(table, tokenizer, archives, given.workers, seconds)
    same = compare_codes(tokenizer, first, min(64, given.clips))
    print("\n" + "\n".join(table.rows))
    print(same)
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB of main memory at most")


if __name__ == "__main__":
    main()
