"""`evaluate-adapter`: compare an adapter with its base model by losses on held-out clips, and write a report."""

from __future__ import annotations

from prefect.client.schemas import State

from flows.decorator import form_flow
from flows.locations import chosen_device, chosen_model, location_of, run_name
from flows.parameters import EvaluateParameters
from flows.retraining import last_trained
from musicgen_core import storage
from musicgen_core.evaluation.request import EvaluateRequest, EvaluateSettings, Evaluation
from musicgen_core.model.weighted_adapters import parse_adapters, shown_adapters
from musicgen_core.settings import collect
from tasks.evaluating import evaluate_adapter as evaluate_in_task


@form_flow(
    name="evaluate-adapter",
    form=EvaluateParameters,
    flow_run_name=run_name("evaluate-adapter", "adapter", "musicgen_runs"),
)
def evaluate_adapter(given: EvaluateParameters) -> Evaluation | State[Evaluation]:
    """Compare an adapter with its base model on clips that it was not trained on."""
    last = () if given.adapter else (last_trained(given.model, "Train first, or give an adapter"),)
    adapters = parse_adapters(given.adapter or last)
    request = EvaluateRequest(
        tokens=location_of(given.tokens, "musicgen_tokens"),
        adapter=shown_adapters(adapters),
        model=given.model or None,
        output=given.output or None,
        device=chosen_device(given.device),
        settings=collect(EvaluateSettings, given),
        default_model=chosen_model(""),
    )
    name = ", ".join(storage.as_path(one.source).name for one in adapters)
    return evaluate_in_task(name=name, request=request)
