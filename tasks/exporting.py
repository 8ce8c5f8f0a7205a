"""Export an adapter to the format of another library, as one task."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from prefect import task

from musicgen_core.language import message
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.stages import announce, announce_torch
from tasks import outcomes
from tasks.artifacts import artifacts_of_run
from tasks.progress import report, uploaded
from tasks.runs import cancellable
from tasks.summary import exported_section, show_summary

if TYPE_CHECKING:
    from musicgen_core.exporting.export import Exported
    from musicgen_core.model.hub_upload import Pushed, UploadProgress


@task(task_run_name="export-{name}", persist_result=False)
@cancellable
def export_adapter(
    name: str,
    adapters: Sequence[WeightedAdapter],
    out: str,
    kind: Literal["peft", "audiocraft", "huggingface"],
    model: str | None,
    push_to: str = "",
    public: bool = False,
) -> tuple[Exported, Pushed | None]:
    """Write an adapter, or a mix, in another library's format, with a model card, and push it to the Hub if wanted."""
    announce_torch()
    from musicgen_core.exporting.push import export_and_push

    with artifacts_of_run() as artifacts:

        def show(progress: UploadProgress) -> None:
            artifacts.progress("pushing", progress.done, progress.total, f"Pushing to {progress.repo}: {progress}")
            report(uploaded(progress))

        announce(message("exporting the adapter"))
        exported, pushed = export_and_push(adapters, out, kind, model, push_to, is_public=public, listener=show)
        given = {"adapter": list(map(str, adapters)), "model": model, "public": public}
        outcome = partial(outcomes.exported, str(exported.directory), kind, given, pushed)
        show_summary(artifacts, partial(exported_section, exported), outcome=outcome)
    return exported, pushed
