"""`musicgen-flows export`: an adapter in the formats of other libraries."""

from __future__ import annotations

from typing import Any

from deployments.console import output, print_table, show_core_messages
from flows.parameters import ExportParameters
from musicgen_core.wording import sized


def export(parameters: dict[str, Any]) -> int:
    export_adapter(ExportParameters(**parameters))
    return 0


def export_adapter(given: ExportParameters) -> None:
    """Write an adapter as other libraries load it, with a model card that says how."""
    from musicgen_core.exporting.export import export
    from musicgen_core.model import hub

    assert given.adapter and given.out and given.format, "the command line sees to it"
    show_core_messages()
    with (
        output.status("Exporting …") as status,
        hub.heard_by(lambda progress: status.update(f"Fetching {progress.repo}: {progress} …")),
    ):
        exported = export(given.adapter, given.out, given.format, given.model)
    files = [f"{name}, {sized(size)}" for name, size in exported.files.items()]
    print_table(
        "Exported",
        [
            ("directory", str(exported.directory)),
            ("files", "\n".join(files)),
            ("how to load it", str(exported.directory / "README.md")),
        ],
    )
