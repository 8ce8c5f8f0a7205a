"""Generate music for prompts, as one task that loads the model once."""

from __future__ import annotations

from functools import partial

from prefect import task

from musicgen_core.generation.request import Rendered, RenderRequest
from musicgen_core.stages import announce_torch, heard_by
from tasks.artifacts import artifacts_of_run
from tasks.outcomes import rendered
from tasks.rendering_log import RenderingLog
from tasks.runs import cancellable, counted_name
from tasks.summary import rendered_files, rendered_section, show_summary


@task(task_run_name=counted_name("render", "count", "prompt"), persist_result=False)
@cancellable
def render_prompts(count: int, request: RenderRequest) -> list[Rendered]:
    """Generate a wav for every prompt, and a page that plays all of them."""
    with artifacts_of_run() as artifacts:
        log = RenderingLog(request.out, count, request.sample_count, artifacts)
        try:
            with heard_by(log.begin_stage):
                announce_torch()
                from musicgen_core.generation.render import render

                pieces = render(request, log.hear, log.add)
        except BaseException:
            log.stop()
            raise
        log.show()
        given = {**vars(request), **request.settings.model_dump(exclude_defaults=True)}
        given |= request.control.model_dump(mode="json", exclude_defaults=True)
        given |= request.seams.model_dump(exclude_defaults=True)
        given["adapter"] = list(map(str, request.adapters))
        show_summary(
            artifacts,
            partial(rendered_section, pieces),
            outcome=partial(rendered, pieces, given),
            listed=rendered_files(pieces),
        )
    return pieces
