"""`evaluate-adapter`: is an adapter better than the base model? Losses on held-out clips, and a report."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas import State

from flows.beginning import begin
from flows.endings import ends_with_reason
from flows.parameters import EvaluateParameters
from flows.places import place, run_name
from flows.retraining import last_completed
from flows.run_form import explained, spread
from musicgen_core import storage
from musicgen_core.errors import ConfigError
from musicgen_core.evaluation.request import EvaluateRequest, EvaluateSettings, Evaluation
from tasks.evaluating import evaluate_adapter as evaluate_in_task


@explained
@flow(name="evaluate-adapter", flow_run_name=run_name("evaluate-adapter", "adapter", "musicgen_runs"))
@ends_with_reason
@spread(EvaluateParameters, EvaluateSettings)
def evaluate_adapter(given: EvaluateParameters, settings: EvaluateSettings) -> Evaluation | State[Evaluation]:
    """Compare an adapter with its base model on clips that it has not learned from."""
    begin()
    chosen = given.adapter or _last_trained(given.model)
    request = EvaluateRequest(
        tokens=place(given.tokens, "musicgen_tokens"),
        adapter=chosen,
        model=given.model,
        output=given.output,
        device=given.device,
        settings=settings,
    )
    return evaluate_in_task(name=storage.as_path(chosen).name, request=request)


def _last_trained(model: str) -> str:
    runs = storage.as_path(place(None, "musicgen_runs"))
    last = last_completed(runs, model, besides=runs)
    if last is None:
        raise ConfigError(f"there is no completed training of {model} in {runs}", "Train first, or give an adapter")
    return str(last.directory)
