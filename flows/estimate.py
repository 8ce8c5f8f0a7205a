"""`estimate`: how long tokenizing and training will take, on how much disk, and at what price."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas import State
from prefect.states import Completed

from flows.decorator import form_flow
from flows.locations import chosen_device, chosen_model, location_of, run_name
from flows.parameters import EstimateParameters, archives_at_a_time
from musicgen_core.data.archive import choose_archives
from musicgen_core.language import message
from musicgen_core.wording import lasting
from tasks.estimating import estimate_archives


@form_flow(
    name="estimate", form=EstimateParameters, flow_run_name=run_name("estimate", "archives", "musicgen_archives")
)
def estimate(given: EstimateParameters) -> State[Any]:
    """Show how long tokenizing and training will take: a sample of the clips is encoded."""
    location = location_of(given.archives, "musicgen_archives")
    chosen, left_out = choose_archives(location)
    found: Any = estimate_archives(
        clips=given.clips,
        location=location,
        archives=chosen,
        left_out=left_out,
        model=chosen_model(given.model),
        device=chosen_device(given.device),
        workers=archives_at_a_time(given.workers.max_workers),
        hourly_price=given.hourly_price or None,
        trained=given.train,
    )
    if isinstance(found, State):
        return found  # Cancelled
    takes = message("tokenizing takes about {time}, plus start-up", time=lasting(3600 * found.hours_to_go))
    return Completed(message=takes, data=found)
