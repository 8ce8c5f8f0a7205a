"""Estimate how long tokenizing and training will take, as one task."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from prefect import task
from upath import UPath

from musicgen_core.config import Trained
from musicgen_core.language import message
from musicgen_core.stages import announce, announce_torch
from tasks import outcomes
from tasks.artifacts import artifacts_of_run
from tasks.progress import LOG_EVERY_SECONDS, Pace, Update, report, run_logger
from tasks.runs import cancellable, counted_name
from tasks.summary import estimated_section, show_summary

if TYPE_CHECKING:
    from musicgen_core.estimate import Estimate


@task(task_run_name=counted_name("estimate", "clips", "clip"), persist_result=False)
@cancellable
def estimate_archives(
    clips: int,
    location: str,
    archives: Sequence[UPath],
    left_out: Sequence[str],
    model: str,
    device: str,
    workers: int,
    hourly_price: float | None,
    trained: Trained = "lora",
) -> Estimate:
    """Encode a sample of the clips, and show the estimated time, disk space and price of all of them."""
    announce_torch()
    from musicgen_core.captioning.measuring import Measurer
    from musicgen_core.codec import Codec
    from musicgen_core.devices import pick_device
    from musicgen_core.estimate import estimate
    from musicgen_core.estimate_rows import rows_of
    from musicgen_core.model.weights import find_codec

    logger, pace, done = run_logger(), Pace(LOG_EVERY_SECONDS), count(1)
    announce(message("looking into the archives"))
    if notice := outcomes.missing_descriptions(archives):
        logger.warning("%s", notice)

    def hear() -> None:
        encoded = next(done)
        report(Update("estimate", "clips", min(encoded, clips), clips, message("{number} encoded", number=encoded)))
        if pace.is_due():
            logger.info("encoding clip %d of at most %d", encoded, clips)

    with artifacts_of_run() as artifacts:
        found = estimate(
            archives,
            lambda: Codec(find_codec(model), pick_device(device)),
            clips,
            workers,
            hear,
            load_measurer=partial(Measurer, pick_device(device)) if notice else None,
        )
        rows = rows_of(found, model, hourly_price, left_out, trained)
        on = {"model": model, "device": device}
        outcome = partial(outcomes.estimated, location, on, bool(notice), len(found.unreadable), notice)
        show_summary(artifacts, partial(estimated_section, rows), outcome=outcome)
    return found
