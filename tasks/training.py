"""Train an adapter, as one task that resumes by itself whenever it runs again."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact

from musicgen_core import storage
from musicgen_core.config import TrainSettings
from tasks.progress import ProgressArtifact, Update, report

if TYPE_CHECKING:
    from musicgen_core.training.request import TrainResult

# Not cached: whether a training is complete is read from its run directory, never from a stored result.


@task(task_run_name="train-{name}", persist_result=False)
def train_adapter(
    name: str,
    tokens: str,
    run_dir: str,
    model: str,
    settings: TrainSettings,
    device: str = "auto",
    resume: str = "auto",
    init_adapter: str | None = None,
    copy_to: str | None = None,
) -> TrainResult:
    """Train, or go on with the training in the run directory."""
    from musicgen_core.training.launch import launch
    from musicgen_core.training.request import TrainRequest
    from musicgen_core.training.train import train

    artifact = ProgressArtifact(f"Training {name}")
    total_steps = 0

    def on_start(done: int, total: int) -> None:
        nonlocal total_steps
        total_steps = total
        report(Update("train", name, done, total))

    def on_step(row: dict[str, float]) -> None:
        step = int(row["step"])
        text = f"epoch {int(row['epoch'])}, " + (f"loss {row['train/loss']:.3f}" if "train/loss" in row else "skipped")
        report(Update("train", name, step, total_steps, text))
        artifact.update(step, total_steps, f"Training {name}: step {step} of {total_steps}, {text}")

    request = TrainRequest(tokens, run_dir, model, settings, device, resume, init_adapter, copy_to)
    if settings.gpus > 1:
        result = launch(request, settings.gpus, on_start, on_step)
    else:
        result = train(request, on_start, on_step)
    for warning in result.warnings:
        get_run_logger().warning("%s", warning)
    get_run_logger().info("trained %d steps in %s, best loss %s", result.steps, result.run_dir, result.best_loss)
    _show(result)
    return result


def _show(result: TrainResult) -> None:
    picture = storage.as_path(result.run_dir) / "loss.png"
    encoded = base64.b64encode(picture.read_bytes()).decode() if picture.exists() else ""
    wandb = f"\n\n[WandB run]({result.wandb_url})" if result.wandb_url else ""
    create_markdown_artifact(
        f"**{result.steps} steps, {result.epochs} epochs.** Best loss {result.best_loss} in epoch {result.best_epoch}. "
        f"Files in `{result.run_dir}`.{wandb}\n\n![loss](data:image/png;base64,{encoded})",
        key="training",
        description="Loss of the training and where its files are",
    )
