"""Training data of the language model: procedural music as codes.

    python -m demo_model.dataset compose WORK [--clips 160000] [--long-clips 40000] [--workers 14]
    python -m demo_model.dataset encode WORK

The first command needs only CPU cores, so it can run while the codec is trained. It writes WORK/composed-*.pt, the
second WORK/codes-*.pt; both skip existing files.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from upath import UPath

from demo_model.training import device_with_tf32
from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.model.weights import find_codec
from musicgen_core.synthesis.composing import Clip, compose_many
from musicgen_core.synthesis.rendering import SoundBank

SHORT_FRAMES, LONG_FRAMES = 500, 1500  # 10 s, and the 30 s of MusicGen's context
FIRST_SEEDS = {SHORT_FRAMES: 20_000_000, LONG_FRAMES: 30_000_000}
VALIDATION_SEED = 40_000_000
VALIDATION_CLIPS = 512
CLIPS_AT_ONCE = 256


def compose(work: Path, clips: int, long_clips: int, workers: int) -> None:
    """Compose the training clips of both lengths, and the validation clips."""
    parts = {
        "short": (clips, FIRST_SEEDS[SHORT_FRAMES], SHORT_FRAMES),
        "long": (long_clips, FIRST_SEEDS[LONG_FRAMES], LONG_FRAMES),
        "validation": (min(clips, VALIDATION_CLIPS), VALIDATION_SEED, SHORT_FRAMES),
    }
    for name, (count, seed, frames) in parts.items():
        path = work / f"composed-{name}.pt"
        if path.exists():
            continue
        began = time.monotonic()
        composed = compose_many(count, seed, frames=frames, workers=workers)
        _save(path, {"frames": frames, "clips": composed})
        print(f"{count} clips of {frames / 50:g} s composed in {time.monotonic() - began:.0f} s", flush=True)


def encode(work: Path) -> None:
    """Render and encode all clips."""
    device = device_with_tf32()
    bank = SoundBank(device)
    codec = Codec(find_codec(str(work / "model")), device)
    for path in sorted(work.glob("composed-*.pt")):
        target = work / path.name.replace("composed-", "codes-")
        if target.exists():
            continue
        began = time.monotonic()
        given = torch.load(path, weights_only=False)  # written by `compose` above
        clips, frames = given["clips"], given["frames"]
        parts = (clips[start : start + CLIPS_AT_ONCE] for start in range(0, len(clips), CLIPS_AT_ONCE))
        codes = torch.cat([_encode(bank, codec, part, frames) for part in parts])
        _save(target, {"codes": codes, "captions": [clip.caption for clip in clips]})
        print(f"{len(clips)} clips encoded in {time.monotonic() - began:.0f} s", flush=True)


def _encode(bank: SoundBank, codec: Codec, clips: Sequence[Clip], frames: int) -> torch.Tensor:
    """Return the codes of clips, [N, 4, frames], in 16 bits on the CPU."""
    return codec.encode(bank.render(clips, frames)[:, None]).to(torch.int16).cpu()


def load(work: Path, name: str) -> tuple[torch.Tensor, list[str]]:
    """Return the codes [N, 4, frames] and captions of `short`, `long` or `validation`."""
    given = torch.load(work / f"codes-{name}.pt", weights_only=True)
    return given["codes"], given["captions"]


def _save(path: Path, content: Any) -> None:
    with storage.publish(UPath(path)) as partial:
        torch.save(content, partial)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("compose", "encode"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--clips", type=int, default=160_000)
    parser.add_argument("--long-clips", type=int, default=40_000)
    parser.add_argument("--workers", type=int, default=1, help="processes that compose")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.what == "compose":
        compose(given.work, given.clips, given.long_clips, given.workers)
    else:
        encode(given.work)


if __name__ == "__main__":
    main()
