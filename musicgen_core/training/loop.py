"""The training loop, resumable at any step: all randomness derives from seed, step and clip."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from musicgen_core.config import TrainSettings
from musicgen_core.data.crops import Batch, prefetched
from musicgen_core.data.dataset import Clips, SplitBy
from musicgen_core.errors import Cancelled, TrainingError
from musicgen_core.language import message
from musicgen_core.model.adapters import Adapter
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.trained_model import Learned, TrainedModel
from musicgen_core.process import deferred_signals
from musicgen_core.stages import announce
from musicgen_core.training.batches import Batches, BatchSize
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.gradients import StepGradients
from musicgen_core.training.files.checkpoint import Progress
from musicgen_core.training.hooks import Hooks
from musicgen_core.training.learner import Learner
from musicgen_core.training.optimization import learning_rate
from musicgen_core.training.processes.distributed import World
from musicgen_core.training.validation import validate
from musicgen_core.wording import counted

logger = logging.getLogger(__name__)

MAX_SKIPPED = 10
"""Consecutive steps with a non-finite loss or gradient after which the run fails."""
FIRST_LOSS_SCALE = 2.0**15
LOSS_SCALE_STEPS = 1000
"""The loss scale of fp16 is halved when gradients overflow, and doubled after this many steps without an overflow."""
_GO, _WAIT, _STOP = range(3)


class Trainer:
    """Trains an adapter or, with `train all`, the whole model: holds what is learned, and the progress of a run.

    Args:
        lm: the base model. For an adapter it is frozen and packed; with `train all` it is in fp32.
        clips: all clips of the tokens, which are split into training and validation clips here.
        cfg_dropout: fraction of clips trained under the null condition.
        execution: how to compute; by default eagerly, in the precision of `lm`.
        word_dropout: fraction of words dropped from the other clips' texts.
        melody_dropout: fraction of these clips whose melody is dropped, if the model takes one.
        prior: clips that the base model generated, for `prior_preservation`; used for training only.
        split_by: what the validation split holds out as a whole.

    Attributes:
        batches: the training and validation clips.
        order: the clips of each step.
        progress: the progress of the run, which a step changes.
        learner: what is trained, with its optimizer.
    """

    def __init__(
        self,
        lm: MusicgenLM,
        text: TextEncoder,
        clips: Clips,
        settings: TrainSettings,
        batch_size: BatchSize,
        cfg_dropout: float,
        execution: Execution | None = None,
        world: World | None = None,
        word_dropout: float = 0.0,
        melody_dropout: float = 0.0,
        prior: Clips | None = None,
        split_by: SplitBy = "any_level",
    ) -> None:
        self.settings, self.batch_size = settings, batch_size
        execution = execution or Execution("fp32", compile=False, checkpointing=False)
        self.world = world or World.alone(lm.enc_to_dec_proj.weight.device)
        self.learner = Learner(lm, settings, execution, self.world)
        self.computation, self.optimizer = self.learner.computation, self.learner.optimizer
        self.batches = Batches(
            clips=clips,
            prior=prior,
            settings=settings,
            split_by=split_by,
            per_step=batch_size.effective,
            cfg_dropout=cfg_dropout,
            word_dropout=word_dropout,
            is_compiled=self.computation.execution.compile,
            world=self.world,
            chroma_frames=lm.config.chroma_frames,
            melody_dropout=melody_dropout,
        )
        self.order = self.batches.order
        self.gradients = StepGradients(self.computation, text, self.world, batch_size.micro)
        self.progress = Progress(loss_scale=FIRST_LOSS_SCALE if execution.precision == "fp16" else None)
        self.consistent = True
        """False during an optimizer step, when the state must not be saved."""
        self._epoch_started = self._saved = time.monotonic()

    def restore(
        self,
        weights: dict[str, Tensor],
        optimizer: dict[str, Any],
        progress: Progress,
        average: dict[str, Tensor] | None = None,
    ) -> None:
        """Restore a saved state, which every rank has: what `Learner.restore` takes, and the progress."""
        self.learner.restore(weights, optimizer, average)
        scale = progress.loss_scale if progress.loss_scale is not None else FIRST_LOSS_SCALE
        self.progress = replace(progress, loss_scale=None if self.progress.loss_scale is None else scale)

    def learned(self, base_model: str) -> Learned:
        """Return the adapter, or the model with `train all`, as it is now.

        Args:
            base_model: the hash of the base model's weights.
        """
        epoch, progress, weights = (
            self.order.epoch_of(max(1, self.progress.step)),
            self.progress,
            self.learner.weights(),
        )
        if self.learner.lora is None:
            return TrainedModel(weights, epoch, progress.step, progress.loss, base_model)
        config = self.learner.lora.plain()
        return Adapter(weights, config, epoch, progress.step, progress.loss, base_model)

    def run(self, hooks: Hooks) -> None:
        """Train to the end.

        Raises:
            Cancelled: `cancelled` returned true. As after any interruption, `on_interruption` was called.
            TrainingError: the loss or gradient norm wasn't finite in ten consecutive steps.
        """
        started, trained = self.progress.step, self.computation.trained
        size = f"{trained.numel:,}", trained.count
        if self.learner.lora is None:
            logger.info("training all %s parameters of the language model, in %d tensors", *size)
        else:
            logger.info("training %s parameters in %d tensors of the adapter; the base model is frozen", *size)
        try:
            self._train(hooks)
        except BaseException as error:
            # Prefect ends a run by raising TerminationSignal, a BaseException, at any point of the program.
            interruption = error
        else:
            with self.learner.collecting():
                hooks.on_end()
            return
        try:
            # Outside the handler: an error of saving would have the interruption as its context, as if it hid it.
            if self.consistent and self.learner.can_save(interruption) and self.progress.step > started:
                with self.learner.collecting():
                    hooks.on_interruption()
            raise interruption
        finally:
            del interruption  # its traceback refers to this frame, and so would keep the model's memory

    def _train(self, hooks: Hooks) -> None:
        self.learner.begin()
        self._wait(hooks)
        if self.progress.pending is not None:
            self._finish_step(hooks)
        first = self.progress.step + 1
        steps = range(first, self.order.total_steps + 1)
        with prefetched((partial(self.batches.of_step, step) for step in steps), device=self.computation.device) as own:
            for step in steps:
                if self.is_done:
                    logger.info(
                        "stopped early: %s without a new best",
                        counted(self.settings.early_stopping or 0, "validation"),
                    )
                    break
                self._wait(hooks)
                if step == first:
                    announce(message("computing the first step; on a GPU the model is compiled for it"))
                self._step(step, own)
                self._finish_step(hooks)
        self._wait(hooks)

    @property
    def is_done(self) -> bool:
        """True once all steps are done or the run has stopped early."""
        progress, patience = self.progress, self.settings.early_stopping
        stopped = patience is not None and progress.validations_without_gain >= patience
        return progress.pending is None and (stopped or progress.step >= self.order.total_steps)

    def _wait(self, hooks: Hooks) -> None:
        """Return once every rank may continue: at once, or after the progress is saved.

        Raises:
            Cancelled: `cancelled` returned true.
        """
        while True:
            decision = _STOP if hooks.cancelled() else _WAIT if hooks.must_wait() else _GO
            decision = self.world.highest(decision)  # one collective operation for both questions
            if decision == _STOP:
                raise Cancelled(f"the training was cancelled after step {self.progress.step}")
            if decision == _GO:
                return

    def _step(self, step: int, batches: Iterator[Batch]) -> None:
        started = time.monotonic()
        indices = self.batches.indices_of(step)
        rate = learning_rate(self.settings, step, self.order.total_steps)
        self.optimizer.set_rate(rate)
        loss, norm, scale = self._compute(step, next(batches), len(indices))
        if step == 1 and norm == 0:
            raise TrainingError(
                message("all gradients of the first step are zero, so nothing would be learned"),
                message("Check lora_targets, lora_alpha and the clips: their codes may be all the same"),
            )
        row = {"step": step, "epoch": self.order.epoch_of(step), "train/lr": rate}
        taken = math.isfinite(loss) and math.isfinite(norm)
        if taken:
            row |= {"train/loss": loss, "train/grad_norm": norm}
        with deferred_signals():  # a half-done update can't be saved
            self.consistent = False
            self._update(row, loss, scale, taken, len(indices))
            row["train/audio_seconds_per_sec"] = self.batches.audio_seconds(indices) / (time.monotonic() - started)
            self.consistent = True
        if not taken:
            self._report_skipped(step, loss, norm)

    def _update(self, row: dict[str, float], loss: float, scale: float, taken: bool, clips: int) -> None:
        """Update the parameters if `taken`, and the progress, whose pending row becomes `row`."""
        progress, step = self.progress, int(row["step"])
        if taken:
            self.optimizer.step()
            self.optimizer.update_average(step)
            progress.loss, progress.skipped_in_a_row = loss, 0
            progress.epoch_loss_sum += loss * clips
            progress.epoch_clips += clips
        else:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
        if progress.loss_scale is not None and taken:  # else no scale helped, and the previous one is kept
            progress.loss_scale = 2 * scale if step % LOSS_SCALE_STEPS == 0 else scale
        row["train/skipped_steps"] = progress.skipped
        if self.computation.device.type == "cuda":
            row["train/peak_gib"] = torch.cuda.max_memory_reserved(self.computation.device) / 2**30
        progress.step, progress.pending = step, row

    def _compute(self, step: int, batch: Batch, clips_in_step: int) -> tuple[float, float, float]:
        """Compute clipped gradients, and return the loss, the norm before clipping, and the loss scale."""
        epoch, scale, trained = self.order.epoch_of(step), self.progress.loss_scale or 1.0, self.computation.trained
        while True:
            loss = self.gradients.compute(batch, self.settings.seed, epoch, clips_in_step, scale)
            if scale != 1.0:
                trained.divide_gradients(scale)
            norm = trained.clip_gradients(self.settings.max_grad_norm)
            loss_value, norm_value = torch.stack([loss, norm.to(loss.dtype)]).tolist()  # one synchronization
            if scale <= 1 or not math.isfinite(loss_value) or math.isfinite(norm_value):
                return loss_value, norm_value, scale
            scale /= 2  # the gradients overflowed

    def _report_skipped(self, step: int, loss: float, norm: float) -> None:
        found = f"step {step} gave a loss of {loss} and a gradient norm of {norm}"
        if self.progress.skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingError(
                message(
                    "{found}, the {most_skipped}th in a row that isn't finite", found=found, most_skipped=MAX_SKIPPED
                ),
                message(
                    "Lower --learning-rate or give --warmup-steps, and resume from an earlier "
                    "checkpoint_step_*.pt or checkpoint_epoch_*.pt with --resume"
                ),
            )
        logger.warning("%s, and was skipped", found)

    def _finish_step(self, hooks: Hooks) -> None:
        """Save, log and validate after an optimizer step, which is repeated if interrupted; then end the epoch."""
        unfinished, row, step = replace(self.progress), self.progress.pending, self.progress.step
        assert row is not None
        try:
            validate_every = self.settings.validate_every_steps
            save_step_checkpoint = step % self.settings.save_every_steps == 0
            if save_step_checkpoint or self._is_save_due():
                with self.learner.collecting():
                    hooks.on_interval(save_step_checkpoint)
                self._saved = time.monotonic()
            if self.order.ends_epoch(step):
                self._end_epoch(row, hooks)
            else:
                if validate_every and step % validate_every == 0 and self._validate_best(row, hooks.cancelled):
                    with self.learner.collecting():
                        hooks.on_best()
                hooks.on_step(row)
                self.progress.pending = None
        except BaseException:
            self.progress = unfinished
            raise
        if self.order.ends_epoch(step):
            with self.learner.collecting(with_optimizer=False):
                hooks.after_epoch(self.order.epoch_of(step))  # not repeated if it is interrupted
            self._epoch_started = time.monotonic()

    def _is_save_due(self) -> bool:
        """Return whether `save_every_minutes` have passed since the last save, for sharded weights on any rank."""
        is_due = time.monotonic() - self._saved > 60 * self.settings.save_every_minutes
        return self.world.any(is_due) if self.computation.is_sharded else is_due

    def _end_epoch(self, row: dict[str, float], hooks: Hooks) -> None:
        progress = self.progress
        if progress.epoch_clips:
            row["train/epoch_loss"] = progress.epoch_loss_sum / progress.epoch_clips
        is_best = self._validate_best(row, hooks.cancelled)
        row["epoch_seconds"] = time.monotonic() - self._epoch_started
        progress.epoch_loss_sum, progress.epoch_clips, progress.pending = 0.0, 0, None
        hooks.on_step(row)
        with self.learner.collecting():
            hooks.on_epoch(int(row["epoch"]), is_best)
        self._epoch_started = self._saved = time.monotonic()

    def _validate_best(self, row: dict[str, float], cancelled: Callable[[], bool]) -> bool:
        """Validate, add the metrics to `row`, and return whether this is the best so far."""
        progress = self.progress
        row.update(self.validate(cancelled))
        if self.optimizer.average is not None and "val/loss" in row:
            with self.optimizer.averaged():
                row["val/loss_ema"] = self.validate(cancelled)["val/loss"]
        if "val/loss" not in row and "train/epoch_loss" not in row:
            return False  # no loss to compare
        loss = row.get("val/loss", row.get("train/epoch_loss", math.nan))
        is_average = row.get("val/loss_ema", math.inf) < loss
        loss = row["val/loss_ema"] if is_average else loss
        is_new = progress.best_loss is None or loss < progress.best_loss
        # A step that was interrupted after it was saved as the best is compared again.
        is_best = math.isfinite(loss) and (is_new or progress.best_step == progress.step)
        if is_best:
            progress.best_loss, progress.best_epoch, progress.best_step = loss, int(row["epoch"]), progress.step
            progress.best_is_average = is_average
        progress.validations_without_gain = 0 if is_best else progress.validations_without_gain + 1
        if self.optimizer.average is not None:
            row["best/is_ema"] = int(progress.best_is_average)
        best = {"loss": progress.best_loss, "epoch": progress.best_epoch, "step": progress.best_step}
        row.update({f"best/{name}": value for name, value in best.items() if value is not None})
        return is_best

    def validate(self, cancelled: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Return loss (nats) and perplexity over the validation clips, as metrics; empty without validation clips.

        Raises:
            Cancelled: `cancelled` returned true.
        """
        with self.optimizer.evaluated():
            return validate(
                self.batches,
                self.gradients,
                self.world,
                self.batch_size.micro,
                cancelled,
                after_step=self.progress.step,
            )
