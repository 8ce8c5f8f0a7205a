"""Outcomes of the flows and commands: their outputs and next steps."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicgen_core import storage
from musicgen_core.config import DEFAULT_PROMPTS
from musicgen_core.errors import MetadataError, TokensError
from musicgen_core.escaping import one_line
from musicgen_core.generation.page import PAGE
from musicgen_core.language import as_message, message
from musicgen_core.model.weighted_adapters import WeightedAdapter, parse_adapters, split_adapters, with_effect
from musicgen_core.run_layout import (
    ADAPTERS,
    BEST_ADAPTER,
    BEST_MODEL,
    FULL_MODELS,
    LOSS_PLOT,
    SAMPLES,
    WANDB,
    find_config,
    run_of,
)
from musicgen_core.tracking import stored_url, sync_command
from tasks.next_steps import Made, Outcome, Step

if TYPE_CHECKING:
    from upath import UPath

    from musicgen_core.evaluation.request import Evaluation
    from musicgen_core.generation.request import Rendered
    from musicgen_core.model.hub_upload import Pushed
    from musicgen_core.training.request import TrainResult

DESCRIBE = message(
    "Describe them by their audio first with uv run musicgen-flows caption. Or put a metadata.jsonl with lines such as "
    '{"path": "track1.wav", "description": "calm piano, 80 bpm"} beside the archives, a track1.txt beside each '
    "track1.wav in them, or give one for all of them with --caption. Tokenizing "
    "again then encodes nothing twice"
)
"""Advice on how to add descriptions to clips"""
_DESCRIPTIONS = message("descriptions, to look through and correct")
_CONTROL = (
    *("negative_prompt", "tempo", "key", "instruments", "sections", "best_of"),
    *("loop", "redo", "seam_candidates"),
)
"""Parameters of control"""
_OWN_MUSIC = message("Teach the model your own music: put zips of sound files into archives/, and tokenize them")
MAIN_FILES: dict[str, str] = {
    message("best adapter"): f"{ADAPTERS}/{BEST_ADAPTER}.pt",
    message("best full model"): f"{FULL_MODELS}/{BEST_MODEL}.pt",
    message("loss curve"): LOSS_PLOT,
    message("samples of every epoch, to play"): f"{SAMPLES}/{PAGE}",
}
"""The files of a run directory that are listed as its outputs"""
MOST_SHARDS = 4
"""Shards to search for a prompt in the user's own words"""
MOST_PIECES, MOST_PROMPTS = 8, 4
"""Maximum numbers of pieces to list, and of prompts to repeat in a command; prompts are no longer than a label"""


def no_descriptions(clips: str) -> str:
    """Return the notice that clips lack descriptions, and the fix. `clips`: such as `none of the 8 clips in a.zip`."""
    text = message(
        "{clips} has a description, so that an adapter trained on them learns nothing of words. {advice}",
        clips=clips,
        advice=DESCRIBE,
    )
    return as_message(text[:1].upper() + text[1:], text.msgid, text.values)


def missing_descriptions(archives: Sequence[UPath]) -> str:
    """Return the notice that archives have no usable descriptions, with the reason; else an empty string."""
    from musicgen_core.config import TokenizeSettings
    from musicgen_core.data.captions import Captioner, load_captions, metadata_beside
    from musicgen_core.data.match_report import undescribed_clips

    metadata = metadata_beside(archives[0])
    try:
        captions = load_captions(metadata) if metadata else None
    except MetadataError as error:
        return message("{found}. {next_step}", found=error.found, next_step=error.next_step)
    undescribed = undescribed_clips(archives, Captioner(TokenizeSettings(), captions))
    return no_descriptions(undescribed) if undescribed else ""


def tokenized(
    tokens: str, shards: int, on: Mapping[str, Any], notice: str = "", failed: int = 0, page: str = ""
) -> Outcome:
    """Return the outcome of tokenizing into so many shards with clips. The next step is training, if there are any.

    If archives failed there is no next step.

    Here and below, `on` are the parameters that the run was given, and `page` the page of the clips, if there is one.
    """
    if not shards:
        return Outcome(notice=notice)
    place = _absolute(tokens)
    made = (Made(message("tokens"), str(place)), *_page_of_clips(page))
    if failed:
        return Outcome(made, notice=notice)
    run_dir = _free(place.parent / "runs" / "run")
    train = Step(
        message("Train an adapter on them"), "train", {"tokens": str(place), **_kept(on, "model")}, {"run_dir": run_dir}
    )
    return Outcome(made, (train,), notice)


def captioned(metadata: str, archives: str, failed: int = 0, page: str = "", clips: int = 1) -> Outcome:
    """Return the outcome of captioning so many clips. The next step is tokenizing, unless archives failed."""
    if not clips:
        return Outcome(notice=message("The archives hold no clips that can be used"))
    made = (Made(_DESCRIPTIONS, metadata), *_page_of_clips(page))
    if failed:
        return Outcome(made)
    given = {} if storage.as_path(metadata) == metadata_of(archives) else {"metadata": metadata}
    places = {"tokens": _tokens_beside(_absolute(archives))}
    step = Step(
        message("Look through the descriptions, then tokenize"), "tokenize", {"archives": archives, **given}, places
    )
    return Outcome(made, (step,))


def _page_of_clips(page: str) -> tuple[Made, ...]:
    return (Made(message("clips, labels and what stands out, to look at and play"), page),) if page else ()


def _tokens_beside(archives: UPath) -> str:
    """Return a location for the tokens beside the folder of the archives, or here if that can't be written."""
    folder = (archives if archives.is_dir() else archives.parent).parent
    if storage.is_local(folder) and not os.access(str(folder), os.W_OK):
        folder = _absolute(".")
    return str(folder / "tokens")


def metadata_of(archives: str) -> UPath:
    """Return the location of `metadata.jsonl` beside the archives of a location: a folder, a file or a pattern."""
    from musicgen_core.data.captions import METADATA

    path = storage.as_path(archives)
    return (path if path.is_dir() else path.parent).absolute() / METADATA


def trained(result: TrainResult, on: Mapping[str, Any]) -> Outcome:
    """Return the outcome of a training run. Next steps: generate music, and evaluate unless that is done already."""
    run_dir = _absolute(result.run_dir)
    found = [(name, run_dir / file) for name, file in MAIN_FILES.items()]
    made = [
        Made(message("run directory"), str(run_dir)),
        *(Made(name, str(path)) for name, path in found if path.exists()),
    ]
    made += _wandb(run_dir, result.wandb_url)
    adapter = {"adapter": str(run_dir)}
    listen = Step(
        message("Make music with the adapter, and with the base model to compare"),
        "generate",
        {**adapter, "compare": True, "prompts": _prompts(on.get("sample_prompts"), _tokens_of(run_dir)), **_kept(on)},
        {"output": _free(_home(run_dir) / "music" / run_dir.name)},
    )
    if result.evaluation is None:
        return Outcome(tuple(made), (listen,))
    export = _export([WeightedAdapter(str(run_dir))])
    return Outcome((*made, Made(message("report"), result.evaluation.report)), (listen, export))


def own_prompts(tokens: str) -> list[str]:
    """Return the most frequent description in the first shards as a prompt, or a default prompt."""
    from musicgen_core.data.shards import described_clips

    found: Counter[str] = Counter()
    folder = storage.as_path(tokens)
    shards = sorted(folder.glob("*.parquet")) if tokens and storage.is_local(folder) and folder.is_dir() else []
    for shard in shards[:MOST_SHARDS]:
        with suppress(TokensError):  # a damaged file, or not a shard
            found.update(text for _, text in described_clips(folder, shard.stem) if text)
    prompts = [text for text, _ in found.most_common() if one_line(text) == text]
    return prompts[:1] or list(DEFAULT_PROMPTS[:1])


def _prompts(given: Sequence[str] | None, tokens: str) -> list[str]:
    """Return the first prompt given to a run, which its next command repeats; without one, see `own_prompts`."""
    return [text for text in given or () if text.strip() and one_line(text) == text][:1] or own_prompts(tokens)


def _tokens_of(run_dir: UPath) -> str:
    """Return the location of a run's shards; an empty string if its config.json does not name it."""
    config = find_config(run_dir)
    return config.tokens if config is not None else ""


def evaluated(evaluation: Evaluation, adapter: str, on: Mapping[str, Any]) -> Outcome:
    """Return the outcome of an evaluation."""
    adapters = parse_adapters(split_adapters(adapter))
    place = _absolute(adapters[0].source) if _is_here(adapters[0].source) else None
    listen = Step(
        message("Hear both models"),
        "generate",
        {
            "adapter": _located(adapters),
            "compare": True,
            "prompts": _prompts(on.get("prompts"), evaluation.tokens),
            **_kept(on, "model"),
        },
        {"output": _free((_home(place) if place else _absolute(evaluation.report).parent) / "music" / "comparison")},
    )
    return Outcome((Made(message("report"), evaluation.report),), (listen,))


def rendered(pieces: Sequence[Rendered], given: Mapping[str, Any]) -> Outcome:
    """Return the outcome of generating. Next steps: other takes of the prompts, exporting or training an adapter."""
    from musicgen_core.generation.request import page_of
    from musicgen_core.model.peft_directory import CONFIG_FILE

    made = [Made(message("all music, to play"), page_of(pieces))]
    for piece in pieces[:MOST_PIECES]:
        named = {"seconds": piece.seconds, "voice": piece.voice, "title": piece.title}
        made.append(Made(message("{seconds:g} s, {voice}: {title}", **named), piece.wav))
    adapters = parse_adapters(split_adapters(given.get("adapter")))
    own = {(one.adapters, one.strengths) for one in pieces if one.with_adapter or not given.get("compare")}
    if not adapters and len(own) == 1:  # of the prompts, or of the last training run
        [(sources, strengths)] = own
        adapters = tuple(WeightedAdapter(*one) for one in zip(sources, strengths, strict=True))
    # Sections are added to the prompts as they were given.
    texts = [one.prompt for one in (given["prompts"] if given.get("sections") else pieces)]
    prompts = [text for text in dict.fromkeys(texts) if text and one_line(text) == text]
    again = _kept(given, "adapter", "model", "compare", "strengths", "duration", "separate_melody", *_CONTROL)
    again |= {name: str(_absolute(file)) for name in ("continue_from", "melody") if (file := given.get(name))}
    if adapters:
        again["adapter"] = _located(adapters)
    takes = {
        **({"prompts": prompts[:MOST_PROMPTS]} if prompts else {}),
        **again,
        "seed": int(given.get("seed") or 0) + 1,
    }
    folder = str(storage.as_path(pieces[0].wav).parent)
    steps = [Step(message("Other takes of the same prompts"), "generate", takes, {"output": folder})]
    is_one_command = len(own) == 1 or adapters
    steps = steps if is_one_command and (prompts or given.get("sections")) else []
    here = all(_is_here(one.source) for one in adapters)
    is_export = here and len(adapters) == 1 and (_absolute(adapters[0].source) / CONFIG_FILE).exists()
    if with_effect(adapters) and here and not is_export:
        steps.append(_export(adapters, given.get("model")))
    is_own = any(piece.with_adapter for piece in pieces) or bool(given.get("model") and _is_here(given["model"]))
    if not is_own:  # a local model directory may be the result of training
        steps.append(
            Step(_OWN_MUSIC, "tokenize", _kept(given, "model"), {"archives": "archives/", "tokens": "tokens/"})
        )
    return Outcome(tuple(made), tuple(steps))


def finetuned(
    tokens: str,
    shards: int,
    result: TrainResult,
    pieces: Sequence[Rendered],
    on: Mapping[str, Any],
    notice: str = "",
    new_captions: str = "",
    page: str = "",
) -> Outcome:
    """Return the outputs of all parts, with the next steps of generating.

    Args:
        new_captions: the metadata file, if the run wrote descriptions.
    """
    rendering = {"adapter": result.run_dir, "duration": on.get("duration"), "device": on.get("device")}
    described = Outcome((Made(_DESCRIPTIONS, new_captions),) if new_captions else ())
    return (
        described + tokenized(tokens, shards, on, notice, page=page) + trained(result, on) + rendered(pieces, rendering)
    )


def exported(directory: str, kind: str, on: Mapping[str, Any], pushed: Pushed | None = None) -> Outcome:
    """Return the outcome of an export to a directory, and to a repository of the Hub; `kind`: see `ExportKind`."""
    place, adapters = _absolute(directory), parse_adapters(split_adapters(on.get("adapter")))
    here = _absolute(adapters[0].source) if adapters and _is_here(adapters[0].source) else None
    tokens = _tokens_of(run_of(here) or here) if here else ""
    made: tuple[Made, ...] = (
        Made(message("export for {program}", program=kind), str(place)),
        Made(message("how to load it"), str(place / "README.md")),
    )
    notice = ""
    if pushed is not None:
        seen = message("on the Hub, private") if pushed.is_private else message("on the Hub, public")
        made = (*made, Made(seen, pushed.url))
        if on.get("public") and pushed.is_private:
            notice = message("{repo} existed and stays private; its settings on the Hub change that", repo=pushed.repo)
    source = "adapter" if kind == "peft" else "model"
    listen = Step(
        message("Make music with it here, too"),
        "generate",
        {source: str(place), "prompts": own_prompts(tokens), **_kept(on, *(["model"] if kind == "peft" else []))},
        {"output": _free(place.parent / "music")},
    )
    return Outcome(made, (listen,), notice)


def estimated(
    archives: str, on: Mapping[str, Any], is_undescribed: bool = False, unreadable: int = 0, notice: str = ""
) -> Outcome:
    """Return the outcome of an estimate. The next step is to tokenize, or to describe the clips if none is described.

    Archives that can't be read are to be repaired before.
    """
    place = _absolute(archives)
    places = {"tokens": _tokens_beside(place)}  # existing shards are kept
    if is_undescribed:
        text = message("Describe the clips by their audio")
        if unreadable:
            text = message("Repair what can't be read, as is said above, or move it away; then describe the clips")
        given = {"archives": str(place), "metadata": str(metadata_of(archives)), **_kept(on)}
        return Outcome((), (Step(text, "caption", given),), notice)
    text = message("Tokenize them")
    if unreadable:
        text = message("Repair what can't be read, as is said above, or move it away; then tokenize")
    return Outcome((), (Step(text, "tokenize", {"archives": str(place), **_kept(on, "model")}, places),), notice)


def _export(adapters: Sequence[WeightedAdapter], model: str | None = None) -> Step:
    kind, text = "peft", message("Share the adapter, as a directory that Hugging Face's peft loads")
    if any(_trains_all(one.source) for one in adapters):
        kind, text = "audiocraft", message("Share the model, as a directory that audiocraft loads")
    elif len(adapters) > 1:
        text = message("Share the mix as one adapter, a directory that Hugging Face's peft loads")
    first = _absolute(adapters[0].source)
    out = _free(_home(first) / "shared" / "-".join(_absolute(one.source).stem for one in adapters))
    given = {"adapter": _located(adapters), "out": out, "format": kind}
    return Step(text, "export", given | ({"model": model} if model else {}))


def _trains_all(adapter: str) -> bool:
    """Return whether an adapter's location is that of a run that trained all weights."""
    path = storage.as_path(adapter)
    config = find_config(run_of(path) or path) if _is_here(adapter) else None
    return config is not None and config.trains_all


def _kept(given: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the parameters that the next command takes over from the last one: those named, and the device.

    Defaults stay defaults. After an export, which has no device, it is the next machine's default.
    """
    return {name: given[name] for name in (*names, "device") if given.get(name) and given[name] != "auto"}


def _absolute(location: str) -> UPath:
    path = storage.as_path(location).absolute()  # the command may be run from another directory
    return path.resolve() if ".." in path.parts else path


def _located(adapters: Sequence[WeightedAdapter]) -> str | list[str]:
    """Return the texts of adapters, with absolute paths; a single one as the text that it is in every form."""
    found = [str(replace(one, source=str(_absolute(one.source))) if _is_here(one.source) else one) for one in adapters]
    return found[0] if len(found) == 1 else found


def _is_here(location: str) -> bool:
    """Return whether an adapter is a local path; it may also be a URL, or a name on the Hub."""
    return "://" not in location and Path(location).exists()


def _home(adapter: UPath) -> UPath:
    """Return the parent folder for outputs made with an adapter: that of `runs`, or that of the adapter."""
    run = run_of(adapter) or adapter
    return run.parent.parent if run.parent.name == "runs" else run.parent


def _free(wanted: UPath) -> str:
    """Return a path that does not exist yet: `music/first`, or `music/first-2`."""
    found, number = wanted, 1
    while storage.is_local(found) and found.exists():
        number += 1
        found = wanted.with_name(f"{wanted.name}-{number}")
    return str(found)


def _wandb(run_dir: UPath, url: str | None) -> list[Made]:
    if url := url or stored_url(run_dir):
        return [Made(message("WandB run"), url)]
    if (run_dir / WANDB).exists():
        return [Made(message("WandB runs offline. To upload it later"), sync_command(run_dir / WANDB))]
    return []
