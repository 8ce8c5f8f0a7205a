"""`export`: an adapter in the formats of other libraries."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas import State
from prefect.states import Completed

from flows.decorator import form_flow
from flows.locations import new_location, run_name
from flows.parameters import ExportParameters
from flows.retraining import last_trained
from musicgen_core import storage
from musicgen_core.language import message
from musicgen_core.model.weighted_adapters import parse_adapters
from tasks.exporting import export_adapter


@form_flow(name="export", form=ExportParameters, flow_run_name=run_name("export", "adapter", "musicgen_runs"))
def export(given: ExportParameters) -> State[Any]:
    """Write an adapter in another library's format, with a model card, and push it to the Hub if that is wanted."""
    last = () if given.adapter else (last_trained(given.model, "Train first, or give an adapter"),)
    adapters = parse_adapters(given.adapter or last)
    target = given.out or new_location("musicgen_output", "export")
    name = ", ".join(storage.as_path(one.source).name for one in adapters)
    result: Any = export_adapter(
        name=name,
        adapters=adapters,
        out=target,
        kind=given.format,
        model=given.model or None,
        push_to=given.push_to,
        public=given.public,
    )
    if isinstance(result, State):
        return result  # Cancelled
    exported, pushed = result
    done = message(
        "exported {name} for {program} to {directory}", name=name, program=given.format, directory=exported.directory
    )
    if pushed is not None:
        done = message("{exported}, and pushed it to {url}", exported=done, url=pushed.url)
    return Completed(message=done, data=exported)
