"""Render prompts, as one task that loads the model once."""

from __future__ import annotations

from functools import partial

from prefect import task

from musicgen_core.generation.request import Rendered, RenderRequest
from tasks.artifacts import artifacts_of_run
from tasks.cancelling import cancellable
from tasks.rendering_log import RenderingLog
from tasks.summary import rendered_section, show_summary


@task(task_run_name="render-{count}-prompts", persist_result=False)
@cancellable
def render_prompts(count: int, request: RenderRequest) -> list[Rendered]:
    """Render every prompt to a wav, all of them on one page."""
    from musicgen_core.generation.render import render

    with artifacts_of_run() as artifacts:
        log = RenderingLog(request.out, count, request.pieces_a_prompt, artifacts)
        try:
            rendered = render(request, log.hear, log.add)
        except BaseException:
            log.stop()
            raise
        log.show()
        show_summary(artifacts, partial(rendered_section, rendered))
    return rendered
