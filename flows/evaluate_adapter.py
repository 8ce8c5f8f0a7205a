"""`evaluate-adapter`: compare an adapter with its base model by losses on held-out clips, and write a report."""

from __future__ import annotations

from prefect.client.schemas import State

from flows.decorator import form_flow
from flows.locations import chosen_device, chosen_model, location_of, run_name
from flows.parameters import Adapter, AdaptersModel, Device, Report, Tokens
from flows.retraining import last_trained
from musicgen_core import storage
from musicgen_core.evaluation.request import (
    ClapSettings,
    EvaluateRequest,
    EvaluateSettings,
    Evaluation,
    JudgingSettings,
    PieceDuration,
    PieceSeed,
    ReportPrompts,
)
from musicgen_core.settings import collect
from tasks.evaluating import evaluate_adapter as evaluate_in_task


@form_flow(name="evaluate-adapter", flow_run_name=run_name("evaluate-adapter", "adapter", "musicgen_runs"))
def evaluate_adapter(
    tokens: Tokens = "",
    adapter: Adapter = "",
    output: Report = "",
    model: AdaptersModel = "",
    device: Device = "auto",
    prompts: ReportPrompts = (),
    duration: PieceDuration = 10.0,
    seed: PieceSeed = 0,
    clips: JudgingSettings = JudgingSettings(),
    clap: ClapSettings = ClapSettings(),
) -> Evaluation | State[Evaluation]:
    """Compare an adapter with its base model on clips that it was not trained on."""
    chosen = adapter or last_trained(model, "Train first, or give an adapter")
    request = EvaluateRequest(
        tokens=location_of(tokens, "musicgen_tokens"),
        adapter=chosen,
        model=model or None,
        output=output or None,
        device=chosen_device(device),
        settings=collect(EvaluateSettings, clips, clap, prompts=prompts, duration=duration, seed=seed),
        default_model=chosen_model(""),
    )
    return evaluate_in_task(name=storage.as_path(chosen).name, request=request)
