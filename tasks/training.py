"""Train an adapter or all weights, as one task that resumes automatically when it runs again."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from prefect import get_run_logger, runtime, task
from prefect.exceptions import CancelledRun, TerminationSignal

from musicgen_core.config import TrainSettings
from musicgen_core.language import message
from musicgen_core.layer_ranges import check_layers
from musicgen_core.learning_settings import check_full_training, check_optimizer
from musicgen_core.stages import announce, announce_torch, heard_by
from musicgen_core.wording import counted
from tasks.artifacts import artifacts_of_run
from tasks.interruption import terminal_command
from tasks.outcomes import trained
from tasks.progress import quieted
from tasks.runs import cancellable, is_cancelling
from tasks.summary import show_summary, trained_section
from tasks.training_log import TrainingLog

if TYPE_CHECKING:
    from musicgen_core.training.request import TrainRequest, TrainResult

_ENDINGS = {
    "trained": message("trained"),
    "stopped early": message("stopped early"),
    "complete before": message("complete before"),
}
# Not cached: whether a training is complete is read from its run directory, never from a stored result.


def _task_run_name() -> str:
    name = str(runtime.task_run.parameters["name"])
    return name if name.startswith("train-") else f"train-{name}"  # as the default directories of runs do


@task(task_run_name=_task_run_name, persist_result=False)
@cancellable
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
    """Train an adapter or all weights, or resume training in the run directory."""
    from musicgen_core.training.request import TrainRequest

    request = TrainRequest(tokens, run_dir, model, settings, device, resume, init_adapter, copy_to)
    # The loop warns of each skipped step, of which there may be thousands.
    with artifacts_of_run() as artifacts, quieted("musicgen_core.training.loop"):
        log = TrainingLog(name, run_dir, artifacts)
        try:
            with heard_by(log.begin_stage):
                result = _train(request, log)
        except TerminationSignal as signal:
            if not is_cancelling():
                log.stop("interrupted")
                raise
            raise CancelledRun(log.cancel()) from signal
        except KeyboardInterrupt as signal:
            if (command := terminal_command()) is None:
                log.stop("interrupted")
                raise
            raise CancelledRun(log.cancel(command)) from signal
        except BaseException as error:
            if isinstance(error, Exception):
                log.fail(error)
            else:
                log.stop("interrupted")
            raise
        log.show("complete", result.wandb_url)
        show_summary(artifacts, partial(trained_section, result), outcome=partial(trained, result, {"device": device}))
    for warning in result.warnings:
        get_run_logger().warning("%s", warning)
    get_run_logger().info("%s", outcome(result))
    return result


def outcome(result: TrainResult) -> str:
    """Return the result of a training run as one line."""
    steps, ending = counted(result.steps, "step"), _ENDINGS[result.ending]
    if result.best_loss is None:
        return message("{ending}: {steps}, in {run_dir}", ending=ending, steps=steps, run_dir=result.run_dir)
    return message(
        "{ending}: {steps}, {best} {loss:.4f} in epoch {epoch}, in {run_dir}",
        ending=ending,
        steps=steps,
        best=result.best_name,
        loss=result.best_loss,
        epoch=result.best_epoch,
        run_dir=result.run_dir,
    )


def _train(request: TrainRequest, log: TrainingLog) -> TrainResult:
    from musicgen_core.model.local_files import layers_here
    from musicgen_core.training.codec_check import check_tokens_codec

    if (count := layers_here(request.model)) is not None:  # before any slow step
        check_layers(request.settings.layers, request.settings.ranks, count)
    check_tokens_codec(request.tokens, request.model)
    announce_torch()
    from musicgen_core.training.processes.launch import launch
    from musicgen_core.training.train import check_init_adapter, train

    if request.settings.gpus > 1:
        check_optimizer(request.settings.optimizer_name)
        check_full_training(request.settings.model_dump(), request.settings.gpus)
        check_init_adapter(request)
        check_model(request.model)  # once, before every process needs it
        return launch(request, request.settings.gpus, log.start, log.hear, on_wait=log.wait, on_prior=log.generate)
    return train(request, log.start, log.hear, on_wait=log.wait, on_prior=log.generate)


def check_model(name: str) -> None:
    """Download a model with its text encoder, and read its configuration.

    Raises:
        ModelError: the model can't be used by any run.
    """
    announce_torch()
    from musicgen_core.model.text import find_text_encoder
    from musicgen_core.model.weights import find_model

    announce(message("looking for the model {name}", name=name))
    model = find_model(name)
    assert model.config, "read, to find out whether it can be"
    find_text_encoder(model.text_encoder)
