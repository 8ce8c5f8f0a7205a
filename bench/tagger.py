"""The taggers: compared with TensorFlow, their speed, and the tags of recordings.

python -m bench.tagger compare REFERENCE.npz [--device cuda]    made by bench.tagger_reference
python -m bench.tagger speed [--device cuda] [--clips 4]
python -m bench.tagger tags RECORDING ...
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from bench.tagger_reference import RATE
from musicgen_core.captioning.musicnn import Musicnn, log_mel
from musicgen_core.devices import pick_device
from musicgen_core.music_tags import MSD_TAGS, MTT_TAGS, choose_tags

SHOWN = 8  # raw tags


def compare(path: Path, device: torch.device) -> None:
    """Print the largest differences from TensorFlow: spectrogram, probabilities of patches and clips, features."""
    taggers, reference = Musicnn(device), np.load(path)
    print("| clip | s | log mel | MTT | MSD | features |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in sorted({key.partition("/")[0] for key in reference.files}):
        audio = torch.from_numpy(reference[f"{name}/audio"])[None]
        found = taggers.predict(audio)
        wanted = {
            network: {
                kind: reference[f"{name}/{network}_musicnn/{kind}"].mean(0) for kind in ("probabilities", "features")
            }
            for network in ("MTT", "MSD")
        }
        differences = [
            np.abs(log_mel(audio)[0].numpy() - reference[f"{name}/mel"]).max(),
            np.abs(found.mtt[0].cpu().numpy() - wanted["MTT"]["probabilities"]).max(),
            np.abs(found.msd[0].cpu().numpy() - wanted["MSD"]["probabilities"]).max(),
            np.abs(found.features[0].cpu().numpy() - np.concatenate([wanted[n]["features"] for n in wanted])).max(),
        ]
        print(f"| {name} | {audio.shape[1] / RATE:.1f} | {' | '.join(f'{each:.1e}' for each in differences)} |")


def speed(device: torch.device, clips: int) -> None:
    """Print audio-seconds per second of both networks on clips of 30 s at 16 kHz; the best of five."""
    taggers = Musicnn(device)
    audio = 0.1 * torch.randn(clips, 30 * RATE, generator=torch.Generator().manual_seed(0))
    audio = audio.to(device)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        taggers.predict(audio).mtt.cpu()
        times.append(time.perf_counter() - start)
    print(f"{clips} clips of 30 s: {clips * 30 / min(times[1:]):,.0f} × real time ({torch.get_num_threads()} threads)")
    if device.type == "cuda":
        print(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")


def show_tags(recordings: list[Path]) -> None:
    """Print the tags of whole recordings, and the most probable raw ones of each network."""
    taggers = Musicnn(torch.device("cpu"))
    for path in recordings:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        tagging = taggers.predict(torch.from_numpy(soxr.resample(audio.mean(1), rate, RATE))[None])
        print(f"\n{path.stem}")
        for names, values in ((MTT_TAGS, tagging.mtt[0]), (MSD_TAGS, tagging.msd[0])):
            best = values.topk(SHOWN)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            print("    raw:", ", ".join(f"{names[column]} {value:.2f}" for column, value in pairs))
        chosen = choose_tags(tagging)[0]
        for category in dict.fromkeys(tag.category for tag in chosen):
            texts = [f"{tag.name} {tag.probability:.2f}" for tag in chosen if tag.category == category]
            print(f"    {category}:", ", ".join(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("compare", "speed", "tags"))
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, default=4)
    options = parser.parse_args()
    device = pick_device(options.device)
    if options.what == "compare":
        compare(options.files[0], device)
    elif options.what == "speed":
        speed(device, options.clips)
    else:
        show_tags(options.files)


if __name__ == "__main__":
    main()
