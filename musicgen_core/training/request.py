"""The request and the result of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from musicgen_core.config import TrainSettings
from musicgen_core.evaluation.request import Evaluation  # not for the type checker alone: ipc.py sends results
from musicgen_core.language import message


@dataclass(frozen=True)
class TrainRequest:
    """A training run to start or resume.

    Attributes:
        tokens: a directory of shards.
        model: `demo`, `debug`, a directory or a Hugging Face id.
        device: auto, cpu or cuda.
        resume: auto, never, or the path of a checkpoint.
        init_adapter: an adapter to start from, or None.
        copy_to: a location for a mirror of adapters, metrics and latest.pt, or None.
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
    """The result of a training run.

    Attributes:
        steps: optimizer steps done.
        epochs: the epoch of the last step.
        best_loss: the lowest validation loss, or the lowest training loss if no clips are held out; in nats.
        first_loss: mean training loss of the first epoch.
        last_loss: mean training loss of the last epoch.
        resumed_from: the step that the run resumed from, 0 for a new one.
        wandb_url: the page of the run on WandB, if it has one.
        warnings: failures to save.
        ending: trained to the last step; stopped early by its validation loss; or complete before: nothing trained.
        evaluation: the evaluation of its best adapter, if it was evaluated.
        is_validated: whether clips are held out.
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
    warnings: tuple[str, ...] = ()
    ending: Literal["trained", "stopped early", "complete before"] = "trained"
    evaluation: Evaluation | None = None
    is_validated: bool = True

    @property
    def best_name(self) -> str:
        """The name of the loss in `best_loss`."""
        return message("best validation loss") if self.is_validated else message("best training loss")
