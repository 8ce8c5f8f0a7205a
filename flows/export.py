"""`export`: an adapter in the formats of other libraries."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas import State
from prefect.states import Completed

from flows.decorator import form_flow
from flows.locations import location_of, new_folder, run_name
from flows.parameters import Adapter, AdaptersModel, ExportFormat, ExportOut
from flows.retraining import last_trained
from musicgen_core import storage
from musicgen_core.language import message
from tasks.exporting import export_adapter


@form_flow(name="export", flow_run_name=run_name("export", "adapter", "musicgen_runs"))
def export(
    adapter: Adapter = "",
    out: ExportOut = "",
    format: ExportFormat = "peft",
    model: AdaptersModel = "",
) -> State[Any]:
    """Write an adapter in another library's format, with a model card that explains how to load it."""
    chosen = adapter or last_trained(model, "Train first, or give an adapter")
    target = out or str(storage.as_path(location_of(None, "musicgen_output")) / new_folder("export"))
    name = storage.as_path(chosen).name
    exported: Any = export_adapter(name=name, adapter=chosen, out=target, kind=format, model=model or None)
    if isinstance(exported, State):
        return exported  # Cancelled
    done = message(
        "exported {name} for {program} to {directory}", name=name, program=format, directory=exported.directory
    )
    return Completed(message=done, data=exported)
