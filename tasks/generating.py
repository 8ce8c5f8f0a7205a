"""Render prompts, as one task that loads the model once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect import task
from prefect.artifacts import create_table_artifact

from musicgen_core.config import SamplingSettings
from tasks.progress import ProgressArtifact, Update, report

if TYPE_CHECKING:
    from musicgen_core.generation.render import Rendered


@task(task_run_name="render-{count}-prompts", persist_result=False)
def render_prompts(
    output: str,
    prompts: Sequence[str],
    count: int,
    model: str,
    settings: SamplingSettings,
    adapter: str | None = None,
    compare: bool = False,
    save_codes: bool = False,
    device: str = "auto",
    copy_to: str | None = None,
) -> list[Rendered]:
    """Render every prompt to a wav."""
    from musicgen_core.generation.render import RenderRequest, render

    artifact = ProgressArtifact(f"Rendering {count} prompts")
    pieces = count * (2 if compare else 1)

    def on_step(piece: int, done: int, total: int) -> None:
        report(Update("generate", output, piece * total + done, pieces * total, f"piece {piece + 1} of {pieces}"))
        artifact.update(piece * total + done, pieces * total, f"Rendering piece {piece + 1} of {pieces}")

    request = RenderRequest(output, prompts, model, settings, adapter, compare, save_codes, device, copy_to)
    rendered = render(request, on_step)
    create_table_artifact(
        [{"file": r.wav, "prompt": r.prompt, "seconds": r.seconds, "adapter": r.with_adapter} for r in rendered],
        key="generated-music",
        description="What was rendered",
    )
    return rendered
