"""Recall and precision of near duplicates on a planted set, and the time that a large data set takes.

    python -m bench.near_duplicates planted RECORDINGS [--model demo] [--seconds 10] [--songs 100]
    python -m bench.near_duplicates speed [--clips 139000]

`planted` cuts every recording of a folder into clips and adds each clip in other versions. A version is recalled if it
is in the cluster of its original. Precision is the share of pairs in one cluster that are versions of the same clip,
with all versions and synthesized songs together. Clips without a signature count as not recalled.
"""

from __future__ import annotations

import argparse
import io
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from musicgen_core.codec import Codec
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.data.near_duplicates import PERMUTATIONS, Signatures, first_of_each, joined_keys, signature
from musicgen_core.model.weights import find_codec
from musicgen_core.synthesis.composing import compose
from musicgen_core.synthesis.rendering import SoundBank

Audio = NDArray[np.float32]
RATE = 44_100
LATEST = 0.5  # seconds behind a clip that its versions may need
STYLES = ("lofi", "techno", "folk")


def versions(audio: Audio, start: int, length: int) -> Iterator[tuple[str, Audio, int]]:
    """Yield the clip at `start` and its versions: name, samples and their rate."""
    clip, later = audio[start : start + length], cut(audio, start, length, 0.3)
    yield "original", clip, RATE
    yield "rounded to 16 bits", ((clip * 32767).round() / 32767).astype(np.float32), RATE
    yield "resampled to 32 kHz", soxr.resample(clip, RATE, SAMPLE_RATE), SAMPLE_RATE
    yield "resampled to 22.05 kHz", soxr.resample(clip, RATE, RATE // 2), RATE // 2
    for decibels in (-1, -3, -6):
        yield f"{decibels} dB", amplified(clip, decibels), RATE
    yield "cut 0.3 s later (15 frames)", later, RATE
    yield "cut 0.31 s later (15.5 frames)", cut(audio, start, length, 0.31), RATE
    yield "MP3", mp3(clip), RATE
    yield "cut 0.3 s later, -1 dB", amplified(later, -1), RATE
    yield "cut 0.3 s later, -3 dB", amplified(later, -3), RATE
    yield "cut 0.3 s later, resampled to 22.05 kHz", soxr.resample(later, RATE, RATE // 2), RATE // 2
    yield "MP3, -1 dB", mp3(amplified(clip, -1)), RATE


def cut(audio: Audio, start: int, length: int, seconds: float) -> Audio:
    begin = start + round(seconds * RATE)
    return audio[begin : begin + length]


def amplified(clip: Audio, decibels: float) -> Audio:
    return clip * np.float32(10 ** (decibels / 20))


def mp3(clip: Audio) -> Audio:
    """Return a clip after encoding as MP3 and decoding, by libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, clip, RATE, format="MP3")
    buffer.seek(0)
    audio: Audio = soundfile.read(buffer, dtype="float32")[0]
    return audio


def clips_of(folder: Path, seconds: float) -> Iterator[tuple[Audio, int]]:
    """Yield each recording at 44.1 kHz with the start of each clip in it."""
    for path in sorted(folder.iterdir()):
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = soxr.resample(audio.mean(axis=1), rate, RATE)
        for number in range(int((len(mono) / RATE - LATEST) / seconds)):
            yield mono, round(number * seconds * RATE)


def songs(count: int, seconds: float) -> Iterator[Audio]:
    """Yield synthesized songs at 32 kHz."""
    frames = round(seconds * 50)
    composed = [compose(number, STYLES[number % len(STYLES)], frames) for number in range(count)]
    for start in range(0, count, 16):
        yield from SoundBank().render(composed[start : start + 16], frames).numpy()


def planted(folder: Path, model: str, seconds: float, song_count: int) -> None:
    codec = Codec(find_codec(model))
    names: list[str] = []
    sources: list[int] = []
    signatures = []
    for source, (audio, start) in enumerate(clips_of(folder, seconds)):
        for name, clip, rate in versions(audio, start, round(seconds * RATE)):
            [codes] = codec.start([np.ascontiguousarray(clip, dtype=np.float32)], rate).codes()
            names.append(name)
            sources.append(source)
            signatures.append(signature(codes))
    clips = len(set(sources))
    for number, song in enumerate(songs(song_count, seconds)):
        names.append("song")
        sources.append(clips + number)
        signatures.append(signature(codec.start([song], SAMPLE_RATE).codes()[0]))
    stacked, labels, of_clip = np.stack(signatures), np.array(names), np.array(sources)
    originals, is_song = stacked[labels == "original"], labels == "song"
    unsigned = int((~originals.any(axis=1)).sum())
    print(f"{clips} clips of {seconds:g} s, {unsigned} of them without a signature, and {song_count} songs\n")
    print("| version | recall | Jaccard index, median (least) |\n| --- | ---: | ---: |")
    for name in dict.fromkeys(labels[~is_song].tolist()):
        if name != "original":
            version = stacked[labels == name]
            firsts = first_of_each(np.concatenate([originals, version]))
            recall = (firsts[clips:] == firsts[:clips]).mean()
            shares = (originals == version).mean(axis=1)[originals.any(axis=1)]
            print(f"| {name} | {recall:.0%} | {np.median(shares):.2f} ({shares.min():.2f}) |")
    print(f"\nrecordings and their versions: {precision(stacked[~is_song], of_clip[~is_song])}")
    print(f"with the songs: {precision(stacked, of_clip)}")
    print(f"different clips of recordings: {alike(originals)}\nsongs: {alike(stacked[is_song])}")


def precision(signatures: Signatures, of_clip: NDArray[np.int64]) -> str:
    """Return the share of pairs in one cluster that are versions of the same clip."""
    clusters = first_of_each(signatures)
    together = np.triu(clusters[:, None] == clusters, k=1)
    right = int((together & (of_clip[:, None] == of_clip)).sum())
    return f"{right:,} of {int(together.sum()):,} pairs in one cluster are versions of the same clip"


def alike(signatures: Signatures) -> str:
    """Return how alike different clips are."""
    signed = signatures[signatures.any(axis=1)]
    indices = np.concatenate([(one == signed[number + 1 :]).mean(axis=1) for number, one in enumerate(signed)])
    top = ", ".join(f"{index:.2f}" for index in np.sort(indices)[::-1][:5])
    return f"Jaccard index of {len(indices):,} pairs: highest {top}; 99 % up to {np.quantile(indices, 0.99):.2f}"


def speed(clips: int) -> None:
    """Print the CPU time of signatures, clusters and joined groups, on codes of 30 s and made-up signatures."""
    rng = np.random.default_rng(0)
    # Music repeats itself: some 600 to 1,000 of 1,500 bigrams are distinct.
    codes = rng.integers(2048, size=(200, 4, 900), dtype=np.uint16)
    codes = np.concatenate([codes, codes[:, :, :600]], axis=2)
    signature(codes[0])
    begun = time.process_time()
    some = np.stack([signature(each) for each in codes])
    per_clip = (time.process_time() - begun) / len(codes)
    print(f"signature: {1e3 * per_clip:.2f} ms of CPU time a clip, {clips * per_clip:.0f} s for {clips:,} clips")
    signatures = rng.integers(1, 2**16, size=(clips, PERMUTATIONS), dtype=np.uint16)
    is_shared = rng.random(signatures.shape) < rng.beta(1.2, 10, size=(clips, 1))  # with one of 200 styles
    signatures = np.where(is_shared, some[rng.integers(len(some), size=clips)], signatures)
    copies = rng.choice(clips, size=(2, clips // 20), replace=False)
    changed = rng.random((clips // 20, PERMUTATIONS)) < 0.3
    signatures[copies[1]] = np.where(changed, signatures[copies[1]], signatures[copies[0]])
    begun = time.process_time()
    firsts = first_of_each(signatures)
    clustered = time.process_time()
    joined_keys(rng.integers(2**63, size=clips).astype(np.uint64), firsts)
    joined = time.process_time()
    found = (firsts[copies[0]] == firsts[copies[1]]).mean()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"clusters: {clustered - begun:.2f} s, groups: {joined - clustered:.2f} s, {found:.1%} of {clips // 20:,} found"
    )
    print(f"signatures {signatures.nbytes / 2**20:.0f} MiB, peak of the process {peak:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    plants = commands.add_parser("planted")
    plants.add_argument("recordings", type=Path)
    plants.add_argument("--model", default="demo")
    plants.add_argument("--seconds", type=float, default=10)
    plants.add_argument("--songs", type=int, default=100)
    speeds = commands.add_parser("speed")
    speeds.add_argument("--clips", type=int, default=139_000)
    given = parser.parse_args()
    if given.command == "planted":
        planted(given.recordings, given.model, given.seconds, given.songs)
    else:
        speed(given.clips)


if __name__ == "__main__":
    main()
