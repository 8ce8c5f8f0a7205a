"""The table of an estimate: its rows on captioning, tokenizing and training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from musicgen_core.config import DEFAULT_MODEL, Trained, TrainSettings
from musicgen_core.data.dataset import ENOUGH_CLIPS
from musicgen_core.errors import ModelError
from musicgen_core.estimate import Estimate
from musicgen_core.language import message, stored_message
from musicgen_core.model.model_size import measure_model
from musicgen_core.training.memory import checkpoint_bytes, ways
from musicgen_core.wording import counted, joined, lasting, sized

SHOWN_REASONS = 3

SPEEDS = {"NVIDIA H200": 720.0, "NVIDIA H100 80GB HBM3": 703.0}
"""Training throughput of one GPU in audio seconds/s: musicgen-large, bf16, 30 s clips (bench/RESULTS.md)"""
_MEASURE_YOURS = message("train with --max-steps 20 logs its seconds of audio per second (audio-s/s)")


def rows_of(
    found: Estimate,
    model: str,
    hourly_price: float | None,
    left_out: Sequence[str] = (),
    trained: Trained = "lora",
) -> list[tuple[str, str]]:
    """Return the rows of a table as (name, value).

    Args:
        model: the base model to train.
        hourly_price: price of this machine per hour; None: no cost is shown.
        left_out: reasons why some archives are left out.
        trained: what is to be trained, an adapter or all weights.
    """
    return [*estimated_rows(found, hourly_price, left_out), *training_rows(found, model, hourly_price, trained)]


def estimated_rows(found: Estimate, hourly_price: float | None, left_out: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the rows on tokenizing."""
    of_clips = {"clips": found.clips, "time": lasting(found.audio_seconds)}
    if found.is_exact:
        clips = message("{clips:,}, about {time} of audio", **of_clips)
    else:
        clips = message("about {clips:,}, about {time} of audio", **of_clips)
    rows: list[tuple[str, str]] = [
        (message("archives"), f"{found.archives:,}, {sized(found.archive_bytes)}"),
        *((message("  can't be read"), stored_message(reason)) for reason in found.unreadable[:SHOWN_REASONS]),
        *_more(found.unreadable),
        *((message("  left out"), remark) for remark in left_out[:SHOWN_REASONS]),
        *_more(left_out),
        (message("clips"), clips),
        (message("measured on"), _sample(found)),
        *((f"  {entry.clip}", stored_message(entry.reason)) for entry in found.rejected[:SHOWN_REASONS]),
        *_more(found.rejected),
        (message("speed"), _speed(found)),
        (message("time to go"), _time_to_go(found)),
        *_captioning(found),
        (message("disk"), message("about {size} of tokens", size=sized(found.tokens_bytes))),
    ]
    if found.scratch_bytes:
        at_once = counted(found.workers, "archive")
        scratch = message(
            "{size}, for {archives} downloaded at a time", size=sized(found.scratch_bytes), archives=at_once
        )
        rows.append((message("scratch disk"), scratch))
    if hourly_price is not None:
        rows.append((message("cost"), _cost(found.cost(hourly_price), hourly_price)))
    return rows


def _cost(cost: float, hourly_price: float) -> str:
    return message("about {cost:,.2f} at {price:,.2f} an hour", cost=cost, price=hourly_price)


def training_rows(
    found: Estimate, model: str, hourly_price: float | None, trained: Trained = "lora"
) -> list[tuple[str, str]]:
    """Return the rows on training with default settings on one GPU; the cost only for GPUs of known speed."""
    epochs = TrainSettings.model_fields["num_epochs"].default
    seconds = epochs * found.epoch_seconds
    work = message("{epochs} of {time} of audio", epochs=counted(epochs, "epoch"), time=lasting(found.epoch_seconds))
    gpu = found.gpu if found.gpu in SPEEDS and model == DEFAULT_MODEL and trained == "lora" else None
    if trained == "all":
        text = message(
            "{work}; the speed of training all weights has not been measured: {advice}",
            work=work,
            advice=_MEASURE_YOURS,
        )
    elif model != DEFAULT_MODEL:
        text = message(
            "{work}; the speed of {model} has not been measured: {advice}",
            work=work,
            model=model,
            advice=_MEASURE_YOURS,
        )
    elif gpu is None:
        known, speed = next(iter(SPEEDS.items()))
        text = message(
            "{work}: about {time} on an {known}; {device} has not been measured: {advice}",
            work=work,
            time=lasting(seconds / speed),
            known=known.removeprefix("NVIDIA "),
            device=found.gpu or message("a CPU"),
            advice=_MEASURE_YOURS,
        )
    else:
        text = message(
            "{work}: about {time} at {speed:,.0f} seconds of audio a second, measured on an {gpu}",
            work=work,
            time=lasting(seconds / SPEEDS[gpu]),
            speed=SPEEDS[gpu],
            gpu=gpu.removeprefix("NVIDIA "),
        )
    rows: list[tuple[str, str]] = [(message("training"), text), *(_full_training(model) if trained == "all" else ())]
    if gpu and hourly_price is not None:
        rows.append((message("cost of training"), _cost(seconds / SPEEDS[gpu] / 3600 * hourly_price, hourly_price)))
    if found.clips < ENOUGH_CLIPS:
        few = message("fewer than {enough} clips: too few are held out to judge an adapter by", enough=ENOUGH_CLIPS)
        rows.append((message("note"), few))
    return rows


def _full_training(model: str) -> Iterator[tuple[str, str]]:
    """Yield rows on memory and disk space of training all weights, if the size of the model is known."""
    try:
        size = measure_model(model)
    except ModelError:
        return
    several = (message("{gib:.1f} GiB ({options})", gib=way.gib, options=way.options) for way in ways(size))
    yield message("memory of each GPU"), message("about {ways}", ways=joined(several))
    sizes = {"checkpoint": sized(checkpoint_bytes(size)), "small": sized(checkpoint_bytes(size, "adamw8bit"))}
    text = message(
        "{checkpoint} a checkpoint ({small} with --optimizer adamw8bit), {model} a full model",
        **sizes,
        model=sized(size.file_bytes),
    )
    yield message("disk of training"), text


def _sample(found: Estimate) -> str:
    clips, archives = counted(found.sampled_clips, "clip"), counted(found.sampled_archives, "archive")
    text = message("{clips} of {archives}", clips=clips, archives=archives)
    if found.sampled_clips < found.asked_clips:
        text = message("{sample}, which have no more (asked for: {asked:,})", sample=text, asked=found.asked_clips)
    if found.rejected:
        text = message(
            "{sample}; {number:,} rejected ({share:.1%}), and as many are taken off the whole",
            sample=text,
            number=len(found.rejected),
            share=len(found.rejected) / found.sampled_clips,
        )
    return text


def _speed(found: Estimate) -> str:
    return message(
        "{clips:,.1f} clips/s, {seconds:,.0f} seconds of audio a second, on {device}, {archives} at a time",
        clips=found.clips_per_sec,
        seconds=found.audio_seconds_per_sec,
        device=found.device,
        archives=counted(found.workers, "archive"),
    )


def _time_to_go(found: Estimate) -> str:
    time = lasting(3600 * found.hours_to_go)
    if found.download_bytes_per_sec is None:
        return message("about {time}, plus start-up (loading, compiling)", time=time)
    return message(
        "about {time} at most, plus start-up (loading, compiling): {encoding} of encoding and {downloading} of "
        "downloading at {speed}/s, which run at the same time where they can",
        time=time,
        encoding=lasting(3600 * found.encoding_hours),
        downloading=lasting(3600 * found.download_hours),
        speed=sized(found.download_bytes_per_sec),
    )


def _captioning(found: Estimate) -> list[tuple[str, str]]:
    if not found.captioned_seconds_per_sec:
        return []
    text = message(
        "about {time} of it: clips have no description, and are described by their audio first, {seconds:,.0f} seconds "
        "of audio a second",
        time=lasting(3600 * found.captioning_hours),
        seconds=found.captioned_seconds_per_sec,
    )
    return [(message("captioning"), text)]


def _more(entries: Sequence[object]) -> list[tuple[str, str]]:
    return [("  …", message("and {number:,} more", number=more))] if (more := len(entries) - SHOWN_REASONS) > 0 else []
