"""Prior preservation against forgetting: a run also trains on clips that its base model generated, as DreamBooth does.

The clips are made once a run, from general prompts and the run's seed, before its first step. They are a shard in
`RUN_DIR/prior`, so that what reads and checks tokens reads and checks them, too; a resumed run trains on the same ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice

import numpy as np
import torch
from torch import Tensor
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import SamplingSettings, TrainSettings
from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.data.shards import Row, ShardReport, ShardWriter, is_whole, publish_shard, read_report
from musicgen_core.devices import compute_dtype, release_memory
from musicgen_core.errors import RunDirectoryError, reason_of
from musicgen_core.generation.engine import Engine, frames_of
from musicgen_core.generation.plan import bytes_of_caches, fitting_size, room_for_caches, smaller_size
from musicgen_core.generation.random_streams import streams_of
from musicgen_core.language import message
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.lora import load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel
from musicgen_core.training.distributed import World
from musicgen_core.wording import counted

logger = logging.getLogger(__name__)

MOST_CLIPS = 256
"""Generated clips of a run; where an epoch takes more of them, it sees each several times."""
CPU_CACHE_BYTES = 2 * 2**30
"""For the keys and values of a batch: a constant, so that a CPU always generates the same clips."""


def prior_share(own: int, fraction: float) -> int:
    """Return how many clips of an epoch are generated ones, beside so many own ones; at least one."""
    return max(1, round(own * fraction / (1 - fraction)))


@dataclass(frozen=True)
class PriorRequest:
    """What determines the generated clips of a run.

    Attributes:
        base_model: hash of its weights.
        prompts: general ones, of which the clips take turns.
        count: of clips.
        seed: each clip draws from a random stream of its own of this seed.
        seconds: of each clip.
    """

    base_model: str
    codec: str
    prompts: Sequence[str]
    count: int
    seed: int
    seconds: float

    @classmethod
    def of(cls, settings: TrainSettings, model: BaseModel, prompts: Sequence[str], own: int) -> PriorRequest:
        """Return the request of a run that trains on `own` clips of its tokens."""
        count = min(MOST_CLIPS, prior_share(own, settings.prior_preservation))
        base = model.identity.rpartition("@")[2]
        return cls(base, codec_identity(model), prompts, count, settings.seed, settings.segment_seconds)

    @property
    def digest(self) -> str:
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    @property
    def clip_prompts(self) -> list[str]:
        """The text of each clip."""
        return list(islice(cycle(self.prompts), self.count))

    @property
    def texts(self) -> str:
        """The prompts by number and hash, to compare with those of a checkpoint."""
        content = hashlib.blake2b(json.dumps(list(self.prompts)).encode(), digest_size=4).hexdigest()
        return f"{counted(len(self.prompts), 'text')} ({content})"

    @property
    def stem(self) -> str:
        """The shard's name, so that clips of another request are never taken for these."""
        return f"prior-{self.digest[:16]}"


def load_prior(
    folder: UPath,
    request: PriorRequest,
    model: BaseModel,
    text: TextEncoder,
    world: World,
    on_progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
    is_resumed: bool,
) -> Clips:
    """Return the generated clips of a run, after generating them where they are missing or damaged.

    The main rank generates, the others wait for it.

    Args:
        folder: of their shard.
        on_progress: called after each step of the generation with frames done and in all.
        cancelled: asked before each step of the generation.
        is_resumed: whether the run has trained on them before.

    Raises:
        Cancelled: `cancelled` said so.
        RunDirectoryError: they can't be written.
    """
    if world.is_main and not _is_there(folder, request):
        if is_resumed:
            logger.warning(
                "the generated clips in %s are missing or damaged and are generated again: "
                "on the same device they are the same ones",
                folder,
            )
        codes = []
        for batch in _generate(request, model, text, world.device, on_progress, cancelled):
            codes += batch
            logger.info("generated %d of %s with the base model", len(codes), counted(request.count, "clip"))
            world.any(True)  # the others wait an hour for the next batch, not for all of them
        _publish(folder, request, codes, model)
    while world.any(False):
        pass
    return load_clips(folder, request.codec, only=[request.stem])


def _is_there(folder: UPath, request: PriorRequest) -> bool:
    report = read_report(folder, request.stem)
    return report is not None and report.clips == request.count and is_whole(folder, request.stem, report)


def _generate(
    request: PriorRequest,
    model: BaseModel,
    text: TextEncoder,
    device: torch.device,
    on_progress: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> Iterator[list[Tensor]]:
    """Generate codes [4, frames] of each clip, a batch at a time. Out of memory, take smaller batches from there on."""
    prompts = request.clip_prompts
    logger.info("generating %s with the base model for prior preservation", counted(len(prompts), "clip"))
    settings = SamplingSettings(duration=request.seconds, seed=request.seed)
    streams = streams_of(request.seed, prompts)
    lm = load_merged(model, None, device, compute_dtype(device))
    engine = Engine(lm, text, model.config.inference_coefficient)
    engine.pack()
    config, frames = lm.config, frames_of(request.seconds)
    room = room_for_caches(device) if device.type == "cuda" else CPU_CACHE_BYTES / 2  # of fp32, not of 16 bits
    size, done = fitting_size(len(prompts), int(room / bytes_of_caches(config, frames))), 0
    while done < len(prompts):
        part = slice(done, min(done + size, len(prompts)))

        def on_step(step: int, steps: int, part: slice = part) -> None:
            new = frames * (part.stop - part.start) * step // steps
            on_progress(frames * part.start + new, frames * len(prompts))

        try:
            codes = engine.generate(prompts[part], settings, streams[part], on_step, cancelled)
        except torch.OutOfMemoryError:
            codes = []
        if not codes:
            size = smaller_size(size)
            release_memory(device)
            continue
        done += len(codes)
        yield codes
    del engine, lm
    release_memory(device)


def _publish(folder: UPath, request: PriorRequest, codes: Sequence[Tensor], model: BaseModel) -> None:
    content = hashlib.sha256()
    try:
        with storage.scratch_folder() as scratch:
            parquet = scratch / f"{request.stem}.parquet"
            with ShardWriter(parquet, request.codec, model.config.decoder.cardinality, model.name) as writer:
                for number, (prompt, clip) in enumerate(zip(request.clip_prompts, codes, strict=True)):
                    row = Row(f"{number:03d}", prompt, clip.shape[1] / FRAME_RATE, clip.numpy().astype(np.uint16))
                    content.update(row.codes.tobytes())
                    writer.add(row)
            report = ShardReport(
                archive=request.stem,
                archive_bytes=0,
                fingerprint=f"sha256:{content.hexdigest()}",
                captions_fingerprint=request.digest,
                clips=len(codes),
                audio_seconds=sum(clip.shape[1] for clip in codes) / FRAME_RATE,
            )
            storage.make_folder(folder)
            publish_shard(parquet, report, folder)
    except OSError as error:
        raise RunDirectoryError(
            message(
                "the generated clips can't be written to {folder} ({reason})", folder=folder, reason=reason_of(error)
            ),
            message("Make room or fix the cause, and run again"),
        ) from error
