"""Accuracy of the measured tempo and key on clips of known ones, beside librosa's, and speed of all measurements.

    python -m bench.captioning_accuracy clips DIR [--seed N] [--count 100] [--seconds 30]
    python -m bench.captioning_accuracy measure DIR [--device cuda]
    python -m bench.captioning_librosa DIR      (in another environment, with librosa)
    python -m bench.captioning_accuracy speed [--device cuda]

`clips` writes 100 clips of the project's synthesis and 100 variations, with what is known of them. Keys are counted for
whole clips, which begin where the piece begins, and for clips without their first seven seconds: many pieces have the
chords of two keys, so only where they begin tells which is meant.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from bench.captioning_clips import Known, synthesized, varied
from musicgen_core.captioning.key import Key, measure_key
from musicgen_core.captioning.levels import clipped_share, integrated_loudness, silent_share
from musicgen_core.captioning.speech import RATE as SPEECH_RATE
from musicgen_core.captioning.speech import load_vad, measure_speech
from musicgen_core.captioning.tempo import measure_tempo
from musicgen_core.codes import SAMPLE_RATE

CUT_SECONDS = 7
TOLERANCE = 0.04
CONFIDENCES = (0.0, 0.25, 0.5, 0.75, 1.0, 2.0)


def make_clips(folder: Path, seed: int, count: int, seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in (("synthesized", synthesized), ("varied", varied)):
        audio, known = source(seed, count, seconds)
        np.save(folder / f"{name}.npy", audio.numpy())
        (folder / f"{name}.json").write_text(json.dumps([asdict(each) for each in known]))


def measure(folder: Path, device: str) -> None:
    print("| clips | tempo within 4 % | twice or half | no tempo | right key | cut: right key | relative | no key |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    by_confidence: dict[str, list[str]] = {}
    for name in ("synthesized", "varied"):
        audio = torch.from_numpy(np.load(folder / f"{name}.npy")).to(device)
        known = [Known(**each) for each in json.loads((folder / f"{name}.json").read_text())]
        tempos = measure_tempo(audio).bpm.tolist()
        whole, cut = measure_key(audio), measure_key(audio[:, CUT_SECONDS * SAMPLE_RATE :])
        keys, cut_keys = _keys(whole), _keys(cut)
        print(f"| {name} | {tempo_row(tempos, known)} | {key_row(keys, cut_keys, known)} |")
        by_confidence[name] = list(confidence_rows(whole, cut, known))
        theirs = folder / f"{name}_librosa.json"
        if theirs.exists():
            librosa = json.loads(theirs.read_text())
            keys, cut_keys = ([(root, mode) for root, mode in librosa[each]] for each in ("keys", "cut_keys"))
            print(f"| {name}, librosa | {tempo_row(librosa['tempos'], known)} | {key_row(keys, cut_keys, known)} |")
    for name, rows in by_confidence.items():
        print(f"\n| {name}: confidence of the key | right | cut: right |\n| --- | ---: | ---: |", *rows, sep="\n")


def confidence_rows(keys: Key, cut_keys: Key, known: Sequence[Known]) -> Iterator[str]:
    """Yield for each range of the key's confidence how many pitched clips have it and how many of these are right."""
    truth = [(of.root, of.mode == "minor") for of in known]
    for low, high in pairwise(CONFIDENCES):
        cells = []
        for found in (keys, cut_keys):
            values = zip(found.root.tolist(), found.minor.tolist(), found.confidence.tolist(), truth, strict=True)
            right = [
                (root, minor) == of for root, minor, sure, of in values if of[0] is not None and low <= sure < high
            ]
            cells.append(f"{sum(right)} of {len(right)}")
        yield f"| {low:g} to {min(high, 1):g} | {' | '.join(cells)} |"


def tempo_row(tempos: Sequence[float], known: Sequence[Known]) -> str:
    """Return the shares of clips with a beat whose tempo is right, an octave off, and missing."""
    ratios = np.array([bpm / of.bpm for bpm, of in zip(tempos, known, strict=True) if of.bpm])
    right = np.abs(ratios - 1) <= TOLERANCE
    octave = (np.abs(ratios / 2 - 1) <= TOLERANCE) | (np.abs(ratios * 2 - 1) <= TOLERANCE)
    return " | ".join(f"{100 * share.mean():.0f} %" for share in (right, octave, np.isnan(ratios)))


Keys = Sequence[tuple[int, str]]


def key_row(keys: Keys, cut_keys: Keys, known: Sequence[Known]) -> str:
    """Return the shares of pitched clips whose key is right; of cut ones also the relative key, and none."""
    pitched = [index for index, of in enumerate(known) if of.root is not None]
    right, cut = (np.mean([found[i] == (known[i].root, known[i].mode) for i in pitched]) for found in (keys, cut_keys))
    relative = np.mean([cut_keys[i] == _relative(known[i]) for i in pitched])
    missing = np.mean([keys[i][0] < 0 for i in pitched])
    return " | ".join(f"{100 * share:.0f} %" for share in (right, cut, relative, missing))


def _relative(known: Known) -> tuple[int, str]:
    assert known.root is not None
    major = known.mode == "major"
    return (known.root + (9 if major else 3)) % 12, "minor" if major else "major"


def _keys(found: Key) -> Keys:
    modes = ("minor" if minor else "major" for minor in found.minor.tolist())
    return list(zip(found.root.tolist(), modes, strict=True))


def speed(device: str, clips: int, seconds: float) -> None:
    generator = torch.Generator().manual_seed(1)
    audio = (0.1 * torch.randn(clips, round(seconds * SAMPLE_RATE), generator=generator)).to(device)
    at_16k = audio[:, : round(seconds * SPEECH_RATE)].contiguous()
    vad = load_vad(device)
    steps: dict[str, Callable[[], object]] = {
        "tempo": lambda: measure_tempo(audio),
        "key": lambda: measure_key(audio),
        "loudness": lambda: integrated_loudness(audio),
        "silence": lambda: silent_share(audio),
        "clipping": lambda: clipped_share(audio),
        "speech": lambda: measure_speech(vad, at_16k),
    }
    print(f"{clips} clips of {seconds:g} s on {device}, {torch.get_num_threads()} threads")
    print("| measurement | audio-seconds/s |\n| --- | ---: |")
    total = 0.0
    for name, step in steps.items():
        step()
        times = []
        for _ in range(3):
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            times.append(time.perf_counter() - start)
        total += min(times)
        print(f"| {name} | {clips * seconds / min(times):,.0f} |")
    print(f"| all | {clips * seconds / total:,.0f} |")


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    clips, measuring, timing = (commands.add_parser(name) for name in ("clips", "measure", "speed"))
    for each in (clips, measuring):
        each.add_argument("folder", type=Path)
    for each in (measuring, timing):
        each.add_argument("--device", default="cpu")
    clips.add_argument("--seed", type=int, default=50_000)
    clips.add_argument("--count", type=int, default=100)
    clips.add_argument("--seconds", type=float, default=30.0)
    timing.add_argument("--clips", type=int, default=16)
    given = parser.parse_args()
    if given.command == "clips":
        make_clips(given.folder, given.seed, given.count, given.seconds)
    elif given.command == "measure":
        with torch.inference_mode():
            measure(given.folder, given.device)
    else:
        with torch.inference_mode():
            speed(given.device, given.clips, 30.0)


if __name__ == "__main__":
    main()
