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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from musicgen_core.codec import Codec
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.data.levels import LAGS, CodeVectors, Versions, profile, reduced
from musicgen_core.data.near_duplicates import PERMUTATIONS, Signatures, first_of_each, joined_keys, signature
from musicgen_core.model.compression import code_vectors
from musicgen_core.model.weights import find_codec
from musicgen_core.synthesis.composing import compose
from musicgen_core.synthesis.rendering import SoundBank

Audio = NDArray[np.float32]
RATE = 44_100
LATEST = 0.5  # seconds behind a clip that its versions may need
STYLES = ("lofi", "techno", "folk")


def versions_of(audio: Audio, start: int, length: int) -> Iterator[tuple[str, Audio, int]]:
    """Yield the clip at `start` and its versions: name, samples and their rate."""
    clip, later = audio[start : start + length], cut(audio, start, length, 0.3)
    yield "original", clip, RATE
    yield "rounded to 16 bits", ((clip * 32767).round() / 32767).astype(np.float32), RATE
    yield "resampled to 32 kHz", soxr.resample(clip, RATE, SAMPLE_RATE), SAMPLE_RATE
    yield "resampled to 22.05 kHz", soxr.resample(clip, RATE, RATE // 2), RATE // 2
    for decibels in (-1, -3, -6, -12):
        yield f"{decibels} dB", amplified(clip, decibels), RATE
    yield "cut 0.3 s later (15 frames)", later, RATE
    yield "cut 0.31 s later (15.5 frames)", cut(audio, start, length, 0.31), RATE
    yield "MP3", mp3(clip), RATE
    yield "cut 0.3 s later, -1 dB", amplified(later, -1), RATE
    yield "cut 0.3 s later, -3 dB", amplified(later, -3), RATE
    yield "cut 0.3 s later, -6 dB", amplified(later, -6), RATE
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
    signatures, profiles, codes_of = [], [], []
    vectors = reduced(code_vectors(find_codec(model)))

    def add(name: str, source: int, audio: Audio, rate: int) -> None:
        [codes] = codec.start([np.ascontiguousarray(audio, dtype=np.float32)], rate).codes()
        names.append(name)
        sources.append(source)
        codes_of.append(codes)
        signatures.append(signature(codes))
        profiles.append(profile(codes, vectors))

    for source, (audio, start) in enumerate(clips_of(folder, seconds)):
        for name, clip, rate in versions_of(audio, start, round(seconds * RATE)):
            add(name, source, clip, rate)
    clips = len(set(sources))
    for number, song in enumerate(songs(song_count, seconds)):
        add("song", clips + number, song, SAMPLE_RATE)
    versions = Versions(np.stack(profiles), codes_of.__getitem__, lambda: vectors)
    stacked, labels, of_clip = np.stack(signatures), np.array(names), np.array(sources)
    originals, is_song = stacked[labels == "original"], labels == "song"
    unsigned = int((~originals.any(axis=1)).sum())
    print(f"{clips} clips of {seconds:g} s, {unsigned} of them without a signature, and {song_count} songs\n")
    print("| version | recall | of it by codes alone | Jaccard index, median (least) |\n| --- | ---: | ---: | ---: |")
    for name in dict.fromkeys(labels[~is_song].tolist()):
        if name != "original":
            version = stacked[labels == name]
            both = np.concatenate([(labels == "original").nonzero()[0], (labels == name).nonzero()[0]])
            by_codes = first_of_each(stacked[both])
            recalls = [(found[clips:] == found[:clips]).mean() for found in (versions.join(by_codes, both), by_codes)]
            shares = (originals == version).mean(axis=1)[originals.any(axis=1)]
            print(f"| {name} | {recalls[0]:.0%} | {recalls[1]:.0%} | {np.median(shares):.2f} ({shares.min():.2f}) |")
    for title, some in (("recordings and their versions", ~is_song), ("with the songs", np.ones_like(is_song))):
        indices = some.nonzero()[0]
        by_codes = first_of_each(stacked[some])
        print(f"\n{title}, by codes: {precision(by_codes, of_clip[some])}")
        print(f"at any level: {precision(versions.join(by_codes, indices), of_clip[some])}")
    print(f"different clips of recordings: {alike(originals)}\nsongs: {alike(stacked[is_song])}")


def precision(clusters: NDArray[np.int64], of_clip: NDArray[np.int64]) -> str:
    """Return how many pairs in one cluster are versions of the same clip."""
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
    vectors = reduced(rng.normal(size=(4, 2048, 128)).astype(np.float32))
    some = np.stack(timed("signature", signature, codes, clips))
    timed("profile", partial(profile, vectors=vectors), codes, clips)
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
    speed_of_versions(clips, codes, vectors)


def speed_of_versions(clips: int, codes: NDArray[np.uint16], vectors: CodeVectors) -> None:
    """Print the time that versions at another level take, on made-up profiles and the frames of `codes`."""
    rng = np.random.default_rng(1)
    styles = rng.normal(size=(200, LAGS))
    profiles = (
        12 * rng.normal(size=(clips, LAGS))
        + 12 * rng.beta(2, 2, size=(clips, 1)) * styles[rng.integers(200, size=clips)]
    )
    copies = rng.choice(clips, size=(2, clips // 20), replace=False)
    profiles[copies[1]] = profiles[copies[0]] + 6 * rng.normal(size=(clips // 20, LAGS))
    compared = 0

    def codes_of(clip: int) -> NDArray[np.uint16]:
        nonlocal compared
        compared += 1
        return codes[clip % len(codes)]

    versions = Versions(profiles.clip(-127, 127).round().astype(np.int8), codes_of, lambda: vectors)
    begun, cpu = time.monotonic(), time.process_time()
    versions.join(np.arange(clips), np.arange(clips))
    print(
        f"versions: {time.monotonic() - begun:.1f} s, {time.process_time() - cpu:.1f} s of CPU time; {compared // 2:,} "
        f"pairs compared by their frames, {clips // 20:,} planted"
    )


def timed(
    name: str, function: Callable[[NDArray[np.uint16]], NDArray[Any]], codes: NDArray[np.uint16], clips: int
) -> list[NDArray[Any]]:
    """Return the results for some clips, and print the CPU time for all."""
    function(codes[0])
    begun = time.process_time()
    found = [function(each) for each in codes]
    per_clip = (time.process_time() - begun) / len(codes)
    print(f"{name}: {1e3 * per_clip:.2f} ms of CPU time a clip, {clips * per_clip:.0f} s for {clips:,} clips")
    return found


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
