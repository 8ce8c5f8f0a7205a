"""Removing vocals, with random weights of the exact shape of htdemucs: the model alone, clips, and archives.

    python -m bench.separation --device cuda --workdir DIR [--archives 4] [--clips 200] [--seconds 30] [--workers 4]

The model alone gets segments of 7.8 s, of which three quarters are new audio. Then clips in memory are separated, and
those of zip archives of 44.1 kHz stereo 16-bit clips, as `bench.tokenize` makes them, several archives at a time: read,
decoded and separated as `tokenize --remove-vocals` does, but not encoded. Last, the largest difference between a clip
separated in a batch and alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demucs.htdemucs import HTDemucs
from safetensors.torch import save_file
from upath import UPath

from bench.tokenize import Table, make_archives
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import find_archives, open_archive
from musicgen_core.data.audio import DecodedClip
from musicgen_core.data.decoding import decoded_clips
from musicgen_core.data.members import limits_of
from musicgen_core.devices import pick_device
from musicgen_core.separation.clips import OVERLAP, Separation, separated_clips
from musicgen_core.separation.separator import VOCALS, Separator
from musicgen_core.separation.weights import BAG_FILE, SIGNATURE, WEIGHTS_FILE

ARGUMENTS: dict[str, Any] = {
    "sources": ["drums", "bass", "other", "vocals"],
    "samplerate": 44_100,
    "segment": Fraction(39, 5),
    "dconv_mode": 3,
    "bottom_channels": 512,
    "t_dropout": 0.02,
}
"""Where htdemucs differs from the defaults of the class"""


def make_weights(folder: Path) -> Path:
    """Write random weights as the Hub has those of htdemucs."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    described = {
        "klass": "demucs.htdemucs.HTDemucs",
        "args": "[]",
        "kwargs": json.dumps(
            ARGUMENTS,
            default=lambda it: {"_type": "fraction", "numerator": it.numerator, "denominator": it.denominator},
        ),
    }
    state = {name: value.half().contiguous() for name, value in HTDemucs(**ARGUMENTS).state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE, described)
    (folder / BAG_FILE).write_text(f"models: ['{SIGNATURE}']\n")
    print(f"{sum(value.numel() for value in state.values()) / 1e6:.1f} M parameters", flush=True)
    return folder


def measure_model(table: Table, separator: Separator, batches: Sequence[int], repeats: int) -> None:
    new_seconds = (1 - OVERLAP) * separator.segment_samples / separator.rate
    for batch in batches:
        segments = torch.randn(batch, 2, separator.segment_samples)
        separator.without(segments, [VOCALS])
        with table.timed(f"model alone, {batch} segments", repeats * batch * new_seconds):
            for _ in range(repeats):
                separator.without(segments, [VOCALS])


def stereo_clips(count: int, seconds: float, rate: int) -> Iterator[tuple[int, DecodedClip]]:
    rng = np.random.default_rng(0)
    for index in range(count):
        yield index, DecodedClip(0.1 * rng.standard_normal((2, round(seconds * rate)), dtype=np.float32), rate)


def separate_archive(separator: Separator, archive: UPath) -> int:
    """Read, decode and separate all clips of an archive; return how many."""
    with open_archive(Path(str(archive))) as opened:
        decoded = decoded_clips(
            opened.clips(), limits_of(TokenizeSettings()).max_clip_bytes, stereo=True, rate=separator.rate
        )
        return sum(isinstance(clip, DecodedClip) for _, clip in separated_clips(Separation(separator), decoded))


def largest_difference(separator: Separator, clips: Sequence[tuple[int, DecodedClip]]) -> float:
    together = [clip for _, clip in separated_clips(Separation(separator), clips)]
    alone = [clip for each in clips for _, clip in separated_clips(Separation(separator), [each])]
    return max(
        float(np.abs(one.samples - other.samples).max())
        for one, other in zip(together, alone, strict=True)
        if isinstance(one, DecodedClip) and isinstance(other, DecodedClip)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--archives", type=int, default=4)
    parser.add_argument("--clips", type=int, default=200, help="in each archive")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=4, help="of each batch of the model alone")
    given = parser.parse_args()

    table = Table()
    separator = Separator(make_weights(given.workdir / "htdemucs"), pick_device(given.device))
    measure_model(table, separator, given.batches, given.repeats)
    clips = list(stereo_clips(min(64, given.clips), given.seconds, separator.rate))
    with table.timed(f"clips in memory, {separator.batch_segments} segments at a time", len(clips) * given.seconds):
        assert len(list(separated_clips(Separation(separator), clips))) == len(clips)
    both = Separation(separator, extract_chroma=True)
    with table.timed("the same, with the chroma of their melodies", len(clips) * given.seconds):
        assert len(list(separated_clips(both, clips))) == len(clips)
    seconds = make_archives(given.workdir / "archives", given.archives, given.clips, given.seconds, mixed=False)
    archives = find_archives(given.workdir / "archives")
    with (
        table.timed(f"archives to clips without vocals, {given.workers} at a time", seconds),
        ThreadPoolExecutor(given.workers) as pool,
    ):
        found = sum(pool.map(lambda archive: separate_archive(separator, archive), archives))
    assert found == given.archives * given.clips
    print("\n" + "\n".join(table.rows))
    print(f"in a batch and alone, samples of a clip differ by at most {largest_difference(separator, clips[:8]):.1e}")
    print(f"batches were of {separator.batch_segments} segments in the end")


if __name__ == "__main__":
    main()
