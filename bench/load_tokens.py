"""Loading of tokens, from shards to batches, without a model: packing, warm start, memory, batches/s.

    python -m bench.load_tokens --workdir DIR [--shards 10 139] [--clips 1000] [--batch-size 4]

Writes shards of random codes, 30 s per clip (ten of them; the others are links to these under other names), and loads
them in a new process each: first with an empty cache, then with a full one, with warm and cold page cache and different
orders of clips. Random codes are the worst case for compression. Memory is the increase since the imports: anonymous
memory, and pages of mapped files, which the system can reclaim.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 30
CODEC = "sha256:random"
DISTINCT = 10
BATCHES = 2000


def make_shards(tokens: Path, shards: int, clips: int, codec: str = CODEC, words: int = 40) -> None:
    from musicgen_core import storage
    from musicgen_core.data.shards import Row, ShardReport, ShardWriter, publish_shard

    for number in range(shards):
        stem = f"archive_batch_{number + 1:04}"
        parquet = tokens.parent / f"{stem}.parquet"
        if number < DISTINCT:
            rng = np.random.default_rng(number)
            with ShardWriter(parquet, codec) as writer:
                for clip in range(clips):
                    codes = rng.integers(0, 2048, (4, 50 * SECONDS), dtype=np.uint16)
                    description = f"calm piano, number {clip}, {'slow ' * words}"
                    writer.add(Row(f"audio/{clip:04}.wav", description, SECONDS, codes))
            report = ShardReport(
                archive=f"{stem}.zip",
                archive_bytes=1,
                fingerprint=stem,
                captions_fingerprint=stem,
                clips=clips,
                audio_seconds=SECONDS * clips,
            )
            publish_shard(parquet, report, storage.as_path(tokens))
            parquet.unlink()
        else:
            like = tokens / f"archive_batch_{number % DISTINCT + 1:04}"
            (tokens / f"{stem}.parquet").hardlink_to(like.with_suffix(".parquet"))
            text = like.with_suffix(".json").read_text().replace(like.name, stem)
            (tokens / f"{stem}.json").write_text(text)


def memory_mib() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line[:-3].split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}


@dataclass
class Watch:
    """Elapsed time of a block, and its peak increase of memory."""

    seconds: float = 0.0
    peak_mib: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        own, mapped = self.peak_mib["RssAnon"], self.peak_mib["RssFile"]
        return f"{self.seconds:.2f} s, memory +{own:.0f} MiB of its own, +{mapped:.0f} MiB of mapped files"


@contextmanager
def watched(before: dict[str, float]) -> Iterator[Watch]:
    watch, done = Watch(), threading.Event()

    def sample() -> None:
        while True:
            for name, value in memory_mib().items():
                watch.peak_mib[name] = max(watch.peak_mib.get(name, 0.0), value - before[name])
            if done.wait(0.02):
                return

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.monotonic()
    yield watch
    watch.seconds = time.monotonic() - started
    done.set()
    sampler.join()


def measure(tokens: Path, folder: Path, batch_size: int, seed: int) -> dict[str, Any]:
    """Load and read all clips; runs in a separate process."""
    from musicgen_core import storage
    from musicgen_core.data.crops import Batch, prefetched, training_batch
    from musicgen_core.data.dataset import load_clips

    before = memory_mib()
    with watched(before) as load:
        clips = load_clips(storage.as_path(tokens), CODEC, folder)
    order = np.random.default_rng(seed).permutation(len(clips))
    chosen = [order[start : start + batch_size] for start in range(0, len(order), batch_size)][:BATCHES]
    make: list[Callable[[], Batch]] = [
        partial(
            training_batch,
            clips,
            [int(index) for index in indices],
            segment_frames=50 * SECONDS,
            cfg_dropout=0.3,
            seed=seed,
            epoch=1,
        )
        for indices in chosen
    ]
    with watched(before) as use, prefetched(make) as batches:
        frames = sum(int(batch.frames.sum()) for batch in batches)
    return {"clips": len(clips), "load": load, "use": use, "batches": len(make), "audio_seconds": frames / 50}


def forget(folder: Path) -> None:
    """Ask the system to drop the packed files from its page cache."""
    for path in folder.glob("*.arrow"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def report(name: str, found: dict[str, Any]) -> None:
    use = found["use"]
    print(f"  {name}: {found['clips']} clips in {found['load']}")
    print(
        f"    then {found['batches']} batches: {found['batches'] / use.seconds:.0f} batches/s,"
        f" {found['audio_seconds'] / use.seconds:,.0f} audio-s/s; {use}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 139])
    parser.add_argument("--clips", type=int, default=1000, help="clips in a shard")
    parser.add_argument("--batch-size", type=int, default=4)
    given = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    for shards in given.shards:
        place = given.workdir / str(shards)
        tokens, folder = place / "tokens", place / "cache"
        tokens.mkdir(parents=True)
        make_shards(tokens, shards, given.clips)
        print(f"{shards} shards of {given.clips} clips", flush=True)
        for seed, name in enumerate(("first start", "second start, warm", "second start, cold")):
            if name.endswith("cold"):
                forget(folder)
            with processes.Pool(1) as pool:
                report(name, pool.apply(measure, (tokens, folder, given.batch_size, seed)))
        packed = sum(path.stat().st_size for path in folder.glob("*.arrow"))
        print(f"  packed files: {packed / 1e9:.2f} GB", flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
