"""`train-lora`: shards of codes → a LoRA adapter in a run directory."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas import State
from prefect.states import Completed
from upath import UPath

from flows.decorator import form_flow
from flows.locations import chosen_device, chosen_model, location_of, new_location, run_name
from flows.parameters import TrainParameters
from flows.retraining import Training, is_begun, last_completed, new_archives
from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.errors import ConfigError
from musicgen_core.evaluation.request import EvaluateRequest
from musicgen_core.language import message
from musicgen_core.settings import collect
from musicgen_core.training.request import TrainResult
from tasks.evaluating import evaluate_training
from tasks.progress import run_logger
from tasks.training import outcome, train_adapter


@form_flow(name="train-lora", form=TrainParameters, flow_run_name=run_name("train-lora", "run_dir"))
def train_lora(given: TrainParameters) -> TrainResult | State[TrainResult]:
    """Fine-tune MusicGen with LoRA on tokenized clips. Running it again resumes where it stopped."""
    settings = collect(TrainSettings, given)
    model, device, start = chosen_model(given.model), chosen_device(given.device), given.start
    directory = storage.as_path(given.run_dir or new_location("musicgen_runs", "train-lora"))
    shards = location_of(given.tokens, "musicgen_tokens")
    if start.init_from_latest and start.init_adapter:
        raise ConfigError(message("both init_adapter and init_from_latest are given"), message("Give one of the two"))
    asks_before = start.init_from_latest or start.only_new_tokens
    before = last_completed(directory.parent, model, directory) if asks_before else None
    # A retry does not check again for new archives: its first attempt decided that.
    asks = before is not None and start.only_new_tokens and not is_begun(directory)
    if before is not None and asks and not new_archives(storage.as_path(shards), before):
        return _skipped(before.directory, shards)
    trained = train_adapter(
        name=directory.name,
        tokens=shards,
        run_dir=str(directory),
        model=model,
        settings=settings,
        device=device,
        resume=start.resume,
        init_adapter=_adapter_of(before, settings) if before and start.init_from_latest else start.init_adapter,
        copy_to=given.saving.copy_to,
    )
    if given.validation.evaluate and not isinstance(trained, State):
        request = EvaluateRequest(tokens=shards, adapter=str(directory), model=model, device=device)
        trained = evaluate_training(name=directory.name, request=request, trained=trained)
    if isinstance(trained, State):
        return trained  # Cancelled
    return Completed(message=outcome(trained), data=trained)


def _adapter_of(before: Training, settings: TrainSettings) -> str | None:
    """Return the initial adapter of a retraining; None: the base model, because the LoRA settings differ."""
    differences = before.lora_differences(settings)
    if not differences:
        return str(before.final_adapter)
    run_logger().warning("it restarts from scratch, not from %s: %s", before.directory.name, "; ".join(differences))
    return None


def _skipped(last: UPath, tokens: str) -> State[TrainResult]:
    nothing: dict[str, Any] = dict.fromkeys(("best_loss", "best_epoch", "first_loss", "last_loss"))
    result = TrainResult(run_dir=str(last), steps=0, epochs=0, resumed_from=0, **nothing)
    why = message("Nothing to do: {run} has learned from everything in {tokens}", run=last.name, tokens=tokens)
    return Completed(name="Skipped", message=why, data=result)
