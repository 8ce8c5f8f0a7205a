"""`evaluate-adapter`: is an adapter better than the base model? Losses on held-out clips, and a report."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas import State

from flows.beginning import begin
from flows.endings import ends_with_reason
from flows.parameters import EvaluateParameters
from flows.places import chosen_device, chosen_model, place, run_name
from flows.retraining import last_trained
from flows.run_form import explained, spread
from musicgen_core import storage
from musicgen_core.evaluation.request import EvaluateRequest, EvaluateSettings, Evaluation
from tasks.evaluating import evaluate_adapter as evaluate_in_task


@explained
@flow(name="evaluate-adapter", flow_run_name=run_name("evaluate-adapter", "adapter", "musicgen_runs"))
@ends_with_reason
@spread(EvaluateParameters, EvaluateSettings)
def evaluate_adapter(given: EvaluateParameters, settings: EvaluateSettings) -> Evaluation | State[Evaluation]:
    """Compare an adapter with its base model on clips that it has not learned from."""
    begin()
    chosen = given.adapter or last_trained(given.model, "Train first, or give an adapter")
    request = EvaluateRequest(
        tokens=place(given.tokens, "musicgen_tokens"),
        adapter=chosen,
        model=given.model,
        output=given.output,
        device=chosen_device(given.device),
        settings=settings,
        default_model=chosen_model(None),
    )
    return evaluate_in_task(name=storage.as_path(chosen).name, request=request)
