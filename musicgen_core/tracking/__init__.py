"""Experiment tracking: `metrics.jsonl`, plots of it, and WandB."""

from musicgen_core.tracking.metrics import (
    MetricsWriter,
    cut_metrics,
    picture,
    pictures_of,
    plot_learning_rate,
    plot_losses,
    plot_perplexities,
    read_metrics,
)
from musicgen_core.tracking.wandb_run import AudioFile, Wandb, kept_run_id, stored_url, sync_command

__all__ = [
    "AudioFile",
    "MetricsWriter",
    "Wandb",
    "cut_metrics",
    "kept_run_id",
    "picture",
    "pictures_of",
    "plot_learning_rate",
    "plot_losses",
    "plot_perplexities",
    "read_metrics",
    "stored_url",
    "sync_command",
]
