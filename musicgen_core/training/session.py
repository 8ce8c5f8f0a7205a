"""The main rank's part of a training run: it saves, logs, reports and renders samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.errors import AdapterError, Cancelled, raise_if_interrupted
from musicgen_core.model.adapters import load_adapter
from musicgen_core.model.trained_model import load_learned
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import (
    BEST_ADAPTER,
    BEST_MODEL,
    EPOCH_CHECKPOINT,
    FINAL_ADAPTER,
    FINAL_MODEL,
    SHARDS,
    epoch_adapter,
)
from musicgen_core.training.files.background import Write
from musicgen_core.training.files.checkpoint import Progress
from musicgen_core.training.files.disk_space import Plan, Sizes, check_disk_space
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.training.files.run_lock import RunLock
from musicgen_core.training.files.saving import Saver
from musicgen_core.training.hooks import Hooks
from musicgen_core.training.inputs import TrainInputs
from musicgen_core.training.loop import Trainer
from musicgen_core.training.request import TrainResult
from musicgen_core.training.samples import Samples
from musicgen_core.wording import counted

logger = logging.getLogger(__name__)


class Session:
    """This process's part of a training run, on the main rank.

    Args:
        lock: the lock on the run directory, held.
        on_step: called after each step with its metrics.
        cancelled: asked before each step; if true, the run saves and raises Cancelled.
    """

    def __init__(
        self,
        inputs: TrainInputs,
        lock: RunLock,
        trainer: Trainer,
        saver: Saver,
        samples: Samples,
        on_step: Callable[[dict[str, float]], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self.inputs, self.start, self.lock, self.samples = inputs, inputs.start, lock, samples
        self.trainer, self.world, self.saver = trainer, trainer.world, saver
        self.model, self.files = saver.model, saver.files
        self.resumed_from = trainer.progress.step
        self._on_step, self._cancelled = on_step, cancelled
        self._metrics: tracking.MetricsWriter
        self._wandb: tracking.Wandb
        self._artifacts: WandbArtifacts

    def run(self, on_start: Callable[[int, int], None]) -> TrainResult:
        """Train to the end, and return the result; a run that is complete already is left as it is.

        Args:
            on_start: called with the steps done before and the total number of steps.
        """
        step, total = self.resumed_from, self.trainer.order.total_steps
        self.files.fetch_metrics()
        is_complete = self.world.broadcast_object(self._is_complete() and not self.start.goes_back)
        self._log_end(is_complete)
        if is_complete:
            on_start(step, step)
            return replace(self._result(), ending="complete before")
        if self.start.checkpoint is None or self.start.goes_back:  # a resumed run waits for free space instead
            self._check_disk_space()
        self._open_logs()
        exit_code = 1
        try:
            self._prepare_directory()
            self.trainer.progress = self.world.broadcast_object(self.trainer.progress)  # its best loss may be reset
            self.saver.full_models.write_owed()
            on_start(step, max(step, total))
            self._train()
            exit_code = 0
        finally:
            self._close(exit_code)
        return self._result(self._wandb.url)

    def _log_end(self, is_complete: bool) -> None:
        step, total = self.resumed_from, self.trainer.order.total_steps
        if step > total:
            logger.warning(
                "the run in %s is at step %d, past the limit of %s: nothing is trained. "
                "Raise the number of steps or epochs to continue it",
                self.files.root,
                step,
                counted(total, "step"),
            )
        elif is_complete:
            logger.info("the run in %s is complete: %d of %d steps", self.files.root, step, total)

    def _open_logs(self) -> None:
        files, config = self.files, self.inputs.config
        self._metrics = tracking.MetricsWriter(files.local_metrics)
        files.stage.mkdir(parents=True, exist_ok=True)
        if self.saver.mirror is not None:
            self.saver.mirror.claim()  # until the saver is closed
        self._wandb = tracking.Wandb(
            files.stage,
            config["wandb_id"],
            files.root.name,
            job_type="train",
            config=shown_settings(config, self.trainer),
            home=files.root,
        )
        self._artifacts = WandbArtifacts(self._wandb, files, self.model, self.samples, config["versions"])

    def _prepare_directory(self) -> None:
        if self.start.goes_back:
            self._restart_from_checkpoint()
        elif self.start.checkpoint is not None:
            self.saver.write([Write(str(self.files.root), self._check_disk_space), *self._side_files()])
        else:
            for file in self._side_files():
                file.write()

    def _train(self) -> None:
        for epoch in self.samples.begin(self.saver.learned, self._cancelled):
            self._artifacts.samples(epoch, self.trainer.progress.step if epoch else 0)
        self.trainer.run(
            Hooks(
                on_step=self._record,
                on_epoch=self.saver.save_epoch,
                on_interval=self._save_interval,
                cancelled=self._cancelled,
                on_best=self.saver.save_best,
                after_epoch=self._render_samples,
                must_wait=self.saver.must_wait,
                on_interruption=self._save_interrupted,
                on_end=partial(self.saver.finish, self._check_cancelled),
            )
        )
        self._artifacts.adapter("best")
        self._artifacts.adapter("final")

    def _close(self, exit_code: int) -> None:
        if not self.lock.is_lost:
            self.saver.write_metrics(self._metrics.flush)
        self.lock.hold_for(self.saver.close())
        self._wandb.finish(exit_code, is_interrupted=exit_code != 0)
        if not self.lock.is_lost:
            self.files.upload_stage()

    # Hooks of the trainer

    def _record(self, row: dict[str, float]) -> None:
        failed = len(self.saver.failures.texts)
        row = {**row, "save_failures": failed} if failed else row
        self.saver.write_metrics(lambda: self._metrics.append(row))
        values = {name: value for name, value in row.items() if name != "step"}
        self._wandb.log({"global_step": row["step"], **values})
        self._on_step(row)

    def _save_interval(self, save_step_checkpoint: bool) -> None:
        if not self.lock.is_lost:
            self.saver.save_interval(save_step_checkpoint)

    def _save_interrupted(self) -> None:
        if not self.lock.is_lost:
            self.saver.save_interrupted()

    def _render_samples(self, epoch: int) -> None:
        self.samples.render(epoch, self.saver.learned(), self._cancelled)
        self._artifacts.epoch(epoch, self.trainer.progress)

    def _check_cancelled(self) -> None:
        if self._cancelled():
            raise Cancelled("the training was cancelled while its last files were written")

    # The run directory

    def _restart_from_checkpoint(self) -> None:
        """Restart from the checkpoint that the user named, after setting later files aside."""
        progress, files = self.trainer.progress, self.files
        set_aside = files.set_aside_after(progress.step, self.trainer.order.epochs_done(progress.step))
        if set_aside is not None:
            logger.info("what came after step %d is now in %s", progress.step, set_aside)
        if progress.best_epoch is not None and not self._learned(BEST_ADAPTER, BEST_MODEL).exists():
            epoch = progress.best_epoch
            best = self._learned(epoch_adapter(epoch), f"{EPOCH_CHECKPOINT}{epoch}")
            learned = load_learned(best) if best.exists() else None
            is_saved = not progress.best_is_average  # epochs save the weights, not their average
            if learned is not None and is_saved and progress.best_step in (learned.global_step, None):
                self.saver.save_best_again(learned)
            else:
                logger.warning(
                    "what was the best until then isn't in this run directory: the best is determined afresh"
                )
                progress.best_loss = progress.best_epoch = progress.best_step = None
                progress.validations_without_gain = 0
        # Only now: until latest.pt is set aside, a restart would continue after these rows.
        self.saver.write(self._side_files())
        self.saver.save_interval(False)  # from here on a restart resumes from it

    def _side_files(self) -> Sequence[Write]:
        """Return metrics.jsonl, to be cut back to the start, and config.json."""
        progress, files = self.trainer.progress, self.files
        last_step = progress.step - (progress.pending is not None)  # a pending step logs its metrics again
        return (
            Write(str(files.local_metrics), partial(tracking.cut_metrics, files.local_metrics, last_step)),
            Write(str(files.config), partial(files.write_config, self.inputs.config)),
        )

    def _check_disk_space(self) -> None:
        order = self.trainer.order
        sizes = Sizes(self.model.lm_bytes, self.trainer.computation.trained.nbytes)
        plan = Plan(order.epoch_of(order.total_steps), order.total_steps)
        is_local = storage.is_local(self.files.root)  # remote storage has no limit to check, and listing it is slow
        set_aside = self.files.files_after(self.resumed_from) if self.start.goes_back and is_local else []
        check_disk_space(self.files, self.inputs.settings, sizes, plan, set_aside)

    def _learned(self, adapter: str, model: str) -> UPath:
        """Return the path of what the run learns: an adapter, or with `train all` a full model."""
        is_adapter = self.trainer.learner.lora is not None
        return self.files.adapter(adapter) if is_adapter else self.files.full_model(model)

    def _is_complete(self) -> bool:
        progress, final = self.trainer.progress, self._learned(FINAL_ADAPTER, FINAL_MODEL)
        if not self.trainer.is_done or not final.exists() or self.files.owed_checkpoints():
            return False
        try:
            return load_learned(final).global_step == progress.step
        except AdapterError as error:
            logger.warning("%s: it is written again", error)
            return False

    def _result(self, url: str | None = None) -> TrainResult:
        result = result_of(self.trainer, self.files, self.resumed_from)
        return replace(result, wandb_url=url, warnings=tuple(self.saver.failures.texts))


def result_of(trainer: Trainer, files: RunDirectory, resumed_from: int) -> TrainResult:
    """Return the result of a run that has ended, without what only the main rank knows."""
    progress, total = trainer.progress, trainer.order.total_steps
    rows = tracking.read_metrics(files.local_metrics)
    losses = [row["train/epoch_loss"] for row in rows if "train/epoch_loss" in row]
    return TrainResult(
        run_dir=str(files.root),
        steps=progress.step,
        epochs=trainer.order.epoch_of(max(1, progress.step)),
        best_loss=progress.best_loss,
        best_epoch=progress.best_epoch,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        resumed_from=resumed_from,
        wandb_url=None,
        warnings=(),
        is_validated=len(trainer.batches.validation_clips) > 0,
        ending="complete before" if resumed_from > total else "stopped early" if progress.step < total else "trained",
    )


class WandbArtifacts:
    """Uploads samples and adapters of a run. Errors are logged: they must not end the run.

    Args:
        versions: versions of the packages that the adapters were trained with.
    """

    def __init__(
        self, run: tracking.Wandb, files: RunDirectory, model: BaseModel, samples: Samples, versions: Mapping[str, str]
    ) -> None:
        self._run, self._files, self._model, self._samples, self._versions = run, files, model, samples, versions
        self._best_step: int | None = None

    def epoch(self, epoch: int, progress: Progress) -> None:
        """Upload the samples of an epoch, and the best adapter if it has changed."""
        self.samples(epoch, progress.step)
        if progress.best_step != self._best_step:
            self._best_step = progress.best_step
            self.adapter("best")

    def samples(self, epoch: int, step: int) -> None:
        """Upload the samples of an epoch, under a key per prompt, so that one slider goes through the epochs."""
        clips = {
            f"samples/{i:02d}": tracking.AudioFile(path, prompt)
            for i, (prompt, path) in enumerate(self._samples.local_files(epoch))
        }
        if not clips:
            return
        try:
            self._run.log_audio(f"samples of epoch {epoch}", {"global_step": step, "epoch": epoch}, clips)
        except Exception as error:
            _report(error, f"the samples of epoch {epoch}")

    def adapter(self, alias: str) -> None:
        """Upload the `best` or the `final` adapter, if it exists: there is no best one without a finite loss."""
        file = self._files.adapter(f"{alias}_lora")
        if not self._run.is_on:
            return
        try:
            if file.exists():
                with storage.staged(file) as local:
                    adapter, model = load_adapter(storage.as_path(local)), self._model.name
                    command = f'generate OUT --model {model} --adapter {file.name} --prompt "…"'
                    about = {
                        "base_model": self._model.identity,
                        "model": model,
                        "run": self._files.root.name,
                        "versions": dict(self._versions),
                        "load": f"uv run musicgen-flows {command}",
                        "epoch": adapter.epoch,
                        "global_step": adapter.global_step,
                        "loss": adapter.loss,
                        "lora": adapter.config,
                    }
                    self._run.log_adapter(local, alias, about)
        except Exception as error:
            _report(error, f"the {alias} adapter")


def shown_settings(config: Mapping[str, Any], trainer: Trainer) -> dict[str, Any]:
    """Return the settings shown on WandB: config.json without long values, and the run's size."""
    device = trainer.computation.device
    return {
        **{name: value for name, value in config.items() if name != SHARDS},
        "training_clips": len(trainer.batches.training_clips),
        "validation_clips": len(trainer.batches.validation_clips),
        "total_steps": trainer.order.total_steps,
        "trained_parameters": trainer.computation.trained.numel,
        "processes": trainer.world.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _report(error: Exception, what: str) -> None:
    raise_if_interrupted(error)
    logger.warning("WandB misses %s (%s: %s)", what, type(error).__name__, error)
