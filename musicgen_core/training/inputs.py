"""The inputs of a training run: its clips, its settings, and the values that must not change when it resumes."""

from __future__ import annotations

import hashlib
import logging
import secrets
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import (
    ENOUGH_CLIPS,
    LEAST_HELD_OUT,
    Clips,
    SplitBy,
    cut_descriptions,
    fraction_to_hold_out,
    load_clips,
    split,
)
from musicgen_core.errors import RunDirectoryError
from musicgen_core.language import message
from musicgen_core.learning_settings import check_full_training
from musicgen_core.model.compression import code_vectors, codec_identity
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import HELD_OUT, SHARDS, SPLIT_BY, RunConfig
from musicgen_core.training.batches import BatchSize, resolve_batch_size
from musicgen_core.training.files.resuming import (
    StartPoint,
    check_same,
    find_start,
    fixed_values,
    log_changes,
    recorded_settings,
)
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.training.prior_preservation import PriorRequest, general_prompts
from musicgen_core.training.processes.distributed import World
from musicgen_core.training.request import TrainRequest
from musicgen_core.wording import counted, named

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainInputs:
    """The inputs of a training run, the same on all ranks.

    Attributes:
        start: the checkpoint that the run resumes from, if any.
        settings: those of the request, with the fraction of clips that is really held out.
        split_by: what the validation split holds out as a whole.
        prior: the request for the clips of prior preservation; None without it.
        fixed: values that must not change when the run resumes.
        run_id: the run's id, which identifies its mirror; None if config.json was lost.
    """

    start: StartPoint
    clips: Clips
    settings: TrainSettings
    split_by: SplitBy
    batch_size: BatchSize
    prior: PriorRequest | None
    fixed: dict[str, Any]
    config: dict[str, Any]
    run_id: str | None


def read_inputs(request: TrainRequest, model: BaseModel, world: World, files: RunDirectory) -> TrainInputs:
    """Read the clips and the run directory, and check that the run may start or resume with them.

    Raises:
        MusicgenError: the tokens can't be used, or differ from those that the run began with.
    """
    check_full_training(request.settings.model_dump(), world.size)
    batch_size = resolve_batch_size(request.settings, world.device, world.size)
    start = find_start(files, request.resume)
    _check_same_start(start, world, files)
    clips = _load_clips(request, model, start)
    split_by = _split_by(start)
    keys = clips.split_keys(split_by)
    settings = _with_enough_held_out(request.settings, start, keys, world)
    fraction = settings.validation_fraction
    raised = {} if fraction == request.settings.validation_fraction else {HELD_OUT: fraction}
    prior = _prior_request(settings, model, keys, world)
    fixed = fixed_values(request.settings, model.identity, batch_size.effective, clips.fingerprints)
    # Fingerprints name the expected content of shards; this is the content found, in its order.
    fixed["clip_order"] = hashlib.blake2b(clips.hashes.tobytes(), digest_size=8).hexdigest()
    fixed |= raised
    if split_by != "clips":
        fixed[SPLIT_BY] = split_by
    if prior is not None:
        fixed["general_prompts"] = prior.texts
    stored = files.read_config() or RunConfig({})
    values = {
        **recorded_settings(request.settings),
        **raised,
        "batch_size": batch_size.micro,
        "gradient_accumulation_steps": batch_size.accumulation,
    }
    if start.checkpoint is not None:
        origin = start.origin if start.goes_back else None
        check_same(start.checkpoint.fixed, fixed, origin["checkpoint"] if origin else str(files.root))
        if start.resumed is not None:
            logger.info("resuming from %s, step %d", start.resumed, start.step)
        log_changes(stored.values, values)
    config = {
        **values,
        "model": model.name,
        "model_dir": str(model.directory.absolute()),
        "tokens": request.tokens,
        "origin": start.origin,
        "init_adapter": _init_adapter(request) if start.checkpoint is None else stored.init_adapter or None,
        "wandb_id": stored.wandb_id or secrets.token_hex(4),
        "versions": {name: version(name) for name in ("torch", "peft", "transformers", "audiocraft")},
        **fixed,
    }
    run_id = config["wandb_id"] if start.checkpoint is None else stored.wandb_id or None
    return TrainInputs(
        start=start,
        clips=clips,
        settings=settings,
        split_by=split_by,
        batch_size=batch_size,
        prior=prior,
        fixed=fixed,
        config=config,
        run_id=run_id,
    )


def _check_same_start(start: StartPoint, world: World, files: RunDirectory) -> None:
    """Check that all ranks start after the same step.

    Raises:
        RunDirectoryError: they don't; raised on all ranks.
    """
    main_step = world.broadcast_object(start.step)
    if world.any(start.step != main_step):
        raise RunDirectoryError(
            message(
                "the processes of the run don't find the same in {root}: rank {rank} begins after step {step}, "
                "the main one after step {main_step}",
                root=files.root,
                rank=world.rank,
                step=start.step,
                main_step=main_step,
            ),
            message("Give a run directory that every machine sees, and run again"),
        )


def _load_clips(request: TrainRequest, model: BaseModel, start: StartPoint) -> Clips:
    """Load the clips of the archives that the run began with; others may be tokenized meanwhile."""
    initial_shards = start.checkpoint.fixed[SHARDS] if start.checkpoint is not None else None
    clips = load_clips(
        storage.as_path(request.tokens),
        codec_identity(model),
        only=initial_shards,
        melody_model=model.name if model.chroma_frames else None,
        vectors=partial(code_vectors, model),
    )
    if clips.added:
        logger.warning("archives added since this run began are ignored until the next run: %s", named(clips.added))
    for problem in [*clips.problems(), *cut_descriptions(clips, request.tokens)]:
        logger.warning("%s", problem)
    return clips


def _split_by(start: StartPoint) -> SplitBy:
    """Return what the split holds out as a whole; a run of an earlier version resumes with its own split."""
    return "any_level" if start.checkpoint is None else start.checkpoint.fixed.get(SPLIT_BY, "clips")


def _with_enough_held_out(
    asked: TrainSettings, start: StartPoint, keys: NDArray[np.uint64], world: World
) -> TrainSettings:
    """Return the settings with the fraction of clips to hold out; a resumed run keeps its fraction."""
    share = asked.validation_fraction
    if start.checkpoint is not None:
        fraction = start.checkpoint.fixed.get(HELD_OUT, share)
    else:
        fraction = fraction_to_hold_out(keys, share)
        held_out = len(split(keys, share)[1])
        if share and len(keys) < ENOUGH_CLIPS and held_out < LEAST_HELD_OUT and world.is_main:
            logger.warning(
                "%s, %d of them held out: too few for a validation loss that says much. "
                "With %d clips or more at least %d are held out",
                counted(len(keys), "clip"),
                held_out,
                ENOUGH_CLIPS,
                LEAST_HELD_OUT,
            )
    return asked.model_copy(update={"validation_fraction": fraction})


def _prior_request(
    settings: TrainSettings, model: BaseModel, keys: NDArray[np.uint64], world: World
) -> PriorRequest | None:
    if not settings.prior_preservation:
        return None
    prompts = world.broadcast_object(general_prompts(settings) if world.is_main else [])
    own, _ = split(keys, settings.validation_fraction)
    return PriorRequest.of(settings, model, prompts, len(own))


def _init_adapter(request: TrainRequest) -> str | None:
    """Return the location of the adapter that a new run starts from, independent of the working directory."""
    given = request.init_adapter
    if given is None:
        return None
    path = storage.as_path(given)
    is_file = storage.is_local(path) and path.exists()  # otherwise a URL or an id on the Hub
    return str(Path(str(path)).absolute()) if is_file else given
