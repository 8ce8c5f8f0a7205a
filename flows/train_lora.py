"""`train-lora`: shards of codes → a LoRA adapter in a run directory."""

# No `from __future__ import annotations`: Prefect and the command line read the parameters' annotations as they are.

from typing import TYPE_CHECKING, Annotated

from prefect import flow
from pydantic import Field

from flows.parameters import DEFAULT_MODEL, Device, Model, Tokens, creation_stamp, place, run_name, spread
from musicgen_core import storage
from musicgen_core.config import TrainSettings
from tasks.keys import export_secrets
from tasks.training import train_adapter

if TYPE_CHECKING:
    from musicgen_core.training.request import TrainResult


@flow(name="train-lora", flow_run_name=run_name("train-lora", "run_dir"))
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
        str | None, Field(description="Start from this *_lora.pt, or the best of this run directory")
    ] = None,
    copy_to: Annotated[str | None, Field(description="Keep a second copy of the adapters here")] = None,
    settings: TrainSettings,
) -> "TrainResult":
    """Fine-tune MusicGen with LoRA on tokenized clips. Running it again goes on where it stopped."""
    export_secrets()
    directory = run_dir or str(storage.as_path(place(None, "musicgen_runs")) / f"train-{creation_stamp()}")
    return train_adapter(
        name=storage.as_path(directory).name,
        tokens=place(tokens, "musicgen_tokens"),
        run_dir=directory,
        model=model,
        settings=settings,
        device=device,
        resume=resume,
        init_adapter=init_adapter,
        copy_to=copy_to,
    )
