"""`evaluate-adapter`: is an adapter better than the base model? Losses on held-out clips, and a report."""

# No `from __future__ import annotations`: Prefect and the command line read the parameters' annotations as they are.

from typing import Annotated

from prefect import flow
from prefect.client.schemas import State
from pydantic import Field

from flows.beginning import begin
from flows.endings import ends_with_reason
from flows.parameters import DEFAULT_MODEL, Device, Model, Tokens, place, run_name, spread
from flows.retraining import last_completed
from flows.run_form import explained
from musicgen_core import storage
from musicgen_core.errors import ConfigError
from musicgen_core.evaluation.request import EvaluateRequest, EvaluateSettings, Evaluation
from tasks.evaluating import evaluate_adapter as evaluate_in_task


@explained
@flow(name="evaluate-adapter", flow_run_name=run_name("evaluate-adapter", "adapter", "musicgen_runs"))
@ends_with_reason
@spread(EvaluateSettings)
def evaluate_adapter(
    *,
    tokens: Tokens = None,
    adapter: Annotated[
        str | None,
        Field(
            description="A *_lora.pt, a run directory (its best), a PEFT directory, or USER/NAME on the Hub; "
            "by default the training under the variable musicgen_runs that was completed last"
        ),
    ] = None,
    output: Annotated[
        str | None,
        Field(
            description="Directory of the report; by default evaluation in the adapter's run directory, or beside it"
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    settings: EvaluateSettings,
) -> Evaluation | State[Evaluation]:
    """Compare an adapter with its base model on clips that it has not learned from."""
    begin()
    chosen = adapter or _last_trained(model)
    request = EvaluateRequest(place(tokens, "musicgen_tokens"), chosen, model, output, device, settings)
    return evaluate_in_task(name=storage.as_path(chosen).name, request=request)


def _last_trained(model: str) -> str:
    runs = storage.as_path(place(None, "musicgen_runs"))
    last = last_completed(runs, model, besides=runs)
    if last is None:
        raise ConfigError(f"there is no completed training of {model} in {runs}", "Train first, or give an adapter")
    return str(last.directory)
