"""A training run from tokens to a run directory: set up, resume, train, and save the files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from musicgen_core import storage
from musicgen_core.devices import compute_dtype, pick_device
from musicgen_core.errors import AdapterError
from musicgen_core.language import message
from musicgen_core.layer_ranges import check_layers
from musicgen_core.learning_settings import check_full_training, check_optimizer
from musicgen_core.model.adapters import Adapter, find_adapter
from musicgen_core.model.lora import load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.trained_model import TrainedModel, load_learned, tensors_of
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from musicgen_core.run_layout import RunConfig
from musicgen_core.training.batches import resolve_execution
from musicgen_core.training.files.resuming import learned_from, lineage_of
from musicgen_core.training.files.run_directory import RunDirectory, begins_new
from musicgen_core.training.files.run_lock import RunLock
from musicgen_core.training.files.saving import Saver
from musicgen_core.training.hooks import Hooks
from musicgen_core.training.inputs import TrainInputs, read_inputs
from musicgen_core.training.loop import Trainer
from musicgen_core.training.prior_preservation import load_prior
from musicgen_core.training.processes.distributed import World
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.samples import Samples, sample_prompts
from musicgen_core.training.session import Session, result_of

logger = logging.getLogger(__name__)


def train(
    request: TrainRequest,
    on_start: Callable[[int, int], None] = lambda done, total: None,
    on_step: Callable[[dict[str, float]], None] = lambda row: None,
    cancelled: Callable[[], bool] = lambda: False,
    world: World | None = None,
    on_wait: Callable[[str | None], None] = lambda reason: None,
    on_prior: Callable[[int, int], None] = lambda done, total: None,
) -> TrainResult:
    """Train an adapter or the model to the end, resuming the run if its directory has checkpoints; return the result.

    Args:
        on_start: called once, with the steps done before and the total number of steps.
        on_step: called after each step with its metrics.
        cancelled: asked before each step; if true, the run saves and raises Cancelled.
        world: the processes that share the run, of which only the main one writes files and reports; by default this
            process alone.
        on_wait: called with the reason when the run waits because it can't save, and with None when it continues. It
            can be cancelled while it waits. Also called if an interrupted run can't save.
        on_prior: called while the base model generates clips, before `on_start`, with frames done and in total.

    Raises:
        MusicgenError: an error that the user can act on.
        Cancelled: `cancelled` returned true.
    """
    check_optimizer(request.settings.optimizer_name)
    check_full_training(request.settings.model_dump(), request.settings.gpus)
    world = world or World.alone(pick_device(request.device))
    check_init_adapter(request)
    model = find_model(request.model)
    check_layers(request.settings.layers, request.settings.ranks, model.config.decoder.layers)
    root = storage.as_path(request.run_dir)
    with storage.scratch_folder() as scratch, RunLock(root) if world.is_main else nullcontext() as lock:
        files = RunDirectory(root, Path(str(root)) if storage.is_local(root) else scratch / "stage")
        world.barrier()  # the main rank holds the lock: no other process writes to the directory any more
        if world.is_main:
            files.check_own()
            files.delete_partials()

        def is_cancelled() -> bool:
            if lock is not None:
                lock.check()
            return cancelled()

        inputs = read_inputs(request, model, world, files)
        text = TextEncoder(model.text_encoder, world.device)
        trainer = _trainer(
            inputs=inputs,
            request=request,
            model=model,
            world=world,
            files=files,
            text=text,
            on_prior=on_prior,
            cancelled=is_cancelled,
        )
        inputs = replace(inputs, start=inputs.start.without_tensors())
        prompts = sample_prompts(inputs.settings, world)
        world.barrier()  # all ranks have read the directory, which the main rank changes from here on
        if lock is None:  # another rank than the main one, which neither writes files nor reports
            resumed_from = trainer.progress.step
            is_complete = world.broadcast_object(False)  # the main rank's answer
            if not is_complete:
                trainer.progress = world.broadcast_object(trainer.progress)
                trainer.run(Hooks(cancelled=cancelled))
            return result_of(trainer, files, resumed_from)
        saver = Saver(
            files=files,
            model=model,
            trainer=trainer,
            epochs_done=trainer.order.epochs_done(trainer.progress.step),
            settings=inputs.settings,
            fixed=inputs.fixed,
            copy_to=storage.as_path(request.copy_to) if request.copy_to else None,
            run_id=inputs.run_id,
            on_wait=on_wait,
        )
        session = Session(
            inputs=inputs,
            lock=lock,
            trainer=trainer,
            saver=saver,
            samples=Samples(files=files, prompts=prompts, model=model, trainer=trainer, text=text),
            on_step=on_step,
            cancelled=is_cancelled,
        )
        return session.run(on_start)


def check_init_adapter(request: TrainRequest) -> None:
    """Check the adapter that a new run starts from, before its model is downloaded.

    Raises:
        AdapterError: it is missing or can't be read.
    """
    if request.init_adapter is not None and begins_new(storage.as_path(request.run_dir), request.resume):
        path = find_adapter(request.init_adapter)
        if isinstance(load_learned(path), TrainedModel) and request.settings.train == "lora":
            raise AdapterError(
                message("{path} is a model that was trained whole, and no adapter can start from it", path=path),
                message("Export it (--format audiocraft), and give the directory with --model"),
            )


def _trainer(
    inputs: TrainInputs,
    request: TrainRequest,
    model: BaseModel,
    world: World,
    files: RunDirectory,
    text: TextEncoder,
    on_prior: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> Trainer:
    """Return the trainer with the weights that the run starts with; clips of prior preservation are generated first."""
    settings, defaults = inputs.settings, model.config
    prior = None
    if inputs.prior is not None:
        prior = load_prior(
            folder=files.prior,
            request=inputs.prior,
            model=model,
            text=text,
            world=world,
            on_progress=on_prior,
            cancelled=cancelled,
            is_resumed=inputs.start.checkpoint is not None,
        )
    checkpoint, adapter = inputs.start.checkpoint, None
    if checkpoint is None and request.init_adapter is not None:
        path = find_adapter(request.init_adapter)
        adapter = load_learned(path)
        adapter.check_base(model, str(path))
    trains_all = settings.train == "all"
    dtype = torch.float32 if trains_all else compute_dtype(world.device)
    trainer = Trainer(
        lm=load_merged(model, adapter, world.device, dtype) if trains_all else load_lm(model, world.device, dtype),
        text=text,
        clips=inputs.clips,
        settings=settings,
        batch_size=inputs.batch_size,
        cfg_dropout=defaults.training_dropout if settings.cfg_dropout is None else settings.cfg_dropout,
        execution=resolve_execution(settings, world.device),
        world=world,
        word_dropout=defaults.word_dropout if settings.word_dropout is None else settings.word_dropout,
        melody_dropout=defaults.melody_dropout if settings.melody_dropout is None else settings.melody_dropout,
        prior=prior,
        split_by=inputs.split_by,
    )
    if checkpoint is not None:
        weights = tensors_of(checkpoint.learned)
        trainer.restore(weights, checkpoint.optimizer, checkpoint.progress, checkpoint.average)
        if request.init_adapter is not None:
            logger.warning("the adapter to start from is ignored: %s resumes where it was", files.root)
    elif adapter is not None:
        if trainer.learner.lora is not None and isinstance(adapter, Adapter):
            adapter.check_scale(trainer.learner.lora, str(path))
            trainer.computation.load(adapter.lora, str(path))
        if world.is_main:
            _warn_of_seen_clips(trainer, RunConfig(inputs.config))
    return trainer


def _warn_of_seen_clips(trainer: Trainer, config: RunConfig) -> None:
    """Warn if the adapter to start from was trained on validation clips, which makes their loss too low."""
    own = trainer.batches.validation_clips
    seen = int(learned_from(trainer.batches.clips, lineage_of(config).configs[1:])[own].sum())
    if seen:
        logger.warning(
            "the adapter to start from has learned from %d of the %d validation clips: the validation loss is too "
            "low, and the evaluation leaves them out; holding out the same share of clips as there avoids that",
            seen,
            len(own),
        )
