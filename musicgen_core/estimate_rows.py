"""An estimate in words: tokenizing as it was measured, and training at speeds that were measured before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from musicgen_core.config import DEFAULT_MODEL, TrainSettings
from musicgen_core.data.dataset import ENOUGH_CLIPS
from musicgen_core.wording import counted, lasting, sized

if TYPE_CHECKING:
    from musicgen_core.estimate import Estimate

SHOWN_REASONS = 3

SPEEDS = {"NVIDIA H200": 720.0, "NVIDIA H100 80GB HBM3": 703.0}
"""Seconds of audio that one GPU trains on in a second: musicgen-large, bf16, clips of 30 s (bench/RESULTS.md)"""
_MEASURE_YOURS = "train with --max-steps 20 logs its seconds of audio per second (audio-s/s)"


def rows_of(
    found: Estimate, model: str, hourly_price: float | None, left_out: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Return names and values of a table.

    Args:
        model: the base model that is to be trained.
        hourly_price: of this machine; None: no cost is shown.
        left_out: why archives will not be read.
    """
    return [*estimated_rows(found, hourly_price, left_out), *training_rows(found, model, hourly_price)]


def estimated_rows(found: Estimate, hourly_price: float | None, left_out: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the rows on tokenizing."""
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


def training_rows(found: Estimate, model: str, hourly_price: float | None) -> list[tuple[str, str]]:
    """Return the rows on training with default settings, on one GPU; a price only of a GPU whose speed was measured."""
    epochs = TrainSettings.model_fields["num_epochs"].default
    seconds = epochs * found.epoch_seconds
    work = f"{counted(epochs, 'epoch')} of {lasting(found.epoch_seconds)} of audio"
    if model != DEFAULT_MODEL:
        rows = [("training", f"{work}; the speed of {model} has not been measured: {_MEASURE_YOURS}")]
    elif (gpu := found.gpu if found.gpu in SPEEDS else None) is None:
        known, speed = next(iter(SPEEDS.items()))
        text = f"{work}: about {lasting(seconds / speed)} on an {_short(known)}; {found.gpu or 'a CPU'}"
        rows = [("training", f"{text} has not been measured: {_MEASURE_YOURS}")]
    else:
        speed = SPEEDS[gpu]
        text = f"{work}: about {lasting(seconds / speed)} at {speed:,.0f} seconds of audio a second, "
        text += f"measured on an {_short(gpu)}"
        rows = [("training", text)]
        if hourly_price is not None:
            price = seconds / speed / 3600 * hourly_price
            rows.append(("cost of training", f"about {price:,.2f} at {hourly_price:,.2f} an hour"))
    if found.clips < ENOUGH_CLIPS:
        rows.append(("note", f"fewer than {ENOUGH_CLIPS} clips: too few are held out to judge an adapter by"))
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


def _short(gpu: str) -> str:
    return gpu.removeprefix("NVIDIA ")
