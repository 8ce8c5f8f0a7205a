"""Prior preservation (as in DreamBooth) against forgetting: a run also trains on clips that its base model generated.

The clips are generated once per run, before its first step, from general prompts and the run's seed. They are stored as
a shard in `RUN_DIR/prior`, so that they are read and checked like other tokens; a resumed run trains on the same ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path

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
from musicgen_core.errors import RunDirectoryUnavailable, reason_of
from musicgen_core.generation.engine import Engine, frames_of
from musicgen_core.generation.plan import cache_budget, cache_bytes, fitting_size, smaller_size
from musicgen_core.generation.prompts import read_prompts
from musicgen_core.language import message
from musicgen_core.melody import NO_CLASS
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.lora import load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel
from musicgen_core.seeds import streams_of
from musicgen_core.training.processes.distributed import World
from musicgen_core.wording import counted

logger = logging.getLogger(__name__)

GENERAL_PROMPTS = Path(__file__).with_name("general_prompts.txt")
"""The prompts that are used unless a run names a file of its own"""

MAX_CLIPS = 256
"""The most clips that are generated for a run; if an epoch needs more, it sees each several times."""
CPU_CACHE_BYTES = 2 * 2**30
"""Memory for the key-value caches of a batch on a CPU; a constant, so that a CPU always generates the same clips."""


def general_prompts(settings: TrainSettings) -> list[str]:
    """Return the prompts of the generated clips: those of the file `prior_prompts`, or else the built-in ones.

    Raises:
        ConfigError: the file is missing, holds no prompts, or has invalid lines.
    """
    return [prompt.text for prompt in read_prompts(settings.prior_prompts or str(GENERAL_PROMPTS))]


def prior_share(own: int, fraction: float) -> int:
    """Return how many generated clips an epoch has beside its `own` clips, at least one."""
    return max(1, round(own * fraction / (1 - fraction)))


@dataclass(frozen=True)
class PriorRequest:
    """The inputs that determine the generated clips of a run.

    Attributes:
        prompts: general prompts, which the clips use in turn.
        seed: seed from which each clip's random stream derives.
        seconds: length of each clip.
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
        count = min(MAX_CLIPS, prior_share(own, settings.prior_preservation))
        base = model.identity.rpartition("@")[2]
        return cls(
            base_model=base,
            codec=codec_identity(model),
            prompts=prompts,
            count=count,
            seed=settings.seed,
            seconds=settings.segment_seconds,
        )

    @property
    def digest(self) -> str:
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    @property
    def clip_prompts(self) -> list[str]:
        """The prompt of each clip."""
        return list(islice(cycle(self.prompts), self.count))

    @property
    def texts(self) -> str:
        """Number and hash of the prompts, to compare with those of a checkpoint."""
        content = hashlib.blake2b(json.dumps(list(self.prompts)).encode(), digest_size=4).hexdigest()
        return f"{counted(len(self.prompts), 'text')} ({content})"

    @property
    def stem(self) -> str:
        """The shard's name, which differs for every other request."""
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
    """Return the generated clips of a run, generating them if they are missing or damaged.

    The main rank generates them while the others wait.

    Args:
        on_progress: called after each generated step, with frames done and in total.
        cancelled: asked before each step of the generation.
        is_resumed: whether the run has trained on these clips before.

    Raises:
        Cancelled: `cancelled` returned true.
        RunDirectoryError: the clips can't be written.
    """
    if world.is_main and not _is_there(folder, request):
        if is_resumed:
            logger.warning(
                "the generated clips in %s are missing or damaged and are generated again: "
                "on the same device they are the same ones",
                folder,
            )
        codes = []
        generated = _generate(
            request=request,
            model=model,
            text=text,
            device=world.device,
            on_progress=on_progress,
            cancelled=cancelled,
        )
        for batch in generated:
            codes += batch
            logger.info("generated %d of %s with the base model", len(codes), counted(request.count, "clip"))
            world.any(True)  # the timeout of the other ranks applies to one batch, not to all
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
    """Yield the codes [K, frames] of the clips, batch by batch, with smaller batches once memory runs out."""
    prompts = request.clip_prompts
    logger.info("generating %s with the base model for prior preservation", counted(len(prompts), "clip"))
    settings = SamplingSettings(duration=request.seconds, seed=request.seed)
    streams = streams_of(request.seed, prompts)
    lm = load_merged(model, None, device, compute_dtype(device))
    engine = Engine(lm, text, model.config.inference_coefficient)
    engine.pack()
    config, frames = lm.config, frames_of(request.seconds)
    room = (
        cache_budget(device) if device.type == "cuda" else CPU_CACHE_BYTES / 2
    )  # fp32 takes twice the bytes of 16 bits
    size, done = fitting_size(len(prompts), int(room / cache_bytes(config, frames))), 0
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
    takes_melody = model.chroma_frames > 0
    chroma = np.full(1, NO_CLASS, np.uint8) if takes_melody else None  # they were generated without a melody
    try:
        with storage.scratch_folder() as scratch:
            parquet = scratch / f"{request.stem}.parquet"
            with ShardWriter(parquet, request.codec, model.config.decoder.codes, model.name) as writer:
                for number, (prompt, clip) in enumerate(zip(request.clip_prompts, codes, strict=True)):
                    row = Row(f"{number:03d}", prompt, clip.shape[1] / FRAME_RATE, clip.numpy().astype(np.uint16))
                    content.update(row.codes.tobytes())
                    writer.add(replace(row, chroma=chroma))
            report = ShardReport(
                archive=request.stem,
                archive_bytes=0,
                fingerprint=f"sha256:{content.hexdigest()}",
                captions_fingerprint=request.digest,
                clips=len(codes),
                audio_seconds=sum(clip.shape[1] for clip in codes) / FRAME_RATE,
                chroma="none" if takes_melody else None,
            )
            storage.make_folder(folder)
            publish_shard(parquet, report, folder)
    except OSError as error:
        raise RunDirectoryUnavailable(
            message(
                "the generated clips can't be written to {folder} ({reason})", folder=folder, reason=reason_of(error)
            ),
            message("Make room or fix the cause, and run again"),
        ) from error
