"""One training from tokens to a run directory: sets everything up, keeps its files, goes on where it was."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from musicgen_core import storage, tracking
from musicgen_core.codec import codec_identity
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import load_clips
from musicgen_core.devices import compute_dtype, pick_device
from musicgen_core.errors import RunDirectoryError
from musicgen_core.model.lora import (
    Adapter,
    find_adapter,
    load_adapter,
    merged_checkpoint,
    save_adapter,
    save_full_model,
    set_adapter_state,
)
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_model, guidance_defaults, load_lm
from musicgen_core.training.batching import BatchSize, resolve_batch_size
from musicgen_core.training.checkpoint import (
    Checkpoint,
    RunDirectory,
    load_checkpoint,
    save_checkpoint,
)
from musicgen_core.training.loop import Hooks, Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainRequest:
    """What to train, on what, and where to.

    Attributes:
        tokens: a directory of shards.
        run_dir: the run directory.
        model: `debug`, a directory or a Hugging Face id.
        device: auto, cpu or cuda.
        resume: auto, never, or the path of a checkpoint.
        init_adapter: an adapter to start from, or None.
        copy_to: a place for a second copy of the adapters, or None.
    """

    tokens: str
    run_dir: str
    model: str
    settings: TrainSettings
    device: str = "auto"
    resume: str = "auto"
    init_adapter: str | None = None
    copy_to: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a training came to.

    Attributes:
        first_loss, last_loss: mean training loss of the first and of the last epoch.
        resumed_from: the step that it went on from, 0 for a new one.
    """

    run_dir: str
    steps: int
    epochs: int
    best_loss: float | None
    best_epoch: int | None
    first_loss: float | None
    last_loss: float | None
    resumed_from: int
    wandb_url: str | None = None


def train(
    request: TrainRequest,
    on_start: Callable[[int, int], None] = lambda done, total: None,
    on_step: Callable[[dict[str, float]], None] = lambda row: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train an adapter, or go on with a training, to the end.

    Args:
        on_start: called once, with the steps done before and the steps in all.
        on_step: called after each step with its metrics.
        cancelled: asked before each step; the training then saves and raises Cancelled.

    Raises:
        MusicgenError: anything that a person can act on.
        Cancelled: `cancelled` said so.
    """
    device = pick_device(request.device)
    model = find_model(request.model)
    with storage.scratch_folder() as scratch:
        session = _Session(request, model, device, scratch)
        return session.run(on_start, on_step, cancelled)


class _Session:
    """The part of a training that happens in this process."""

    def __init__(self, request: TrainRequest, model: BaseModel, device: torch.device, scratch: Path) -> None:
        self.request, self.model = request, model
        self.settings = request.settings
        root = storage.as_path(request.run_dir)
        stage = Path(str(root)) if storage.is_local(root) else scratch / "stage"
        self.files = RunDirectory(root, stage)
        batch_size = resolve_batch_size(self.settings, device)
        found = self._find_checkpoint()
        self.config = self._check_config(batch_size, found)
        guidance = guidance_defaults(model)
        dropout = self.settings.cfg_dropout if self.settings.cfg_dropout is not None else guidance.training_dropout
        clips = load_clips(storage.as_path(request.tokens), codec_identity(model), scratch / "codes.bin")
        for stem in clips.skipped:
            logger.warning("the shard %s is not whole and is left out; run tokenize again", stem)
        text = TextEncoder(model.text_encoder, device)
        lm = load_lm(model, device, compute_dtype(device))
        self.trainer = Trainer(lm, text, clips, self.settings, batch_size, dropout)
        if found is not None:
            self.trainer.restore(found.adapter.lora, found.optimizer, found.progress)
            if request.init_adapter is not None:
                logger.warning("--init-adapter is left out: %s goes on where it was", self.files.root)
            if request.resume != "auto":
                self._set_aside_later()
        elif request.init_adapter is not None:
            self._start_from(request.init_adapter)
        self.resumed_from = self.trainer.progress.step
        self.metrics = self.files.stage / "metrics.jsonl"

    def run(
        self,
        on_start: Callable[[int, int], None],
        on_step: Callable[[dict[str, float]], None],
        cancelled: Callable[[], bool],
    ) -> TrainResult:
        trainer = self.trainer
        total = trainer.order.total_steps
        on_start(trainer.progress.step, total)
        self._fetch_metrics()
        if trainer.progress.step >= total and trainer.progress.pending is None and self._is_finished():
            logger.info("the training in %s is complete: %d of %d steps", self.files.root, trainer.progress.step, total)
            return self._result(None)
        self.files.write_config(self.config)
        (self.files.stage / "samples").mkdir(parents=True, exist_ok=True)
        # A step whose metrics may not have been written yet writes them again.
        tracking.cut_metrics(self.metrics, trainer.progress.step - (trainer.progress.pending is not None))
        run = tracking.Wandb(
            self.files.stage, self.config["wandb_id"], self.files.root.name, job_type="train", config=self.config
        )

        def record(row: dict[str, float]) -> None:
            tracking.append_metrics(self.metrics, row)
            run.log({"global_step": row["step"], **{name: value for name, value in row.items() if name != "step"}})
            on_step(row)

        exit_code = 1
        try:
            trainer.run(Hooks(record, self._save_epoch, self._save_interval, cancelled))
            self._save_final()
            self._share(run)
            exit_code = 0
        finally:
            run.finish(exit_code)
            self.files.upload_stage()
        return self._result(run.url)

    def _find_checkpoint(self) -> Checkpoint | None:
        resume = self.request.resume
        if resume == "never":
            if self.files.has_training():
                raise RunDirectoryError(
                    f"{self.files.root} has a training in it, and resume is never",
                    "Give another run directory, or --resume auto to go on with it",
                )
            return None
        if resume != "auto":
            return load_checkpoint(storage.as_path(resume))
        found = self.files.find_checkpoint()
        if found is None:
            return None
        checkpoint, path = found
        if path != self.files.latest:
            logger.warning("%s can't be read; going on from %s", self.files.latest, path)
        logger.info("resuming from %s, step %d", path, checkpoint.progress.step)
        return checkpoint

    def _set_aside_later(self) -> None:
        """Move what a later part of the training wrote out of the way, so that nothing mixes with the new one."""
        progress, files = self.trainer.progress, self.files
        for path in files.files_after(progress.step):
            storage.move(path, files.root / "superseded" / path.name)
        if progress.best_epoch is None or files.lora("best_lora").exists():
            return
        best = files.lora(f"lora_epoch_{progress.best_epoch}")
        if best.exists():
            adapter = load_adapter(best)
            save_adapter(adapter, files.lora("best_lora"))
            save_full_model(merged_checkpoint(self.model, adapter), files.full_model("best_model"))
        else:
            logger.warning("%s is gone: the next epoch counts as the best", best)
            progress.best_loss = progress.best_epoch = None

    def _check_config(self, batch_size: BatchSize, found: Checkpoint | None) -> dict[str, Any]:
        """The run's config.json, after comparing what must not change between its parts.

        Raises:
            RunDirectoryError: the run directory belongs to another training; every difference is named.
        """
        fixed = ("lora_r", "lora_alpha", "lora_dropout", "seed", "segment_seconds", "validation_fraction")
        values = self.settings.model_dump(mode="json")
        wanted = {
            "base_model": self.model.identity,
            **{name: values[name] for name in fixed},
            "clips_per_step": batch_size.effective,
        }
        stored = self.files.read_config()
        if stored is not None and found is not None:
            different = [
                f"{name} is {stored.get(name)} there and {value} here"
                for name, value in wanted.items()
                if stored.get(name) != value
            ]
            if different:
                raise RunDirectoryError(
                    f"{self.files.root} holds another training: {'; '.join(different)}",
                    "Give another run directory, or the same model and settings",
                )
        if found is not None:
            found.adapter.check_base(self.model, "in the checkpoint")
        return {
            **values,
            **wanted,
            "batch_size": batch_size.micro,
            "gradient_accumulation_steps": batch_size.accumulation,
            "model": self.model.name,
            "model_dir": str(self.model.directory),
            "tokens": self.request.tokens,
            "wandb_id": (stored or {}).get("wandb_id") or secrets.token_hex(4),
            "versions": {name: version(name) for name in ("torch", "peft", "transformers", "audiocraft")},
        }

    def _start_from(self, location: str) -> None:
        path = find_adapter(location)
        adapter = load_adapter(path)
        adapter.check_base(self.model, str(path))
        adapter.check_scale(self.trainer.lora, str(path))
        set_adapter_state(self.trainer.model, adapter.lora, str(path))

    def _fetch_metrics(self) -> None:
        remote = self.files.root / "metrics.jsonl"
        if not self.metrics.exists() and remote.exists():
            self.metrics.parent.mkdir(parents=True, exist_ok=True)
            self.metrics.write_bytes(remote.read_bytes())

    def _adapter(self) -> Adapter:
        progress = self.trainer.progress
        return Adapter(
            lora=self.trainer.adapter_tensors(),
            config=self.trainer.lora.plain(),
            epoch=self.trainer.order.epoch_of(max(1, progress.step)),
            global_step=progress.step,
            loss=progress.loss,
            base_model=self.model.identity,
        )

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self._adapter(), self.trainer.optimizer.state_dict(), self.trainer.progress)

    def _save_interval(self, is_due: bool) -> None:
        checkpoint = self._checkpoint()
        self.files.upload_stage()
        if is_due:
            save_checkpoint(checkpoint, self.files.step_checkpoint(checkpoint.progress.step))
        self._save_latest(checkpoint)

    def _save_latest(self, checkpoint: Checkpoint) -> None:
        """Last of all that belongs to a step: what it refers to is then in place."""
        save_adapter(checkpoint.adapter, self.files.lora("latest_lora"))
        save_checkpoint(checkpoint, self.files.latest)

    def _save_epoch(self, epoch: int, is_best: bool) -> None:
        checkpoint = self._checkpoint()
        merged = merged_checkpoint(self.model, checkpoint.adapter)
        save_adapter(checkpoint.adapter, self.files.lora(f"lora_epoch_{epoch}"))
        if is_best:
            save_adapter(checkpoint.adapter, self.files.lora("best_lora"))
            save_full_model(merged, self.files.full_model("best_model"))
        self._plot()
        self.files.upload_stage()
        # From here on a restart goes on after this epoch.
        resume = {"resume": checkpoint.to_plain()}
        save_full_model({**merged, **resume}, self.files.full_model(f"checkpoint_epoch_{epoch}"))
        self._save_latest(checkpoint)

    def _save_final(self) -> None:
        adapter = self._adapter()
        save_full_model(merged_checkpoint(self.model, adapter), self.files.full_model("final_model"))
        save_adapter(adapter, self.files.lora("final_lora"))

    def _is_finished(self) -> bool:
        final = self.files.lora("final_lora")
        return final.exists() and load_adapter(final).global_step == self.trainer.progress.step

    def _plot(self) -> None:
        target = storage.as_path(self.files.stage / "loss.png")
        with storage.publish(target) as path:
            tracking.plot_losses(tracking.read_metrics(self.metrics), path)

    def _share(self, run: tracking.Wandb) -> None:
        for name, alias in (("best_lora", "best"), ("final_lora", "final")):
            file = self.files.lora(name)
            with storage.staged(file) as local:
                run.log_adapter(local, alias, {"base_model": self.model.identity, "run": self.files.root.name})
                if self.request.copy_to:
                    storage.upload(local, storage.as_path(self.request.copy_to) / "lora_weights" / file.name)

    def _result(self, url: str | None) -> TrainResult:
        progress = self.trainer.progress
        losses = [row["train/epoch_loss"] for row in tracking.read_metrics(self.metrics) if "train/epoch_loss" in row]
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
        )
