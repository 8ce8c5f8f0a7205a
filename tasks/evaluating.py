"""Compare an adapter with its base model, as one task."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from prefect import get_run_logger, task

from musicgen_core.errors import MusicgenError, raise_if_interrupted
from musicgen_core.evaluation.request import EvaluateRequest, Evaluation
from musicgen_core.stages import announce_torch
from tasks import outcomes
from tasks.artifacts import artifacts_of_run
from tasks.progress import LOG_EVERY_SECONDS, Pace, Update, report
from tasks.runs import cancellable
from tasks.summary import evaluated_section, show_summary, trained_section

if TYPE_CHECKING:
    from musicgen_core.training.request import TrainResult


@task(task_run_name="evaluate-{name}", persist_result=False)
@cancellable
def evaluate_adapter(name: str, request: EvaluateRequest) -> Evaluation:
    """Compare an adapter with its base model, and write a report."""
    with artifacts_of_run() as artifacts:
        evaluation = _evaluate(name, request)
        show_summary(
            artifacts,
            partial(evaluated_section, evaluation),
            outcome=partial(
                outcomes.evaluated, evaluation, request.adapter, {"model": request.model, "device": request.device}
            ),
        )
    return evaluation


@task(task_run_name="evaluate-{name}", persist_result=False)
@cancellable
def evaluate_training(name: str, request: EvaluateRequest, trained: TrainResult) -> TrainResult:
    """Evaluate a training run's best adapter unless that is done already; return the training result with the outcome.

    An error is only a warning: training is complete, and `musicgen-flows evaluate` can repeat the evaluation.
    """
    from musicgen_core.evaluation.evaluate import stored_evaluation

    with artifacts_of_run() as artifacts:
        try:
            known = stored_evaluation(trained.run_dir) if trained.ending == "complete before" else None
            result = replace(trained, evaluation=known or _evaluate(name, request))
        except Exception as error:
            raise_if_interrupted(error)
            warning = f"the adapter could not be compared with the base model: {error}"
            get_run_logger().warning("%s", warning, exc_info=not isinstance(error, MusicgenError))
            result = replace(trained, warnings=(*trained.warnings, warning))
        outcome = partial(outcomes.trained, result, {"device": request.device})
        show_summary(artifacts, partial(trained_section, result), outcome=outcome)
    return result


def _evaluate(name: str, request: EvaluateRequest) -> Evaluation:
    from musicgen_core.training.codec_check import check_codec_of_adapter

    check_codec_of_adapter(request.tokens, request.adapter, request.model)  # before any slow step
    announce_torch()
    from musicgen_core.evaluation.evaluate import evaluate

    logger, pace = get_run_logger(), Pace(LOG_EVERY_SECONDS)

    def hear(done: int, total: int, text: str) -> None:
        report(Update("evaluate", name, done, total, text))
        if pace.is_due():
            logger.info("evaluating: %s, %.0f %%", text, 100 * done / max(1, total))

    evaluation = evaluate(request, hear)
    logger.info("%s Report: %s", evaluation.sentence(), evaluation.report)
    return evaluation
