"""One training from tokens to a run directory: sets everything up, runs it, keeps its files, goes on where it was."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from musicgen_core import storage, tracking
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import ENOUGH_CLIPS, LEAST_HELD_OUT, Clips, fraction_to_hold_out, load_clips, split
from musicgen_core.data.long_descriptions import cut_descriptions
from musicgen_core.devices import compute_dtype, pick_device
from musicgen_core.errors import AdapterError, Cancelled, RunDirectoryError
from musicgen_core.language import message
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.lora import find_adapter, load_adapter, set_adapter_state
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from musicgen_core.run_layout import BEST_ADAPTER, FINAL_ADAPTER, HELD_OUT, SAMPLES, SHARDS, RunConfig, epoch_adapter
from musicgen_core.training.batching import BatchSize, resolve_batch_size, resolve_execution
from musicgen_core.training.checkpoint import Checkpoint
from musicgen_core.training.disk_space import Plan, Sizes, check_room
from musicgen_core.training.distributed import World
from musicgen_core.training.general_prompts import general_prompts
from musicgen_core.training.lineage import learned_from, lineage_of
from musicgen_core.training.loop import Hooks, Trainer
from musicgen_core.training.prior_preservation import PriorRequest, load_prior
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.resuming import check_same, find_start, fixed_values, log_changes
from musicgen_core.training.run_directory import RunDirectory, begins_new
from musicgen_core.training.run_lock import RunLock
from musicgen_core.training.samples import Samples, sample_prompts
from musicgen_core.training.saving import Saver
from musicgen_core.training.wandb_artifacts import Sharing, shown_settings
from musicgen_core.wording import counted, named

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
    """Train an adapter, or go on with a training, to the end.

    Args:
        on_start: called once, with the steps done before and the steps in all.
        on_step: called after each step with its metrics.
        cancelled: asked before each step; the training then saves and raises Cancelled.
        world: the processes that share the training, of which the main one alone writes files and reports; by
            default this one.
        on_wait: called with the reason when nothing can be saved and the run waits until it can, and with None when it
            continues. It may be cancelled meanwhile.
        on_prior: called while the base model generates clips, with frames done and in all; before `on_start`.

    Raises:
        MusicgenError: anything that a person can act on.
        Cancelled: `cancelled` said so.
    """
    world = world or World.alone(pick_device(request.device))
    check_init_adapter(request)
    model = find_model(request.model)
    root = storage.as_path(request.run_dir)
    with storage.scratch_folder() as scratch, RunLock(root) if world.is_main else nullcontext() as lock:
        files = RunDirectory(root, Path(str(root)) if storage.is_local(root) else scratch / "stage")
        world.barrier()  # only now the run directory is still: what writes there was waited for
        if world.is_main:
            files.check_own()
            files.delete_partials()
        session = _Session(request, model, world, files, lock, on_wait, on_prior, cancelled)
        world.barrier()  # from here on the main rank changes what all of them have read
        return session.run(on_start, on_step, cancelled) if world.is_main else session.help(cancelled)


def check_init_adapter(request: TrainRequest) -> None:
    """Check the adapter that a new training begins with, before its model is fetched.

    Raises:
        AdapterError: there is none, or it can't be read.
    """
    if request.init_adapter is not None and begins_new(storage.as_path(request.run_dir), request.resume):
        load_adapter(find_adapter(request.init_adapter))


class _Session:
    """The part of a training that happens in this process."""

    def __init__(
        self,
        request: TrainRequest,
        model: BaseModel,
        world: World,
        files: RunDirectory,
        lock: RunLock | None,
        on_wait: Callable[[str | None], None],
        on_prior: Callable[[int, int], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self.request, self.model, self.settings = request, model, request.settings
        self.world, self.files, self.lock = world, files, lock
        batch_size = resolve_batch_size(self.settings, world.device, world.size)
        execution = resolve_execution(self.settings, world.device)
        self.start = find_start(files, request.resume)
        self._check_same_start()
        # Archives may be tokenized while a training lasts: it goes on with those that it began with.
        began_with = self.start.checkpoint.fixed[SHARDS] if self.start.checkpoint is not None else None
        clips = load_clips(storage.as_path(request.tokens), codec_identity(model), only=began_with)
        if clips.added:
            logger.warning("this training leaves out archives that came after it began: %s", named(clips.added))
        for problem in [*clips.problems(), *cut_descriptions(clips, request.tokens)]:
            logger.warning("%s", problem)
        self.settings = self._with_enough_held_out(clips)
        prior_request = self._prior_request(clips)
        self.fixed = self._fixed(batch_size, clips, prior_request)
        self.config = self._config(batch_size)
        of_model, given = model.config, self.settings
        cfg_dropout = of_model.training_dropout if given.cfg_dropout is None else given.cfg_dropout
        word_dropout = of_model.word_dropout if given.word_dropout is None else given.word_dropout
        text = TextEncoder(model.text_encoder, world.device)
        prior = None if prior_request is None else self._load_prior(prior_request, text, on_prior, cancelled)
        lm = load_lm(model, world.device, compute_dtype(world.device))
        self.trainer = Trainer(lm, text, clips, given, batch_size, cfg_dropout, execution, world, word_dropout, prior)
        self._load_weights(self.start.checkpoint)
        copy_to = storage.as_path(request.copy_to) if request.copy_to else None
        stored = files.read_config() or RunConfig({})
        self.saver = Saver(
            files=files,
            model=model,
            trainer=self.trainer,
            settings=self.settings,
            fixed=self.fixed,
            copy_to=copy_to,
            run_id=self.config["wandb_id"] if self.start.checkpoint is None else stored.wandb_id or None,
            on_wait=on_wait,
        )
        self.samples = Samples(files, sample_prompts(self.settings, world), model, self.trainer, text)
        self.resumed_from = self.trainer.progress.step

    def run(
        self,
        on_start: Callable[[int, int], None],
        on_step: Callable[[dict[str, float]], None],
        cancelled: Callable[[], bool],
    ) -> TrainResult:
        trainer, lock = self.trainer, self.lock
        assert lock is not None
        step, total = trainer.progress.step, trainer.order.total_steps
        if step > total:
            logger.warning(
                "the run in %s is at step %d, past the limit of %s: nothing is trained. "
                "Raise the number of steps or epochs to continue it",
                self.files.root,
                step,
                counted(total, "step"),
            )
        self.files.fetch_metrics()
        if self.world.broadcast_object(self._is_finished() and not self.start.goes_back):
            on_start(step, step)
            if step <= total:
                logger.info("the training in %s is complete: %d of %d steps", self.files.root, step, total)
            return replace(self._result(None), ending="complete before")
        if self.start.checkpoint is None or self.start.goes_back:  # else the run waits for room
            self._check_room()
        metrics = tracking.MetricsWriter(self.files.local_metrics)
        (self.files.stage / SAMPLES).mkdir(parents=True, exist_ok=True)
        self.saver.claim_copy()
        run = tracking.Wandb(
            self.files.stage,
            self.config["wandb_id"],
            self.files.root.name,
            job_type="train",
            config=shown_settings(self.config, trainer),
            home=self.files.root,
        )
        sharing = Sharing(run, self.files, self.model, self.samples, self.config["versions"])

        def record(row: dict[str, float]) -> None:
            failed = len(self.saver.failures.texts)
            row = {**row, "save_failures": failed} if failed else row
            self.saver.write_metrics(lambda: metrics.append(row))
            run.log({"global_step": row["step"], **{name: value for name, value in row.items() if name != "step"}})
            on_step(row)

        def is_cancelled() -> bool:
            lock.check()
            return cancelled()

        def save_interval(is_due: bool) -> None:
            if not lock.is_lost:
                self.saver.save_interval(is_due)

        def render_samples(epoch: int) -> None:
            self.samples.render(epoch, self.saver.adapter(), is_cancelled)
            sharing.epoch(epoch, trainer.progress)

        def check() -> None:
            if is_cancelled():
                raise Cancelled("the training was cancelled while its last files were written")

        exit_code = 1
        try:
            if self.start.goes_back:
                self._go_back()
            elif self.start.checkpoint is not None:
                self.saver.prepare({str(self.files.root): self._check_room, **self._side_files()})
            else:
                for write in self._side_files().values():
                    write()
            trainer.progress = self.world.broadcast_object(trainer.progress)  # the best may be gone
            self.saver.full_models.write_owed()
            on_start(step, max(step, total))
            for epoch in self.samples.begin(self.saver.adapter(), is_cancelled):
                sharing.samples(epoch, trainer.progress.step if epoch else 0)
            save_epoch, save_best = self.saver.save_epoch, self.saver.save_best
            must_wait = self.saver.must_wait
            trainer.run(Hooks(record, save_epoch, save_interval, is_cancelled, save_best, render_samples, must_wait))
            self.saver.finish(check)
            sharing.adapter("best")
            sharing.adapter("final")
            exit_code = 0
        finally:
            if not lock.is_lost:
                self.saver.write_metrics(metrics.flush)
            lock.hold_for(self.saver.close())
            run.finish(exit_code, is_interrupted=exit_code != 0)
            if not lock.is_lost:
                self.files.upload_stage()
        return self._result(run.url)

    def help(self, cancelled: Callable[[], bool]) -> TrainResult:
        """Train along on another rank than the main one, which writes and reports nothing."""
        is_finished = self.world.broadcast_object(False)  # the main rank knows
        if not is_finished:
            self.trainer.progress = self.world.broadcast_object(self.trainer.progress)
            self.trainer.run(Hooks(lambda row: None, lambda epoch, is_best: None, lambda is_due: None, cancelled))
        return self._result(None)

    def _check_same_start(self) -> None:
        """Raises RunDirectoryError, on all ranks, if they would not begin at the same step."""
        step = self.start.checkpoint.progress.step if self.start.checkpoint is not None else 0
        main_step = self.world.broadcast_object(step)
        if self.world.any(step != main_step):
            raise RunDirectoryError(
                message(
                    "the processes of the training don't find the same in {root}: rank {rank} begins after "
                    "step {step}, the main one after step {main_step}",
                    root=self.files.root,
                    rank=self.world.rank,
                    step=step,
                    main_step=main_step,
                ),
                message("Give a run directory that every machine sees, and run again"),
            )

    def _with_enough_held_out(self, clips: Clips) -> TrainSettings:
        """Return the settings with the fraction of clips that this run holds out: a resumed one's stays as it was."""
        asked = self.request.settings.validation_fraction
        if self.start.checkpoint is not None:
            fraction = self.start.checkpoint.fixed.get(HELD_OUT, asked)
        else:
            fraction = fraction_to_hold_out(clips.hashes, asked)
            if asked and len(clips) < ENOUGH_CLIPS and self.world.is_main:
                logger.warning(
                    "%s, %d of them held out: too few for a validation loss that says much. "
                    "With %d clips or more at least %d are held out",
                    counted(len(clips), "clip"),
                    len(split(clips.hashes, asked)[1]),
                    ENOUGH_CLIPS,
                    LEAST_HELD_OUT,
                )
        return self.request.settings.model_copy(update={"validation_fraction": fraction})

    def _raised_fraction(self) -> dict[str, float]:
        """Return the fraction of clips that is held out, where it is not the one asked for."""
        fraction = self.settings.validation_fraction
        return {} if fraction == self.request.settings.validation_fraction else {HELD_OUT: fraction}

    def _prior_request(self, clips: Clips) -> PriorRequest | None:
        """Return what the base model is to generate for prior preservation; None without it."""
        settings = self.settings
        if not settings.prior_preservation:
            return None
        prompts = self.world.broadcast_object(general_prompts(settings) if self.world.is_main else [])
        own, _ = split(clips.hashes, settings.validation_fraction)
        return PriorRequest.of(settings, self.model, prompts, len(own))

    def _load_prior(
        self,
        request: PriorRequest,
        text: TextEncoder,
        on_prior: Callable[[int, int], None],
        cancelled: Callable[[], bool],
    ) -> Clips:
        def is_cancelled() -> bool:
            if self.lock is not None:
                self.lock.check()
            return cancelled()

        return load_prior(
            folder=self.files.prior,
            request=request,
            model=self.model,
            text=text,
            world=self.world,
            on_progress=on_prior,
            cancelled=is_cancelled,
            is_resumed=self.start.checkpoint is not None,
        )

    def _fixed(self, batch_size: BatchSize, clips: Clips, prior: PriorRequest | None) -> dict[str, Any]:
        """What must not change in this training, after a comparison with what it goes on from."""
        fixed = fixed_values(self.request.settings, self.model.identity, batch_size.effective, clips.fingerprints)
        # Shards say what should be in them, this says what was found and in which order.
        fixed["clip_order"] = hashlib.blake2b(clips.hashes.tobytes(), digest_size=8).hexdigest()
        fixed |= self._raised_fraction()
        if prior is not None:
            fixed["general_prompts"] = prior.texts
        if self.start.checkpoint is not None:
            origin = self.start.origin if self.start.goes_back else None
            where = origin["checkpoint"] if origin else self.files.root
            check_same(self.start.checkpoint.fixed, fixed, str(where))
            if self.start.resumed is not None:
                logger.info("resuming from %s, step %d", self.start.resumed, self.start.checkpoint.progress.step)
        return fixed

    def _config(self, batch_size: BatchSize) -> dict[str, Any]:
        """The run's config.json."""
        stored = self.files.read_config() or RunConfig({})
        values = {
            **self.request.settings.model_dump(mode="json"),
            **self._raised_fraction(),
            "batch_size": batch_size.micro,
            "gradient_accumulation_steps": batch_size.accumulation,
        }
        if self.start.checkpoint is not None:
            log_changes(stored.values, values)
        return {
            **values,
            "model": self.model.name,
            "model_dir": str(self.model.directory.absolute()),
            "tokens": self.request.tokens,
            "origin": self.start.origin,
            "init_adapter": self._init_adapter() if self.start.checkpoint is None else stored.init_adapter or None,
            "wandb_id": stored.wandb_id or secrets.token_hex(4),
            "versions": {name: version(name) for name in ("torch", "peft", "transformers", "audiocraft")},
            **self.fixed,
        }

    def _init_adapter(self) -> str | None:
        """Where the weights that a new training begins with lie, to be found from any working directory."""
        given = self.request.init_adapter
        if given is None:
            return None
        path = storage.as_path(given)
        is_file = storage.is_local(path) and path.exists()  # else it is a URL, or an id of the Hub
        return str(Path(str(path)).absolute()) if is_file else given

    def _load_weights(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            self.trainer.restore(checkpoint.adapter.lora, checkpoint.optimizer, checkpoint.progress)
            if self.request.init_adapter is not None:
                logger.warning("the adapter to start from is ignored: %s resumes where it was", self.files.root)
        elif self.request.init_adapter is not None:
            path = find_adapter(self.request.init_adapter)
            adapter = load_adapter(path)
            adapter.check_base(self.model, str(path))
            adapter.check_scale(self.trainer.lora, str(path))
            set_adapter_state(self.trainer.model, adapter.lora, str(path))
            if self.world.is_main:
                self._warn_of_seen_clips()

    def _warn_of_seen_clips(self) -> None:
        """Warn where the adapter to start from has learned from validation clips: their loss is too low to judge by."""
        lineage = lineage_of(RunConfig(self.config))
        clips, own = self.trainer.clips, self.trainer.validation_clips
        seen = int(learned_from(clips, lineage.configs[1:])[own].sum())
        if seen:
            logger.warning(
                "the adapter to start from has learned from %d of the %d validation clips: the validation loss is too "
                "low, and the evaluation leaves them out; holding out the same share of clips as there avoids that",
                seen,
                len(own),
            )

    def _go_back(self) -> None:
        """Begin with the checkpoint that was named, out of the way of what was trained after it."""
        progress, files = self.trainer.progress, self.files
        set_aside = files.set_aside_after(progress.step, self.trainer.order.epochs_done(progress.step))
        if set_aside is not None:
            logger.info("what came after step %d is now in %s", progress.step, set_aside)
        if progress.best_epoch is not None and not files.adapter(BEST_ADAPTER).exists():
            best = files.adapter(epoch_adapter(progress.best_epoch))
            adapter = load_adapter(best) if best.exists() else None
            if adapter is not None and progress.best_step in (adapter.global_step, None):
                self.saver.save_best_again(adapter)
            else:
                logger.warning("the best adapter until then isn't in this run directory: the best starts anew")
                progress.best_loss = progress.best_epoch = progress.best_step = None
                progress.validations_without_gain = 0
        # Only now: until latest.pt is out of the way, a restart continues after these rows.
        self.saver.prepare(self._side_files())
        self.saver.save_interval(False)  # from here on a restart goes on from it

    def _side_files(self) -> dict[str, Callable[[], None]]:
        """Return what writes metrics.jsonl, cut back to the start, and config.json, by path."""
        progress, files = self.trainer.progress, self.files
        last_step = progress.step - (progress.pending is not None)  # a pending step writes its metrics again
        return {
            str(files.local_metrics): partial(tracking.cut_metrics, files.local_metrics, last_step),
            str(files.config): partial(files.write_config, self.config),
        }

    def _check_room(self) -> None:
        order, tensors = self.trainer.order, self.trainer.adapter_tensors().values()
        adapter_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        sizes = Sizes(self.model.lm_path.stat().st_size, adapter_bytes)
        plan = Plan(order.epoch_of(order.total_steps), order.total_steps)
        is_local = storage.is_local(self.files.root)  # else there is nothing to check, and looking takes long
        set_aside = self.files.files_after(self.resumed_from) if self.start.goes_back and is_local else []
        check_room(self.files, self.settings, sizes, plan, set_aside)

    def _is_finished(self) -> bool:
        progress, final = self.trainer.progress, self.files.adapter(FINAL_ADAPTER)
        if not self.trainer.is_done or not final.exists() or self.files.owed_checkpoints():
            return False
        try:
            return load_adapter(final).global_step == progress.step
        except AdapterError as error:
            logger.warning("%s: it is written again", error)
            return False

    def _result(self, url: str | None) -> TrainResult:
        progress = self.trainer.progress
        rows = tracking.read_metrics(self.files.local_metrics)
        losses = [row["train/epoch_loss"] for row in rows if "train/epoch_loss" in row]
        total = self.trainer.order.total_steps
        was_past = self.resumed_from > total
        return TrainResult(
            run_dir=str(self.files.root),
            steps=progress.step,
            epochs=self.trainer.order.epoch_of(max(1, progress.step)),
            best_loss=progress.best_loss,
            best_epoch=progress.best_epoch,
            first_loss=losses[0] if losses else None,
            last_loss=losses[-1] if losses else None,
            resumed_from=self.resumed_from,
            wandb_url=url,
            warnings=tuple(self.saver.failures.texts),
            is_validated=len(self.trainer.validation_clips) > 0,
            ending="complete before" if was_past else "stopped early" if progress.step < total else "trained",
        )
