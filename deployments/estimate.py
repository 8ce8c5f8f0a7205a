"""`musicgen-flows estimate`: duration, disk space and price of tokenizing."""

from __future__ import annotations

from itertools import count
from typing import Any

from deployments.activity import working
from deployments.console import print_outcome, print_rows, print_text
from flows.parameters import EstimateParameters, archives_at_a_time, grouped, groups_in
from musicgen_core.config import DEFAULT_MODEL
from musicgen_core.language import message, translated
from musicgen_core.model import hub
from musicgen_core.stages import advance, announce_torch
from tasks import outcomes
from tasks.progress import fetched


def estimate(parameters: dict[str, Any]) -> int:
    estimate_archives(EstimateParameters(**grouped(parameters, groups_in(EstimateParameters))))
    return 0


def estimate_archives(given: EstimateParameters) -> None:
    """Encode a sample of the clips, and print the duration, disk space and price of tokenizing all of them."""
    model = given.model or DEFAULT_MODEL
    done = count(1)
    with working() as activity, hub.download_listener(lambda progress: activity(fetched(progress))):
        announce_torch()
        from musicgen_core.codec import Codec
        from musicgen_core.data.archive import choose_archives
        from musicgen_core.devices import pick_device
        from musicgen_core.estimate import estimate, rows_of
        from musicgen_core.model.weights import find_codec

        picked = pick_device(given.device)
        activity.say(message("looking into the archives"))
        chosen, left_out = choose_archives(given.archives)
        if notice := outcomes.missing_descriptions(chosen):
            print_text(translated(notice), "yellow")
        found = estimate(
            chosen,
            lambda: Codec(find_codec(model), picked),
            given.clips,
            archives_at_a_time(given.workers.max_workers),
            lambda: advance(message("encoding a sample of the clips"), next(done), given.clips),
        )
    print_rows(message("Estimate"), rows_of(found, model, given.hourly_price or None, left_out))
    on = {"model": given.model, "device": given.device}
    print_outcome(outcomes.estimated(given.archives, on, unreadable=len(found.unreadable)))
