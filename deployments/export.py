"""`musicgen-flows export`: an adapter in the formats of other libraries."""

from __future__ import annotations

from typing import Any

from deployments.activity import working
from deployments.console import print_outcome, print_rows
from flows.parameters import ExportParameters
from musicgen_core.language import message
from musicgen_core.model import hub
from musicgen_core.stages import announce_torch
from musicgen_core.wording import sized
from tasks import outcomes
from tasks.progress import fetched


def export(parameters: dict[str, Any]) -> int:
    export_adapter(ExportParameters(**parameters))
    return 0


def export_adapter(given: ExportParameters) -> None:
    """Write an adapter in the formats of other libraries, with a model card that explains how to load it."""
    with working() as activity, hub.download_listener(lambda progress: activity(fetched(progress))):
        announce_torch()
        from musicgen_core.exporting.export import export

        exported = export(given.adapter, given.out, given.format, given.model or None)
    print_rows(message("Exported"), [(name, sized(size)) for name, size in exported.files.items()])
    print_outcome(
        outcomes.exported(str(exported.directory), given.format, {"adapter": given.adapter, "model": given.model})
    )
