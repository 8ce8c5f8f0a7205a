"""Copies of training clips: the time of the search, and what an adapter that learns few clips by heart copies.

    python -m bench.memorization search [--clips 139000] [--samples 96]
    python -m bench.memorization ngrams [--recordings DIR]
    python -m bench.memorization overfit WORKDIR [--steps 50 200 800] [--learning-rate 3e-3] [--device auto]

`search` looks 96 samples of 10 s up in random clips of 30 s. `ngrams` shows which n-grams unrelated recordings, and
synthesized clips of the same instruments, have in common, and how many of them a clip keeps when its sound is encoded
again. `overfit` trains an adapter of the model `demo` on eight clips of one style, from stage to stage, and prints the
figures of `musicgen_core.evaluation.originality` after each, of samples from the descriptions of held-out
clips, and of samples from those of the training clips.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from musicgen_core import storage
from musicgen_core.codec import Codec, Codes
from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import load_clips
from musicgen_core.data.shards import Row, ShardReport, ShardWriter, publish_shard
from musicgen_core.devices import pick_device
from musicgen_core.evaluation.generated import compare_samples
from musicgen_core.evaluation.music import render_described
from musicgen_core.evaluation.originality import Originality
from musicgen_core.evaluation.request import EvaluateRequest, EvaluateSettings
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.model.weights import find_model
from musicgen_core.ngrams import Frames, find_matches
from musicgen_core.synthesis.composing import compose_many
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train

STYLE, SEED = "theremin", 110_000_000
CLIP_FRAMES = 400
TRAINING, HELD_OUT = 8, 16
"""Clips of the archives that are trained on and held out"""


def search(clips: int, samples: int) -> None:
    """Time the search of samples of 10 s in clips of 30 s, of which a thousand differ."""
    rng = np.random.default_rng(0)
    wanted = [rng.integers(2048, size=500).astype(np.uint16) for _ in range(samples)]
    different = [rng.integers(2048, size=1500).astype(np.uint16) for _ in range(1000)]
    different[-1][700:850] = wanted[0][100:250]

    def everything() -> Iterator[Frames]:
        yield from (different[i % len(different)] for i in range(clips))

    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    found = find_matches(wanted, everything())
    seconds = time.monotonic() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert found[0].longest is not None and found[0].longest.frames == 150 and not any(one.shared for one in found[1:])
    print(f"{samples} samples in {clips:,} clips: {seconds:.1f} s, {grown:.0f} MiB")


def ngrams(recordings: Path | None) -> None:
    """Print what unrelated clips have in common by the length of n-grams and the distinct codes that they need."""
    codec = Codec(find_model("demo"))
    composed = [compose_many(1, SEED + i, frames=CLIP_FRAMES)[0] for i in range(40)]
    sets = {"synthesized": codec.start(list(SoundBank().render(composed, CLIP_FRAMES).numpy()), SAMPLE_RATE).codes()}
    if recordings:
        audio = [soundfile.read(path, dtype="float32", always_2d=True) for path in sorted(recordings.glob("*.ogg"))]
        sets["recordings"] = [codec.start([sound.mean(axis=1)[: 30 * rate]], rate).codes()[0] for sound, rate in audio]
    again = {name: [_encoded_again(one, codec) for one in clips] for name, clips in sets.items()}
    print("| clips | codebooks | frames | distinct codes | counted | in another clip | kept when encoded again |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, clips in sets.items():
        for books, frames, distinct in ((1, 10, 1), (1, 10, 3), (1, 10, 5), (1, 15, 8), (1, 25, 12), (2, 10, 5)):
            windows = [_windows(clip, books, frames, distinct) for clip in clips]
            counted = np.mean([is_counted.mean() for _, is_counted in windows])
            known = [{one for one, is_one in zip(*found, strict=True) if is_one} for found in windows]
            shared, kept = [], []
            for i, (found, is_counted) in enumerate(windows):
                others = set[bytes]().union(*(known[j] for j in range(len(known)) if j != i))
                shared.append(np.mean([one in others for one, is_one in zip(found, is_counted, strict=True) if is_one]))
                repeat, _ = _windows(again[name][i], books, frames, 1)
                pairs = zip(found, repeat, is_counted, strict=False)
                kept.append(np.mean([one == other for one, other, is_one in pairs if is_one]))
            row = f"{counted:.0%} | {np.mean(shared):.2%} | {np.mean(kept):.0%}"
            print(f"| {name} | {books} | {frames} | {distinct} | {row} |", flush=True)


def _encoded_again(codes: Codes, codec: Codec) -> Codes:
    """Encode the sound of codes. The demo model's codec inverts the polarity of what it decodes."""
    heard = -codec.decode(torch.from_numpy(codes.astype(np.int64))[None])[0, 0].numpy()
    return codec.start([heard], SAMPLE_RATE).codes()[0]


def _windows(codes: Codes, books: int, frames: int, distinct: int) -> tuple[list[bytes], NDArray[np.bool_]]:
    found = np.lib.stride_tricks.sliding_window_view(codes[:books], frames, axis=1).transpose(1, 0, 2)
    first = np.sort(found[:, 0], axis=1)
    return [one.tobytes() for one in found], 1 + (np.diff(first, axis=1) != 0).sum(axis=1) >= distinct


def overfit(workdir: Path, stages: Sequence[int], learning_rate: float, device_name: str) -> None:
    """Train from stage to stage, and print what samples have in common with training clips after each."""
    model, device = find_model("demo"), pick_device(device_name)
    codec, tokens, run_dir = Codec(model, device), workdir / "tokens", workdir / "run"
    everything = workdir / "everything"
    if not everything.exists():
        _write_tokens(tokens, "trained", SEED, TRAINING, codec)
        shutil.copytree(tokens, everything)
        _write_tokens(everything, "held_out", SEED + 1_000, HELD_OUT, codec)
    clips = load_clips(storage.as_path(everything), codec_identity(model))
    held_out, training = np.arange(HELD_OUT), np.arange(HELD_OUT, HELD_OUT + TRAINING)  # by the names of the archives
    print(
        "| steps | samples from | of | n-grams in training clips | longest run (s) | repetition | Fréchet distance | |"
    )
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: | --- |")
    for steps in stages:
        settings = TrainSettings(
            learning_rate=learning_rate,
            lora_r=32,
            batch_size=4,
            gradient_accumulation_steps=1,
            segment_seconds=4.0,
            num_epochs=100_000,
            max_steps=steps,
            validation_fraction=0,
            full_models="none",
        )
        train(TrainRequest(str(tokens), str(run_dir), "demo", settings, device=device_name))
        adapter = storage.as_path(run_dir / "lora_weights" / "final_lora.pt")
        evaluated = EvaluateSettings(duration=CLIP_FRAMES / FRAME_RATE)
        request = EvaluateRequest(str(everything), str(adapter), "demo", device=device_name, settings=evaluated)
        for origin, indices in (("held-out", held_out[:8].tolist()), ("training", training.tolist())):
            pairs = render_described(
                request, [WeightedAdapter(str(adapter))], model, clips, indices, lambda done, total, text: None
            )
            found, _ = compare_samples(
                pairs=pairs,
                clips=clips,
                held_out=held_out[:8].tolist(),
                others=held_out[8:].tolist(),
                training=training,
                tokens=storage.as_path(everything),
                codec=codec,
            )
            _print(steps, f"{origin} descriptions", found)


def _write_tokens(directory: Path, stem: str, seed: int, number: int, codec: Codec) -> None:
    clips = compose_many(number, seed, STYLE, frames=CLIP_FRAMES)
    codes = codec.start(list(SoundBank().render(clips, CLIP_FRAMES).numpy()), SAMPLE_RATE).codes()
    directory.mkdir(parents=True, exist_ok=True)
    parquet = directory.parent / f"{stem}.parquet"
    with ShardWriter(parquet, codec.identity, codec.shape) as writer:
        for i, (clip, of_clip) in enumerate(zip(clips, codes, strict=True)):
            writer.add(Row(f"{i:03d}.wav", clip.caption, CLIP_FRAMES / FRAME_RATE, of_clip))
    report = ShardReport(
        archive=f"{stem}.zip",
        archive_bytes=1,
        fingerprint=f"synthesized {stem}",
        captions_fingerprint="c",
        clips=number,
        audio_seconds=number * CLIP_FRAMES / FRAME_RATE,
    )
    publish_shard(parquet, report, storage.as_path(directory))


def _print(steps: int, origin: str, found: Originality) -> None:
    distances = found.distances
    away = (distances.held_out, distances.base, distances.adapter) if distances else (None, None, None)
    groups = {"held-out clips": found.held_out, "base model": found.base, "adapter": found.adapter}
    for (name, one), distance in zip(groups.items(), away, strict=True):
        figures = f"{one.shared:.2%} | {one.longest_seconds:.2f} | {one.repeated:.2%}"
        verdict = found.verdict if name == "adapter" else ""
        far = "–" if distance is None else f"{distance:.1f}"
        print(f"| {steps} | {origin} | {name} | {figures} | {far} | {verdict} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    searching = commands.add_parser("search")
    searching.add_argument("--clips", type=int, default=139_000)
    searching.add_argument("--samples", type=int, default=96)
    commands.add_parser("ngrams").add_argument("--recordings", type=Path)
    overfitting = commands.add_parser("overfit")
    overfitting.add_argument("workdir", type=Path)
    overfitting.add_argument("--steps", type=int, nargs="+", default=[50, 200, 800])
    overfitting.add_argument("--learning-rate", type=float, default=3e-3)
    overfitting.add_argument("--device", default="auto")
    given = parser.parse_args()
    if given.command == "search":
        search(given.clips, given.samples)
    elif given.command == "ngrams":
        ngrams(given.recordings)
    else:
        overfit(given.workdir, given.steps, given.learning_rate, given.device)


if __name__ == "__main__":
    main()
