"""Many archives with short clips through the flow `tokenize-archives`: by default 139 with 1,000 clips each.

    python -m bench.many_archives --workdir DIR [--archives 139] [--clips 1000] [--seconds 0.1]

Builds the archives, runs the flow with the debug codec on the CPU against a Prefect server (the one at PREFECT_API_URL,
or a temporary one), and reports clips/s, Prefect's overhead per archive, rows, and memory growth.
"""

from __future__ import annotations

import argparse
import io
import os
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile


def make_archives(folder: Path, archives: int, clips: int, seconds: float) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    wavs = []
    for _ in range(256):
        buffer = io.BytesIO()
        time_axis = np.arange(round(16_000 * seconds * rng.uniform(0.5, 1.5))) / 16_000
        tone = 0.4 * np.sin(2 * np.pi * rng.uniform(80, 4000) * time_axis) + 0.01 * rng.standard_normal(len(time_axis))
        soundfile.write(buffer, tone, 16_000, format="WAV", subtype="PCM_16")
        wavs.append(buffer.getvalue())
    for number in range(1, archives + 1):
        with zipfile.ZipFile(folder / f"archive_batch_{number:04}.zip", "w") as archive:
            for clip in range(clips):
                archive.writestr(f"audio/{number:04}_{clip:04}.wav", wavs[(number + clip) % len(wavs)])


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--archives", type=int, default=139)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.1, help="mean length of a clip")
    parser.add_argument("--workers", type=int, default=None)
    given = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "disabled")

    from deployments.environment import prepare, use_local_server

    prepare(quiet=True)
    use_local_server()
    from flows.parameters import Workers
    from flows.tokenize_archives import tokenize_archives
    from musicgen_core import storage
    from musicgen_core.codec import Codec
    from musicgen_core.data.archive import find_archives
    from musicgen_core.model.weights import find_model
    from musicgen_core.tokenizing import Tokenizer

    archives, tokens = given.workdir / "archives", given.workdir / "tokens"
    make_archives(archives, given.archives, given.clips, given.seconds)
    tokenizer = Tokenizer(Codec(find_model("debug")), storage.as_path(given.workdir / "core"))
    tokenizer.tokenize(find_archives(archives)[0])  # warm
    started = time.monotonic()
    for archive in find_archives(archives)[1:4]:
        tokenizer.tokenize(archive)
    alone = (time.monotonic() - started) / min(3, given.archives - 1)
    print(f"core alone, one archive after another: {alone:.2f} s an archive, {given.clips / alone:.0f} clips/s")

    memory: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(5.0):
            memory.append(rss_mib())

    threading.Thread(target=watch, daemon=True).start()
    started = time.monotonic()
    state = tokenize_archives(
        archives=str(archives),
        tokens=str(tokens),
        model="debug",
        device="cpu",
        workers=Workers(max_workers=given.workers),
        return_state=True,
    )
    took = time.monotonic() - started
    done.set()
    result: Any = state.result()
    rows = sum(report.clips for report in result.reports)
    print(f"flow: {state.message}; {took:.1f} s, {rows / took:.0f} clips/s, {took / given.archives:.2f} s an archive")
    print(f"rows {rows:,}, rejected {sum(len(report.rejected) for report in result.reports)}, failed {result.failed}")
    quarter = max(1, len(memory) // 4)
    print("memory, MiB, mean of each quarter of the run:", end="")
    for begin in range(0, quarter * 4, quarter):
        print(f" {np.mean(memory[begin : begin + quarter]):.0f}", end="")
    print(f"; at most {max(memory):.0f}")


if __name__ == "__main__":
    main()
