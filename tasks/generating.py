"""Render prompts, as one task that loads the model once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from prefect import task

from musicgen_core.config import SamplingSettings
from tasks.artifacts import artifacts_of_run
from tasks.rendering_log import RenderingLog
from tasks.summary import rendered_section, show_summary

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

    request = RenderRequest(output, prompts, model, settings, adapter, compare, save_codes, device, copy_to)
    with artifacts_of_run() as artifacts:
        log = RenderingLog(output, count, 2 if compare else 1, artifacts)
        rendered = render(request, log.hear, log.add)
        log.show()
        show_summary(artifacts, partial(rendered_section, rendered))
    return rendered
