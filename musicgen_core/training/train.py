"""A training run from tokens to a run directory: set up, resume, train, and save the files."""

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
from musicgen_core.training.disk_space import Plan, Sizes, check_disk_space
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
from musicgen_core.training.wandb_artifacts import WandbArtifacts, shown_settings
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
    """Train an adapter to the end, resuming the run if its directory has checkpoints, and return the result.

    Args:
        request: the run to train.
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
    world = world or World.alone(pick_device(request.device))
    check_init_adapter(request)
    model = find_model(request.model)
    root = storage.as_path(request.run_dir)
    with storage.scratch_folder() as scratch, RunLock(root) if world.is_main else nullcontext() as lock:
        files = RunDirectory(root, Path(str(root)) if storage.is_local(root) else scratch / "stage")
        world.barrier()  # the main rank holds the lock: no other process writes to the directory any more
        if world.is_main:
            files.check_own()
            files.delete_partials()
        session = _Session(
            request=request,
            model=model,
            world=world,
            files=files,
            lock=lock,
            on_wait=on_wait,
            on_prior=on_prior,
            cancelled=cancelled,
        )
        world.barrier()  # all ranks have read the directory, which the main rank changes from here on
        return session.run(on_start, on_step, cancelled) if world.is_main else session.run_worker(cancelled)


def check_init_adapter(request: TrainRequest) -> None:
    """Check the adapter that a new run starts from, before its model is downloaded.

    Raises:
        AdapterError: it is missing or can't be read.
    """
    if request.init_adapter is not None and begins_new(storage.as_path(request.run_dir), request.resume):
        load_adapter(find_adapter(request.init_adapter))


class _Session:
    """This process's part of a training run."""

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
        # A run keeps the archives that it started with; others may be tokenized meanwhile.
        initial_shards = self.start.checkpoint.fixed[SHARDS] if self.start.checkpoint is not None else None
        clips = load_clips(storage.as_path(request.tokens), codec_identity(model), only=initial_shards)
        if clips.added:
            logger.warning("this training leaves out archives that came after it began: %s", named(clips.added))
        for problem in [*clips.problems(), *cut_descriptions(clips, request.tokens)]:
            logger.warning("%s", problem)
        self.settings = self._with_enough_held_out(clips)
        prior_request = self._prior_request(clips)
        self.fixed = self._fixed(batch_size, clips, prior_request)
        self.config = self._config(batch_size)
        lm_config, settings = model.config, self.settings
        cfg_dropout = lm_config.training_dropout if settings.cfg_dropout is None else settings.cfg_dropout
        word_dropout = lm_config.word_dropout if settings.word_dropout is None else settings.word_dropout
        text = TextEncoder(model.text_encoder, world.device)
        prior = None if prior_request is None else self._load_prior(prior_request, text, on_prior, cancelled)
        lm = load_lm(model, world.device, compute_dtype(world.device))
        self.trainer = Trainer(
            lm=lm,
            text=text,
            clips=clips,
            settings=settings,
            batch_size=batch_size,
            cfg_dropout=cfg_dropout,
            execution=execution,
            world=world,
            word_dropout=word_dropout,
            prior=prior,
        )
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
        self.samples = Samples(
            files=files,
            prompts=sample_prompts(self.settings, world),
            model=model,
            trainer=self.trainer,
            text=text,
        )
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
        if self.start.checkpoint is None or self.start.goes_back:  # a resumed run waits for free space instead
            self._check_disk_space()
        metrics = tracking.MetricsWriter(self.files.local_metrics)
        (self.files.stage / SAMPLES).mkdir(parents=True, exist_ok=True)
        self.saver.lock_mirror()
        run = tracking.Wandb(
            self.files.stage,
            self.config["wandb_id"],
            self.files.root.name,
            job_type="train",
            config=shown_settings(self.config, trainer),
            home=self.files.root,
        )
        artifacts = WandbArtifacts(run, self.files, self.model, self.samples, self.config["versions"])

        def record(row: dict[str, float]) -> None:
            failed = len(self.saver.failures.texts)
            row = {**row, "save_failures": failed} if failed else row
            self.saver.write_metrics(lambda: metrics.append(row))
            run.log({"global_step": row["step"], **{name: value for name, value in row.items() if name != "step"}})
            on_step(row)

        def is_cancelled() -> bool:
            lock.check()
            return cancelled()

        def save_interval(save_step_checkpoint: bool) -> None:
            if not lock.is_lost:
                self.saver.save_interval(save_step_checkpoint)

        def save_interrupted() -> None:
            if not lock.is_lost:
                self.saver.save_interrupted()

        def render_samples(epoch: int) -> None:
            self.samples.render(epoch, self.saver.adapter(), is_cancelled)
            artifacts.epoch(epoch, trainer.progress)

        def check() -> None:
            if is_cancelled():
                raise Cancelled("the training was cancelled while its last files were written")

        exit_code = 1
        try:
            if self.start.goes_back:
                self._restart_from_checkpoint()
            elif self.start.checkpoint is not None:
                self.saver.prepare({str(self.files.root): self._check_disk_space, **self._side_files()})
            else:
                for write in self._side_files().values():
                    write()
            trainer.progress = self.world.broadcast_object(trainer.progress)  # its best loss may have been reset
            self.saver.full_models.write_owed()
            on_start(step, max(step, total))
            for epoch in self.samples.begin(self.saver.adapter(), is_cancelled):
                artifacts.samples(epoch, trainer.progress.step if epoch else 0)
            trainer.run(
                Hooks(
                    on_step=record,
                    on_epoch=self.saver.save_epoch,
                    on_interval=save_interval,
                    cancelled=is_cancelled,
                    on_best=self.saver.save_best,
                    after_epoch=render_samples,
                    must_wait=self.saver.must_wait,
                    on_interruption=save_interrupted,
                )
            )
            self.saver.finish(check)
            artifacts.adapter("best")
            artifacts.adapter("final")
            exit_code = 0
        finally:
            if not lock.is_lost:
                self.saver.write_metrics(metrics.flush)
            lock.hold_for(self.saver.close())
            run.finish(exit_code, is_interrupted=exit_code != 0)
            if not lock.is_lost:
                self.files.upload_stage()
        return self._result(run.url)

    def run_worker(self, cancelled: Callable[[], bool]) -> TrainResult:
        """Train on a rank other than the main one, which neither writes files nor reports."""
        is_finished = self.world.broadcast_object(False)  # the main rank's answer
        if not is_finished:
            self.trainer.progress = self.world.broadcast_object(self.trainer.progress)
            self.trainer.run(
                Hooks(
                    on_step=lambda row: None,
                    on_epoch=lambda epoch, is_best: None,
                    on_interval=lambda save_step_checkpoint: None,
                    cancelled=cancelled,
                )
            )
        return self._result(None)

    def _check_same_start(self) -> None:
        """Check that all ranks start after the same step.

        Raises:
            RunDirectoryError: they don't; raised on all ranks.
        """
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
        """Return the settings with the fraction of clips to hold out; a resumed run keeps its fraction."""
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
        """Return the fraction of clips that is held out, if it isn't the requested one."""
        fraction = self.settings.validation_fraction
        return {} if fraction == self.request.settings.validation_fraction else {HELD_OUT: fraction}

    def _prior_request(self, clips: Clips) -> PriorRequest | None:
        """Return the request for the clips of prior preservation; None without it."""
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
        """Return the values that must not change in this run, after comparing them with the checkpoint's."""
        fixed = fixed_values(self.request.settings, self.model.identity, batch_size.effective, clips.fingerprints)
        # Fingerprints name the expected content of shards; this is the content found, in its order.
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
        """Return the content of the run's config.json."""
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
        """Return the location of the adapter that a new run starts from, independent of the working directory."""
        given = self.request.init_adapter
        if given is None:
            return None
        path = storage.as_path(given)
        is_file = storage.is_local(path) and path.exists()  # otherwise a URL or an id on the Hub
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
        """Warn if the adapter to start from was trained on validation clips, which makes their loss too low."""
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

    def _restart_from_checkpoint(self) -> None:
        """Restart from the checkpoint that the user named, after setting later files aside."""
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
        # Only now: until latest.pt is set aside, a restart would continue after these rows.
        self.saver.prepare(self._side_files())
        self.saver.save_interval(False)  # from here on a restart resumes from it

    def _side_files(self) -> dict[str, Callable[[], None]]:
        """Return the functions that cut metrics.jsonl back to the start and write config.json, by path."""
        progress, files = self.trainer.progress, self.files
        last_step = progress.step - (progress.pending is not None)  # a pending step logs its metrics again
        return {
            str(files.local_metrics): partial(tracking.cut_metrics, files.local_metrics, last_step),
            str(files.config): partial(files.write_config, self.config),
        }

    def _check_disk_space(self) -> None:
        order, tensors = self.trainer.order, self.trainer.adapter_tensors().values()
        adapter_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        sizes = Sizes(self.model.lm_path.stat().st_size, adapter_bytes)
        plan = Plan(order.epoch_of(order.total_steps), order.total_steps)
        is_local = storage.is_local(self.files.root)  # remote storage has no limit to check, and listing it is slow
        set_aside = self.files.files_after(self.resumed_from) if self.start.goes_back and is_local else []
        check_disk_space(self.files, self.settings, sizes, plan, set_aside)

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
