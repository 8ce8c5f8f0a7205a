"""Export an adapter to the format of another library, as one task."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from prefect import task

from musicgen_core.language import message
from musicgen_core.stages import announce, announce_torch
from tasks import outcomes
from tasks.artifacts import artifacts_of_run
from tasks.runs import cancellable
from tasks.summary import exported_section, show_summary

if TYPE_CHECKING:
    from musicgen_core.exporting.export import Exported


@task(task_run_name="export-{name}", persist_result=False)
@cancellable
def export_adapter(
    name: str, adapter: str, out: str, kind: Literal["peft", "audiocraft"], model: str | None
) -> Exported:
    """Write an adapter in another library's format, with a model card that explains how to load it."""
    announce_torch()
    from musicgen_core.exporting.export import export

    with artifacts_of_run() as artifacts:
        announce(message("exporting the adapter"))
        exported = export(adapter, out, kind, model)
        outcome = partial(outcomes.exported, str(exported.directory), kind, {"adapter": adapter, "model": model})
        show_summary(artifacts, partial(exported_section, exported), outcome=outcome)
    return exported
