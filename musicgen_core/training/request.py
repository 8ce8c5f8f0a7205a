"""What a training is asked for, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from musicgen_core.config import TrainSettings
from musicgen_core.evaluation.request import Evaluation  # not for the type checker alone: ipc.py sends results
from musicgen_core.language import message


@dataclass(frozen=True)
class TrainRequest:
    """What to train, on what, and where to.

    Attributes:
        tokens: a directory of shards.
        run_dir: the run directory.
        model: `demo`, `debug`, a directory or a Hugging Face id.
        device: auto, cpu or cuda.
        resume: auto, never, or the path of a checkpoint.
        init_adapter: an adapter to start from, or None.
        copy_to: a place for a second copy of adapters, metrics and latest.pt, or None.
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
        best_loss, best_epoch: of the validation, or of the training where no clips are held out.
        first_loss, last_loss: mean training loss of the first and of the last epoch.
        resumed_from: the step that it went on from, 0 for a new one.
        ending: trained to the last step; stopped early by its validation loss; or complete before: nothing trained.
        warnings: what could not be saved, if anything.
        evaluation: of its best adapter, where that was made.
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
        """What `best_loss` is the best of."""
        return message("best validation loss") if self.is_validated else message("best training loss")
