"""The LoRA training loop. Resumable at any step: everything random derives from seed, step and clip."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Batch, Clips, split, training_batch, validation_batch
from musicgen_core.errors import Cancelled, TrainingError
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.lora import LoraSettings, adapter_state, add_lora, set_adapter_state
from musicgen_core.model.pattern import teacher_forcing
from musicgen_core.model.text import TextEncoder
from musicgen_core.seeds import stream_of
from musicgen_core.training.batching import BatchSize, DataOrder
from musicgen_core.training.checkpoint import Progress
from musicgen_core.training.loss import clip_losses

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hooks:
    """How a training reports and is stopped.

    Attributes:
        on_step: called after each step with its metrics, as they stand in metrics.jsonl.
        on_epoch: called when an epoch's validation is done, with the epoch and whether it is the best so far.
        on_interval: called every `save_every_steps` steps (True), and when the training is interrupted (False).
        cancelled: asked before each step.
    """

    on_step: Callable[[dict[str, float]], None]
    on_epoch: Callable[[int, bool], None]
    on_interval: Callable[[bool], None]
    cancelled: Callable[[], bool]


class Trainer:
    """One training of one adapter: the model, the optimizer and how far they are.

    Args:
        lm: the base model; it is frozen and gets an adapter.
        clips: every clip; the split into training and validation is made here.
        cfg_dropout: share of clips trained under the null condition.
    """

    def __init__(
        self,
        lm: MusicgenLM,
        text: TextEncoder,
        clips: Clips,
        settings: TrainSettings,
        batch_size: BatchSize,
        cfg_dropout: float,
    ) -> None:
        self.settings = settings
        self.batch_size = batch_size
        self.cfg_dropout = cfg_dropout
        self.clips = clips
        self.text = text
        self.lora = LoraSettings(settings.lora_r, settings.lora_alpha, settings.lora_dropout)
        self.model: Any = add_lora(lm, self.lora, settings.seed)
        self.device = lm.enc_to_dec_proj.weight.device
        self.training_clips, self.validation_clips = split(clips.hashes, settings.validation_fraction)
        self.order = DataOrder(
            len(self.training_clips), batch_size.effective, settings.num_epochs, settings.max_steps, settings.seed
        )
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.trainable = trainable
        self.progress = Progress()
        self.consistent = True
        """False while an update is half done, when there is nothing to save."""
        self._epoch_started = time.monotonic()

    def restore(self, lora: dict[str, Tensor], optimizer: dict[str, Any], progress: Progress) -> None:
        set_adapter_state(self.model, lora, "in the checkpoint")
        self.optimizer.load_state_dict(optimizer)
        self.progress = progress

    def adapter_tensors(self) -> dict[str, Tensor]:
        return adapter_state(self.model)

    def run(self, hooks: Hooks) -> None:
        """Train to the end.

        Raises:
            Cancelled: told to stop. Like on any interruption, `on_interval` was called to save first.
        """
        started = self.progress.step
        try:
            if self.progress.pending is not None:
                self._finish_step(hooks)
            while self.progress.step < self.order.total_steps:
                if hooks.cancelled():
                    raise Cancelled(f"the training was cancelled after step {self.progress.step}")
                self._step()
                self._finish_step(hooks)
        except BaseException:
            # Prefect ends a run by raising TerminationSignal, a BaseException, wherever the program is.
            if self.consistent and self.progress.step > started:
                hooks.on_interval(False)
            raise

    def _step(self) -> None:
        started = time.monotonic()
        step = self.progress.step + 1
        epoch = self.order.epoch_of(step)
        indices = [int(self.training_clips[position]) for position in self.order.positions(step)]
        learning_rate = self._set_learning_rate(step)
        self.model.train()
        loss = torch.zeros((), device=self.device)
        audio_seconds = 0.0
        for number, batch in enumerate(self._micro_batches(indices, epoch)):
            torch.manual_seed(stream_of(self.settings.seed, step, number))  # LoRA's dropout
            losses = self._losses(batch).mean(dim=1)  # [B]
            (losses.sum() / len(indices)).backward()
            loss += losses.detach().sum() / len(indices)
            audio_seconds += int(batch.frames.sum()) / FRAME_RATE
        norm = torch.nn.utils.clip_grad_norm_(self.trainable, self.settings.max_grad_norm)
        mean_loss, grad_norm = loss.item(), norm.item()  # once: each waits for the GPU
        if not (math.isfinite(mean_loss) and math.isfinite(grad_norm)):
            raise TrainingError(
                f"step {step} gave a loss of {mean_loss} and a gradient norm of {grad_norm}, and was not taken",
                "Lower --learning-rate, and run again: it goes on from the last checkpoint",
            )
        row = {
            "step": step,
            "epoch": epoch,
            "train/loss": mean_loss,
            "train/lr": learning_rate,
            "train/grad_norm": grad_norm,
            "train/audio_seconds_per_sec": audio_seconds / (time.monotonic() - started),
        }
        self.consistent = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step, self.progress.loss = step, mean_loss
        self.progress.epoch_loss_sum += mean_loss * len(indices)
        self.progress.epoch_clips += len(indices)
        self.progress.pending = row
        self.consistent = True

    def _finish_step(self, hooks: Hooks) -> None:
        """What follows an update: its checkpoint, its metrics, its epoch's end. All of it again if interrupted."""
        unfinished = replace(self.progress)
        row = self.progress.pending
        assert row is not None
        try:
            if self.progress.step % self.settings.save_every_steps == 0:
                hooks.on_interval(True)
            if self.order.ends_epoch(self.progress.step):
                self._end_epoch(row, hooks)
            else:
                hooks.on_step(row)
                self.progress.pending = None
        except BaseException:
            self.progress = unfinished
            raise

    def _end_epoch(self, row: dict[str, float], hooks: Hooks) -> None:
        progress = self.progress
        epoch = int(row["epoch"])
        row["train/epoch_loss"] = progress.epoch_loss_sum / progress.epoch_clips
        row.update(self.validate())
        row["epoch_seconds"] = time.monotonic() - self._epoch_started
        loss = row.get("val/loss", row["train/epoch_loss"])
        is_best = progress.best_loss is None or loss < progress.best_loss
        if is_best:
            progress.best_loss, progress.best_epoch = loss, epoch
        row["best/loss"] = progress.best_loss if progress.best_loss is not None else loss
        progress.epoch_loss_sum, progress.epoch_clips, progress.pending = 0.0, 0, None
        hooks.on_step(row)
        hooks.on_epoch(epoch, is_best)
        self._epoch_started = time.monotonic()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and perplexity over the validation clips, as metrics; empty without validation clips."""
        if not len(self.validation_clips):
            return {}
        self.model.eval()
        total = torch.zeros(self.clips.codes_of(0).shape[0], dtype=torch.float64, device=self.device)  # [K]
        segment = self._segment_frames
        for start in range(0, len(self.validation_clips), self.batch_size.micro):
            indices = [int(index) for index in self.validation_clips[start : start + self.batch_size.micro]]
            total += self._losses(validation_batch(self.clips, indices, segment)).sum(dim=0)
        by_codebook = (total / len(self.validation_clips)).tolist()
        loss = sum(by_codebook) / len(by_codebook)
        metrics = {"val/loss": loss, "val/perplexity": math.exp(loss)}
        for k, value in enumerate(by_codebook):
            metrics[f"val/perplexity_codebook_{k}"] = math.exp(value)
        return metrics

    @property
    def _segment_frames(self) -> int:
        return round(self.settings.segment_seconds * FRAME_RATE)

    def _micro_batches(self, indices: list[int], epoch: int) -> Iterator[Batch]:
        for start in range(0, len(indices), self.batch_size.micro):
            chosen = indices[start : start + self.batch_size.micro]
            yield training_batch(self.clips, chosen, self._segment_frames, self.cfg_dropout, self.settings.seed, epoch)

    def _losses(self, batch: Batch) -> Tensor:
        """→ [B, K]."""
        codes, frames = batch.codes.to(self.device), batch.frames.to(self.device)
        text = self.text.encode(batch.texts)
        inputs, targets, valid = teacher_forcing(codes, frames, special=self.model.base_model.model.config.special)
        with self._autocast():
            logits = self.model(inputs, text)
        return clip_losses(logits, targets, valid)

    def _autocast(self) -> AbstractContextManager[Any]:
        """bf16 arithmetic around an adapter that is kept in fp32, on GPUs where the base is bf16."""
        if self.device.type == "cuda" and self.model.base_model.model.lm_heads[0].weight.dtype == torch.bfloat16:
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def _set_learning_rate(self, step: int) -> float:
        warmup = self.settings.warmup_steps
        rate = self.settings.learning_rate * (min(1.0, step / warmup) if warmup else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate
