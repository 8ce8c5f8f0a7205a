"""How long training will take after tokenizing, and at what price: from speeds that were measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from musicgen_core.config import DEFAULT_MODEL, TrainSettings
from musicgen_core.data.dataset import ENOUGH_CLIPS
from musicgen_core.wording import counted, lasting

if TYPE_CHECKING:
    from musicgen_core.estimate import Estimate

SPEEDS = {"NVIDIA H200": 720.0, "NVIDIA H100 80GB HBM3": 703.0}
"""Seconds of audio that one GPU trains on in a second: musicgen-large, bf16, clips of 30 s (bench/RESULTS.md)"""
_MEASURE_YOURS = "train with --max-steps 20 logs its seconds of audio per second (audio-s/s)"


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


def _short(gpu: str) -> str:
    return gpu.removeprefix("NVIDIA ")
