"""`musicgen-flows estimate`: how long tokenizing will take, on how much disk, and at what price."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from deployments.activity import working
from deployments.console import print_line, print_outcome, print_rows
from flows.parameters import EstimateParameters, archives_at_a_time
from musicgen_core.config import DEFAULT_MODEL, TokenizeSettings
from musicgen_core.errors import MetadataError
from musicgen_core.stages import advance
from musicgen_core.wording import counted, lasting, sized
from tasks import outcomes
from tasks.fetching import fetched

if TYPE_CHECKING:
    from upath import UPath

    from musicgen_core.estimate import Estimate

SHOWN_REASONS = 3


def estimate(parameters: dict[str, Any]) -> int:
    estimate_archives(EstimateParameters(**parameters))
    return 0


def estimate_archives(given: EstimateParameters) -> None:
    """Encode a sample of the clips, and say how long all of them will take, on how much disk, and at what price."""
    from deployments.training_price import training_rows
    from musicgen_core.codec import Codec
    from musicgen_core.data.archive import choose_archives
    from musicgen_core.devices import pick_device
    from musicgen_core.estimate import estimate
    from musicgen_core.model import hub
    from musicgen_core.model.weights import find_codec

    assert given.archives is not None, "the command line sees to it"
    picked = pick_device(given.device)
    done = count(1)
    with (
        working("looking into the archives") as activity,
        hub.heard_by(lambda progress: activity(fetched(progress))),
    ):
        chosen, left_out = choose_archives(given.archives)
        warn_of_missing_descriptions(chosen)
        found = estimate(
            chosen,
            lambda: Codec(find_codec(given.model), picked),
            given.clips,
            archives_at_a_time(given.max_workers),
            lambda: advance("encoding a sample of the clips", next(done), given.clips),
        )
    rows = [
        *estimated_rows(found, given.hourly_price, left_out),
        *training_rows(found, given.model, given.hourly_price),
    ]
    print_rows("Estimate", rows)
    on = {"model": given.model if given.model != DEFAULT_MODEL else None, "device": given.device}
    print_outcome(outcomes.estimated(given.archives, on))


def warn_of_missing_descriptions(archives: Sequence[UPath]) -> None:
    """Say first thing that clips have no descriptions, or that those that are there can't be used."""
    from musicgen_core.data.captions import Captioner, load_captions, metadata_beside
    from musicgen_core.data.undescribed import undescribed_clips

    metadata = metadata_beside(archives[0])
    try:
        captions = load_captions(metadata) if metadata else None
    except MetadataError as error:
        print_line(str(error), style="yellow")
        return
    if undescribed := undescribed_clips(archives, Captioner(TokenizeSettings(), captions)):
        print_line(outcomes.no_descriptions(undescribed), style="yellow")


def estimated_rows(found: Estimate, hourly_price: float | None, left_out: Sequence[str] = ()) -> list[tuple[str, str]]:
    about = "" if found.is_exact else "about "
    rows = [
        ("archives", f"{found.archives:,}, {sized(found.archive_bytes)}"),
        *(("  can't be read", reason) for reason in found.unreadable[:SHOWN_REASONS]),
        *_more(found.unreadable),
        *(("  left out", remark) for remark in left_out[:SHOWN_REASONS]),
        *_more(left_out),
        ("clips", f"{about}{found.clips:,}, about {lasting(found.audio_seconds)} of audio"),
        ("sample", _sample(found)),
        *((f"  {entry.clip}", entry.reason) for entry in found.rejected[:SHOWN_REASONS]),
        *_more(found.rejected),
        ("speed", _speed(found)),
        ("time to go", _time_to_go(found)),
        ("disk", f"about {sized(found.tokens_bytes)} of tokens"),
    ]
    if found.scratch_bytes:
        at_once = counted(found.workers, "archive")
        rows.append(("scratch disk", f"{sized(found.scratch_bytes)}, for {at_once} downloaded at a time"))
    if hourly_price is not None:
        rows.append(("cost", f"about {found.cost(hourly_price):,.2f} at {hourly_price:,.2f} an hour"))
    return rows


def _sample(found: Estimate) -> str:
    text = f"{counted(found.sampled_clips, 'clip')} of {counted(found.sampled_archives, 'archive')}"
    if found.sampled_clips < found.asked_clips:
        text += f", which have no more (asked for: {found.asked_clips:,})"
    if found.rejected:
        share = len(found.rejected) / found.sampled_clips
        text += f"; {len(found.rejected):,} rejected ({share:.1%}), and as many are taken off the whole"
    return text


def _speed(found: Estimate) -> str:
    return (
        f"{found.clips_per_sec:,.1f} clips/s, {found.audio_seconds_per_sec:,.0f} seconds of audio a second, "
        f"on {found.device}, {counted(found.workers, 'archive')} at a time"
    )


def _time_to_go(found: Estimate) -> str:
    text = f"about {lasting(3600 * found.hours_to_go)}"
    if found.download_bytes_per_sec is None:
        return text
    return (
        f"{text} at most: {lasting(3600 * found.encoding_hours)} of encoding and "
        f"{lasting(3600 * found.download_hours)} of downloading at {sized(found.download_bytes_per_sec)}/s, "
        "which go on at the same time where they can"
    )


def _more(entries: Sequence[object]) -> list[tuple[str, str]]:
    return [("  …", f"and {len(entries) - SHOWN_REASONS:,} more")] if len(entries) > SHOWN_REASONS else []
