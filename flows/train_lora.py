"""`train-lora`: shards of codes → a LoRA adapter in a run directory."""

# No `from __future__ import annotations`: Prefect and the command line read the parameters' annotations as they are.

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas import State
from prefect.states import Completed
from pydantic import Field
from upath import UPath

from flows.beginning import begin
from flows.endings import ends_with_reason
from flows.parameters import DEFAULT_MODEL, Device, Evaluate, Model, Tokens, new_folder, place, run_name, spread
from flows.retraining import Training, is_begun, last_completed, new_archives
from flows.run_form import explained
from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.errors import ConfigError
from musicgen_core.evaluation.request import EvaluateRequest
from musicgen_core.training.request import TrainResult
from tasks.evaluating import evaluate_training
from tasks.progress import run_logger
from tasks.training import outcome, train_adapter


@explained
@flow(name="train-lora", flow_run_name=run_name("train-lora", "run_dir"))
@ends_with_reason
@spread(TrainSettings)
def train_lora(
    *,
    tokens: Tokens = None,
    run_dir: Annotated[
        str | None,
        Field(description="Directory of this training; by default a new one under the variable musicgen_runs"),
    ] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    resume: Annotated[
        str,
        Field(description="auto: go on from the newest checkpoint; never: only a new training; or a checkpoint's path"),
    ] = "auto",
    init_adapter: Annotated[
        str | None,
        Field(
            description="Start from this *_lora.pt, the best of this run directory, this PEFT directory, "
            "or USER/NAME on the Hub"
        ),
    ] = None,
    init_from_latest: Annotated[
        bool,
        Field(description="Start from the final adapter of the last completed training beside this one, if any"),
    ] = False,
    only_new_tokens: Annotated[
        bool,
        Field(description="Skip the training if the last completed one beside it has learned from all these tokens"),
    ] = False,
    copy_to: Annotated[str | None, Field(description="Keep a second copy of the adapters here")] = None,
    evaluate: Evaluate = True,
    settings: TrainSettings,
) -> TrainResult | State[TrainResult]:
    """Fine-tune MusicGen with LoRA on tokenized clips. Running it again goes on where it stopped."""
    begin()
    directory = storage.as_path(run_dir or storage.as_path(place(None, "musicgen_runs")) / new_folder("train-lora"))
    shards = place(tokens, "musicgen_tokens")
    if init_from_latest and init_adapter:
        raise ConfigError("both init_adapter and init_from_latest are given", "Give one of the two")
    before = last_completed(directory.parent, model, directory) if init_from_latest or only_new_tokens else None
    # A run that is tried again has found out whether it is needed when it began.
    asks = before is not None and only_new_tokens and not is_begun(directory)
    if before is not None and asks and not new_archives(storage.as_path(shards), before):
        return _skipped(before.directory, shards)
    trained = train_adapter(
        name=directory.name,
        tokens=shards,
        run_dir=str(directory),
        model=model,
        settings=settings,
        device=device,
        resume=resume,
        init_adapter=_adapter_of(before, settings) if before is not None and init_from_latest else init_adapter,
        copy_to=copy_to,
    )
    if evaluate and not isinstance(trained, State):
        request = EvaluateRequest(tokens=shards, adapter=str(directory), model=model, device=device)
        trained = evaluate_training(name=directory.name, request=request, trained=trained)
    if isinstance(trained, State):
        return trained  # Cancelled
    return Completed(message=outcome(trained), data=trained)


def _adapter_of(before: Training, settings: TrainSettings) -> str | None:
    """What a retraining begins with; None: the base model, where its LoRA has another shape than before."""
    differences = before.lora_differences(settings)
    if not differences:
        return str(before.final_adapter)
    run_logger().warning("it begins anew, not from %s: %s", before.directory.name, "; ".join(differences))
    return None


def _skipped(last: UPath, tokens: str) -> State[TrainResult]:
    nothing: dict[str, Any] = dict.fromkeys(("best_loss", "best_epoch", "first_loss", "last_loss"))
    result = TrainResult(run_dir=str(last), steps=0, epochs=0, resumed_from=0, **nothing)
    message = f"Nothing to do: {last.name} has learned from everything in {tokens}"
    return Completed(name="Skipped", message=message, data=result)
