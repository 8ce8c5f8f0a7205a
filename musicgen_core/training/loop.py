"""The LoRA training loop. Resumable at any step: everything random derives from seed, step and clip."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicgen_core.codes import CODEBOOKS, FRAME_RATE
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Batch, Clips, join, split, training_batch, validation_batch
from musicgen_core.data.loader import prefetched
from musicgen_core.errors import Cancelled, TrainingError
from musicgen_core.language import message
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.lora import LoraSettings, adapter_state, add_lora, set_adapter_state
from musicgen_core.model.text import TextEncoder
from musicgen_core.stages import advance, announce
from musicgen_core.training.batching import BatchSize, DataOrder
from musicgen_core.training.checkpoint import Progress
from musicgen_core.training.distributed import World
from musicgen_core.training.gradients import StepGradients
from musicgen_core.training.loss import perplexity
from musicgen_core.training.model import Execution, TrainingModel
from musicgen_core.training.prior_preservation import prior_share
from musicgen_core.wording import counted

logger = logging.getLogger(__name__)

VALIDATING = "validating"
MOST_SKIPPED = 10
"""Steps in a row with a loss or gradients that aren't finite, after which going on makes no sense."""
FIRST_LOSS_SCALE = 2.0**15
LOSS_SCALE_STEPS = 1000
"""fp16 gradients are scaled up until they overflow, and tried at twice the scale after so many steps that did not."""
COLUMNS_STEP = 250
"""Sequences are padded to multiples of 5 s where code is compiled for each shape."""
_GO, _WAIT, _STOP = range(3)


@dataclass(frozen=True)
class Hooks:
    """How a training reports and is stopped.

    Attributes:
        on_step: called after each step with its metrics, as they stand in metrics.jsonl.
        on_epoch: called when an epoch's validation is done, with the epoch and whether it is the best so far.
        on_interval: called every `save_every_steps` steps (True); and every `save_every_minutes`, and when the
            training is interrupted (False).
        cancelled: asked before each step, and while it validates.
        on_best: called when a validation between epochs' ends is the best so far.
        after_epoch: called with the epoch when all that is to be saved of it is saved.
        must_wait: asked before each step and after the last: whether what was learned could not be saved yet. The run
            goes no further until it is; each call blocks for about a second, or tries again to save.
    """

    on_step: Callable[[dict[str, float]], None]
    on_epoch: Callable[[int, bool], None]
    on_interval: Callable[[bool], None]
    cancelled: Callable[[], bool]
    on_best: Callable[[], None] = lambda: None
    after_epoch: Callable[[int], None] = lambda epoch: None
    must_wait: Callable[[], bool] = lambda: False


class Trainer:
    """One training of one adapter: the model, the optimizer and how far they are.

    Args:
        lm: the base model; it is frozen, gets an adapter, and is packed for training.
        clips: every clip of the tokens; the split into training and validation is made here.
        cfg_dropout: share of clips trained under the null condition.
        word_dropout: share of words left out of the other clips' texts.
        execution: how to compute; by default eagerly, in the precision of `lm`.
        world: the processes that share the training.
        prior: clips that the base model generated, for `prior_preservation`; they train and never validate.

    Attributes:
        training_clips, validation_clips: the clips of the tokens, as indices.
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
        prior: Clips | None = None,
    ) -> None:
        self.settings = settings
        self.cfg_dropout, self.word_dropout, self.batch_size = cfg_dropout, word_dropout, batch_size
        self.clips = clips if prior is None else join(clips, prior)
        self._prior = prior  # keeps its shard in the cache
        self.lora = LoraSettings(
            settings.lora_r,
            settings.lora_alpha,
            settings.lora_dropout,
            tuple(settings.lora_targets),
            settings.lora_rslora,
            settings.lora_dora,
        )
        self.model: Any = add_lora(lm, self.lora, settings.seed)
        self.training_clips, self.validation_clips = split(clips.hashes, settings.validation_fraction)
        self._epoch_clips = self.training_clips
        if prior is not None:
            share = np.arange(prior_share(len(self.training_clips), settings.prior_preservation))
            self._epoch_clips = np.concatenate([self.training_clips, len(clips) + share % len(prior)])
        self.order = DataOrder(
            len(self._epoch_clips), batch_size.effective, settings.num_epochs, settings.max_steps, settings.seed
        )
        execution = execution or Execution("fp32", compile=False, checkpointing=False)
        self.computation = TrainingModel(self.model, settings.lora_dropout, execution)
        self.world = world or World.alone(self.computation.device)
        self.gradients = StepGradients(self.computation, text, self.world, batch_size.micro)
        self.optimizer = torch.optim.AdamW(
            [self.computation.flat.whole], lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.progress = Progress(loss_scale=FIRST_LOSS_SCALE if execution.precision == "fp16" else None)
        self.consistent = True
        """False while an update is half done, when there is nothing to save."""
        self._epoch_started = self._saved = time.monotonic()

    def restore(self, lora: dict[str, Tensor], optimizer: dict[str, Any], progress: Progress) -> None:
        """Go on from what was saved: adapter, `optimizer_state`, and how far it was."""
        set_adapter_state(self.model, lora, "in the checkpoint")
        # Only its moments: weight decay and the like are those of the settings, which may have changed.
        groups = self.optimizer.state_dict()["param_groups"]
        state = self.computation.flat.join_state(optimizer["state"])
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        scale = progress.loss_scale if progress.loss_scale is not None else FIRST_LOSS_SCALE
        self.progress = replace(progress, loss_scale=None if self.progress.loss_scale is None else scale)

    def optimizer_state(self) -> dict[str, Any]:
        """As that of an optimizer of peft's parameters, each on its own."""
        own = self.optimizer.state_dict()
        (group,) = own["param_groups"]
        parameters = list(range(len(self.computation.parameters)))
        state = self.computation.flat.split_state(own["state"])
        return {"state": state, "param_groups": [{**group, "params": parameters}]}

    def adapter_tensors(self) -> dict[str, Tensor]:
        return adapter_state(self.model)

    def run(self, hooks: Hooks) -> None:
        """Train to the end.

        Raises:
            Cancelled: `cancelled` said so. Like on any interruption, `on_interval` was called to save first.
            TrainingError: the loss isn't finite, ten steps in a row.
        """
        started = self.progress.step
        self._tell_what_trains()
        try:
            self._wait(hooks)
            if self.progress.pending is not None:
                self._finish_step(hooks)
                self._rest(hooks)
            steps = range(self.progress.step + 1, self.order.total_steps + 1)
            with prefetched((partial(self._batch_of, step) for step in steps), device=self.computation.device) as own:
                for step in steps:
                    if self.is_done:
                        logger.info(
                            "stopped early: %s without a new best",
                            counted(self.settings.early_stopping or 0, "validation"),
                        )
                        break
                    self._wait(hooks)
                    if step == started + 1:
                        announce(message("computing the first step; on a GPU the model is compiled for it"))
                    self._step(step, own)
                    self._finish_step(hooks)
                    self._rest(hooks)
            self._wait(hooks)
        except BaseException:
            # Prefect ends a run by raising TerminationSignal, a BaseException, wherever the program is.
            if self.consistent and self.progress.step > started:
                hooks.on_interval(False)
            raise

    @property
    def is_done(self) -> bool:
        """Whether there is nothing more to train: all steps done, or stopped early."""
        progress, patience = self.progress, self.settings.early_stopping
        stopped = patience is not None and progress.validations_without_gain >= patience
        return progress.pending is None and (stopped or progress.step >= self.order.total_steps)

    def _wait(self, hooks: Hooks) -> None:
        """Return when every rank may go on: at once, or once what was learned is saved.

        Raises:
            Cancelled: `cancelled` said so.
        """
        while True:
            asked = _STOP if hooks.cancelled() else _WAIT if hooks.must_wait() else _GO
            asked = self.world.highest(asked)  # in one exchange
            if asked == _STOP:
                raise Cancelled(f"the training was cancelled after step {self.progress.step}")
            if asked == _GO:
                return

    def _tell_what_trains(self) -> None:
        trained = sum(parameter.numel() for parameter in self.computation.parameters)
        logger.info(
            "training %s parameters in %d tensors of the adapter; the base model is frozen",
            f"{trained:,}",
            len(self.computation.parameters),
        )

    def _batch_of(self, step: int) -> Batch:
        """This rank's clips of a step, every `world.size`-th. It may have none of an epoch's last."""
        indices = self._indices_of(step)[self.world.rank :: self.world.size]
        if not indices:
            return Batch(torch.zeros(0, CODEBOOKS, 0), torch.zeros(0), [], self.clips.hashes[:0])
        epoch, segment = self.order.epoch_of(step), self._segment_frames
        columns = self._columns(indices)
        return training_batch(
            self.clips,
            indices,
            segment,
            self.cfg_dropout,
            self.settings.seed,
            epoch,
            columns,
            self.word_dropout,
        )

    def _indices_of(self, step: int) -> list[int]:
        return [int(self._epoch_clips[position]) for position in self.order.positions(step)]

    def _frames_of(self, indices: list[int]) -> NDArray[np.int32]:
        return np.minimum(self.clips.frames[indices], self._segment_frames)

    def _columns(self, indices: list[int]) -> int | None:
        if not self.computation.execution.compile:
            return None
        longest = int(self._frames_of(indices).max())
        return min(self._segment_frames, -(-longest // COLUMNS_STEP) * COLUMNS_STEP)

    def _step(self, step: int, batches: Iterator[Batch]) -> None:
        started = time.monotonic()
        progress, indices = self.progress, self._indices_of(step)
        learning_rate = self._set_learning_rate(step)
        loss, norm, scale = self._compute(step, next(batches), len(indices))
        if step == 1 and norm == 0:
            raise TrainingError(
                message("no gradient reaches the adapter, so it would learn nothing"),
                message("Check lora_targets, lora_alpha and the clips: their codes may be all the same"),
            )
        row = {"step": step, "epoch": self.order.epoch_of(step), "train/lr": learning_rate}
        taken = math.isfinite(loss) and math.isfinite(norm)
        if taken:
            row |= {"train/loss": loss, "train/grad_norm": norm}
        self.consistent = False
        if taken:
            self.optimizer.step()
            progress.loss, progress.skipped_in_a_row = loss, 0
            progress.epoch_loss_sum += loss * len(indices)
            progress.epoch_clips += len(indices)
        else:
            progress.skipped += 1
            progress.skipped_in_a_row += 1
        if progress.loss_scale is not None and taken:  # else no scale helped, and that of before stays
            progress.loss_scale = 2 * scale if step % LOSS_SCALE_STEPS == 0 else scale
        progress.step = step
        row["train/skipped_steps"] = progress.skipped
        row["train/audio_seconds_per_sec"] = (
            float(self._frames_of(indices).sum()) / FRAME_RATE / (time.monotonic() - started)
        )
        if self.computation.device.type == "cuda":
            row["train/peak_gib"] = torch.cuda.max_memory_reserved(self.computation.device) / 2**30
        progress.pending = row
        self.consistent = True
        if not taken:
            self._report_skipped(step, loss, norm)

    def _compute(self, step: int, batch: Batch, clips_in_step: int) -> tuple[float, float, float]:
        """Leave clipped gradients in the parameters → loss, norm before clipping, and the scale that they fitted."""
        seed, epoch, scale = self.settings.seed, self.order.epoch_of(step), self.progress.loss_scale or 1.0
        while True:
            loss = self.gradients.compute(batch, seed, epoch, clips_in_step, scale)
            flat = self.computation.flat
            if scale != 1.0:
                flat.gradient.div_(scale)
            norm = torch.nn.utils.clip_grad_norm_(flat.whole, self.settings.max_grad_norm)
            both = torch.stack([loss, norm.to(loss.dtype)]).tolist()  # once: it waits for the GPU
            overflowed = scale > 1 and math.isfinite(both[0]) and not math.isfinite(both[1])
            if not overflowed:
                return both[0], both[1], scale
            scale /= 2

    def _report_skipped(self, step: int, loss: float, norm: float) -> None:
        found = f"step {step} gave a loss of {loss} and a gradient norm of {norm}"
        if self.progress.skipped_in_a_row >= MOST_SKIPPED:
            raise TrainingError(
                message(
                    "{found}, the {most_skipped}th in a row that isn't finite", found=found, most_skipped=MOST_SKIPPED
                ),
                message(
                    "Lower --learning-rate or give --warmup-steps, and go on from a checkpoint_step_*.pt or "
                    "checkpoint_epoch_*.pt of before with --resume"
                ),
            )
        logger.warning("%s, and was skipped", found)

    def _finish_step(self, hooks: Hooks) -> None:
        """What follows an update: its checkpoint, its metrics, its epoch's end. All of it again if interrupted."""
        unfinished = replace(self.progress)
        row = self.progress.pending
        assert row is not None
        try:
            is_due = self.progress.step % self.settings.save_every_steps == 0
            if is_due or time.monotonic() - self._saved > 60 * self.settings.save_every_minutes:
                hooks.on_interval(is_due)
                self._saved = time.monotonic()
            if self.order.ends_epoch(self.progress.step):
                self._end_epoch(row, hooks)
            else:
                every = self.settings.validate_every_steps
                if every is not None and self.progress.step % every == 0 and self._judge(row, hooks.cancelled):
                    hooks.on_best()
                hooks.on_step(row)
                self.progress.pending = None
        except BaseException:
            self.progress = unfinished
            raise

    def _rest(self, hooks: Hooks) -> None:
        """What is done between epochs, and need not be done again when it is interrupted."""
        if self.order.ends_epoch(self.progress.step):
            hooks.after_epoch(self.order.epoch_of(self.progress.step))
            self._epoch_started = time.monotonic()

    def _end_epoch(self, row: dict[str, float], hooks: Hooks) -> None:
        progress = self.progress
        if progress.epoch_clips:
            row["train/epoch_loss"] = progress.epoch_loss_sum / progress.epoch_clips
        is_best = self._judge(row, hooks.cancelled)
        row["epoch_seconds"] = time.monotonic() - self._epoch_started
        progress.epoch_loss_sum, progress.epoch_clips, progress.pending = 0.0, 0, None
        hooks.on_step(row)
        hooks.on_epoch(int(row["epoch"]), is_best)
        self._epoch_started = self._saved = time.monotonic()

    def _judge(self, row: dict[str, float], cancelled: Callable[[], bool]) -> bool:
        """Validate, with the metrics in `row` → whether this is the best so far."""
        progress = self.progress
        row.update(self.validate(cancelled))
        if "val/loss" not in row and "train/epoch_loss" not in row:
            return False  # nothing to judge by
        loss = row.get("val/loss", row.get("train/epoch_loss", math.nan))
        is_new = progress.best_loss is None or loss < progress.best_loss
        # Interrupted after it was saved as the best, it is judged again.
        is_best = math.isfinite(loss) and (is_new or progress.best_step == progress.step)
        if is_best:
            progress.best_loss, progress.best_epoch, progress.best_step = loss, int(row["epoch"]), progress.step
        progress.validations_without_gain = 0 if is_best else progress.validations_without_gain + 1
        best = {"loss": progress.best_loss, "epoch": progress.best_epoch, "step": progress.best_step}
        row.update({f"best/{name}": value for name, value in best.items() if value is not None})
        return is_best

    def validate(self, cancelled: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Loss and perplexity over the validation clips, as metrics; empty without validation clips.

        Raises:
            Cancelled: told to stop meanwhile.
        """
        everything = [int(index) for index in self.validation_clips]
        if not everything:
            return {}
        total = torch.zeros(CODEBOOKS, dtype=torch.float64, device=self.computation.device)  # [K]
        micro, size = self.batch_size.micro, self.world.size
        own = everything[self.world.rank :: size]
        rounds = -(-len(everything) // (micro * size))  # the same on all ranks, which ask one another in each
        parts = [own[number * micro : (number + 1) * micro] for number in range(rounds)]
        making = (partial(self._validation_batch, part) for part in parts if part)
        with prefetched(making, device=self.computation.device) as batches:
            for number, part in enumerate(parts):
                advance(VALIDATING, number, rounds)
                if self.world.any(cancelled()):
                    raise Cancelled(f"the training was cancelled while it validated after step {self.progress.step}")
                if part:
                    total += self.gradients.validation_losses(next(batches)).sum(dim=0)
        by_codebook = (self.world.sum(total) / len(everything)).tolist()
        loss = sum(by_codebook) / len(by_codebook)
        metrics = {"val/loss": loss, "val/perplexity": perplexity(loss)}
        for k, value in enumerate(by_codebook):
            metrics[f"val/loss_codebook_{k}"] = value
            metrics[f"val/perplexity_codebook_{k}"] = perplexity(value)
        return metrics

    def _validation_batch(self, indices: list[int]) -> Batch:
        return validation_batch(self.clips, indices, self._segment_frames, self._columns(indices))

    @property
    def _segment_frames(self) -> int:
        return round(self.settings.segment_seconds * FRAME_RATE)

    def _set_learning_rate(self, step: int) -> float:
        rate = learning_rate(self.settings, step, self.order.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate


def learning_rate(settings: TrainSettings, step: int, total_steps: int) -> float:
    """Of a step, from 1: rising over the warm-up, then as `schedule` says, to 0 behind the last step."""
    warmup = settings.warmup_steps
    if step <= warmup:
        return settings.learning_rate * step / warmup
    done = (step - warmup - 1) / max(1, total_steps - warmup)
    shape = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return settings.learning_rate * shape[settings.schedule]
