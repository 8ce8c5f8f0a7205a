"""`musicgen-flows export`: an adapter in the formats of other libraries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from deployments.console import output, print_table, show_core_messages
from deployments.options import FlowOptions, parse
from musicgen_core.wording import sized

OPTIONS = FlowOptions(positionals=("adapter", "out"), required=("format",))


def export(arguments: Sequence[str]) -> int:
    export_adapter(**parse("export", export_adapter, OPTIONS, arguments))
    return 0


def export_adapter(
    adapter: Annotated[
        str | None,
        Field(
            description="A *_lora.pt, a training's run directory (its best), a PEFT directory, or USER/NAME on the Hub"
        ),
    ] = None,
    out: Annotated[str | None, Field(description="Directory or URL to write; nothing may be there yet")] = None,
    format: Annotated[
        Literal["peft", "audiocraft"] | None,
        Field(
            description="peft: the adapter alone, for PeftModel.from_pretrained on Hugging Face's "
            "MusicgenForConditionalGeneration. audiocraft: base and adapter merged, for MusicGen.get_pretrained"
        ),
    ] = None,
    model: Annotated[
        str | None,
        Field(description="A Hugging Face id, a directory, demo or debug; by default the base model of its training"),
    ] = None,
) -> None:
    """Write an adapter as other libraries load it, with a model card that says how."""
    from musicgen_core.exporting.export import export
    from musicgen_core.model import hub

    assert adapter is not None and out is not None and format is not None, "the command line sees to it"
    show_core_messages()
    with (
        output.status("Exporting …") as status,
        hub.heard_by(lambda progress: status.update(f"Fetching {progress.repo}: {progress} …")),
    ):
        exported = export(adapter, out, format, model)
    files = [f"{name}, {sized(size)}" for name, size in exported.files.items()]
    print_table(
        "Exported",
        [
            ("directory", str(exported.directory)),
            ("files", "\n".join(files)),
            ("how to load it", str(exported.directory / "README.md")),
        ],
    )
