"""`train-lora`: shards of codes → a LoRA adapter in a run directory."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas import State
from prefect.states import Completed
from upath import UPath

from flows.decorator import form_flow
from flows.locations import chosen_device, chosen_model, location_of, new_folder, run_name
from flows.parameters import Device, Model, RunDir, Saving, Start, Tokens, Validation
from flows.retraining import Training, is_begun, last_completed, new_archives
from musicgen_core import storage
from musicgen_core.config import (
    AdapterSettings,
    DataSettings,
    Epochs,
    HardwareSettings,
    LearningRate,
    LoraRank,
    OptimizerSettings,
    SampleSettings,
    Seed,
    TrainSettings,
)
from musicgen_core.errors import ConfigError
from musicgen_core.evaluation.request import EvaluateRequest
from musicgen_core.language import message
from musicgen_core.settings import collect
from musicgen_core.training.request import TrainResult
from tasks.evaluating import evaluate_training
from tasks.progress import run_logger
from tasks.training import outcome, train_adapter


@form_flow(name="train-lora", flow_run_name=run_name("train-lora", "run_dir"))
def train_lora(
    tokens: Tokens = "",
    run_dir: RunDir = "",
    model: Model = "",
    device: Device = "auto",
    num_epochs: Epochs = 5,
    lora_r: LoraRank = 8,
    learning_rate: LearningRate = 1e-4,
    seed: Seed = 0,
    start: Start = Start(),
    lora: AdapterSettings = AdapterSettings(),
    optimizer: OptimizerSettings = OptimizerSettings(),
    validation: Validation = Validation(),
    samples: SampleSettings = SampleSettings(),
    data: DataSettings = DataSettings(),
    saving: Saving = Saving(),
    hardware: HardwareSettings = HardwareSettings(),
) -> TrainResult | State[TrainResult]:
    """Fine-tune MusicGen with LoRA on tokenized clips. Running it again resumes where it stopped."""
    essential = {"num_epochs": num_epochs, "lora_r": lora_r, "learning_rate": learning_rate, "seed": seed}
    settings = collect(TrainSettings, lora, optimizer, validation, samples, data, saving, hardware, **essential)
    model, device = chosen_model(model), chosen_device(device)
    directory = storage.as_path(
        run_dir or storage.as_path(location_of(None, "musicgen_runs")) / new_folder("train-lora")
    )
    shards = location_of(tokens, "musicgen_tokens")
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
        copy_to=saving.copy_to,
    )
    if validation.evaluate and not isinstance(trained, State):
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
    run_logger().warning("it begins anew, not from %s: %s", before.directory.name, "; ".join(differences))
    return None


def _skipped(last: UPath, tokens: str) -> State[TrainResult]:
    nothing: dict[str, Any] = dict.fromkeys(("best_loss", "best_epoch", "first_loss", "last_loss"))
    result = TrainResult(run_dir=str(last), steps=0, epochs=0, resumed_from=0, **nothing)
    why = message("Nothing to do: {run} has learned from everything in {tokens}", run=last.name, tokens=tokens)
    return Completed(name="Skipped", message=why, data=result)
