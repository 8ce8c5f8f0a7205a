"""The summary page at the end of a flow run: its outcome, and the location of all files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from prefect import runtime

from musicgen_core import storage
from musicgen_core.errors import MusicgenError, advice_on, reason_of
from musicgen_core.escaping import markdown_block, markdown_code, markdown_link, markdown_text
from musicgen_core.generation.page import PAGE
from musicgen_core.generation.request import Rendered, adapters_of, folder_of, page_of
from musicgen_core.run_layout import (
    ADAPTERS,
    CONFIG,
    FINAL_ADAPTER,
    FINAL_MODEL,
    FULL_MODELS,
    LATEST,
    METRICS,
    SAMPLES,
    WANDB,
)
from musicgen_core.wording import counted, lasting, sized
from tasks.archives_log import reason_alone
from tasks.artifacts import Artifacts, markdown_table
from tasks.forms import form_link, in_form
from tasks.next_steps import Outcome, Step, as_comment
from tasks.progress import local_now
from tasks.served import file_link
from tasks.training_page import wandb_line

if TYPE_CHECKING:
    from upath import UPath

    from musicgen_core.data.shards import ShardReport
    from musicgen_core.evaluation.originality import Originality
    from musicgen_core.evaluation.request import Comparison, Evaluation
    from musicgen_core.exporting.export import Exported
    from musicgen_core.training.request import TrainResult
    from tasks.captioning import CaptionResult

MOST_ROWS = 50
_OTHER_FILES: dict[str, str] = {
    "final adapter": f"{ADAPTERS}/{FINAL_ADAPTER}.pt",
    "newest checkpoint": LATEST,
    "final full model": f"{FULL_MODELS}/{FINAL_MODEL}.pt",
    "all adapters": ADAPTERS,
    "all full models": FULL_MODELS,
    "metrics": METRICS,
    "settings": CONFIG,
    "sample clips": SAMPLES,
    "WandB's files": WANDB,
}
"""Files of a run directory that the summary lists, besides `MAIN_FILES`"""


def show_summary(
    artifacts: Artifacts,
    *sections: Callable[[], str],
    outcome: Callable[[], Outcome] = Outcome,
    listed: Collection[str] = (),
    again: str = "",
) -> None:
    """Show the summary page of the current flow run.

    Args:
        artifacts: artifacts of the run.
        sections: functions that return the sections; called in the background thread, as they list files.
        outcome: function that returns outputs and next steps, which `run --watch` reads from the page.
        listed: outputs that a section lists by other names than their whole paths, which aren't listed again.
        again: for a failed run, label of the last section, which explains how to run it again.
    """

    def page() -> str:
        name, found = markdown_text(runtime.flow_run.name), outcome()
        notice = f"**{markdown_text(in_form(found.notice))}**" if found.notice else ""
        shown = [section() for section in sections]
        unseen = [
            made
            for made in found.made
            if made.place not in listed and not any(_place(made.place) in section for section in shown)
        ]
        first = [*shown, notice] if again else [notice, *shown]  # the reason of a failure comes first
        parts = [f"# {name}", *first, outcome_section(replace(found, made=tuple(unseen)))]
        parts.append(_again_section(again) if again else "")
        return "\n\n".join(filter(None, [*parts, f"As of {local_now()}", as_comment(found)]))

    artifacts.markdown("summary", page, "The outcome, and the location of every file")


def estimated_section(rows: Sequence[tuple[str, str]]) -> str:
    cells = [(markdown_text(name.strip()), markdown_text(text)) for name, text in rows]
    return "\n\n".join(["## Estimate", markdown_table(("", ""), cells), "Nothing was written."])


def exported_section(exported: Exported) -> str:
    files = {name: size for name, size in exported.files.items() if name != "README.md"}
    rows = [(file_link(exported.directory / name), sized(size)) for name, size in files.items()]
    return f"## Exported\n\n{markdown_table(('file', 'size'), rows)}"


def tokenized_section(
    tokens: str, reports: Sequence[ShardReport], failed: Mapping[str, str], remarks: Iterable[str]
) -> str:
    clips, rejected = sum(report.clips for report in reports), sum(len(report.rejected) for report in reports)
    seconds = sum(report.audio_seconds for report in reports)
    counts = f"Archives: {len(reports):,}. Clips: {clips:,}, {lasting(seconds)} of audio. Rejected: {rejected:,}."
    places, target = [], storage.as_path(tokens)
    if rejected:
        places.append(("why clips were rejected", f"{markdown_code(target / 'ARCHIVE.json')}, under `rejected`"))
    if (target / WANDB).exists():
        places.append(("WandB's files", markdown_code(target / WANDB)))
    parts = ["## Tokenized", *_failed_archives(failed)]
    parts += [counts, _places(places) if places else "", wandb_line(target)]
    parts += [f"- {markdown_text(remark)}" for remark in remarks]
    return "\n\n".join(part for part in parts if part)


def _failed_archives(failed: Mapping[str, str]) -> list[str]:
    if not failed:
        return []
    reasons = [(path, reason_alone(path, reason)) for path, reason in list(failed.items())[:MOST_ROWS]]
    return [
        f"**{counted(len(failed), 'archive')} failed.**",
        "\n".join(f"- {markdown_code(path)}: {markdown_text(reason)}" for path, reason in reasons),
    ]


def captioned_section(result: CaptionResult) -> str:
    counts = (
        f"Archives: {result.archives:,}. New descriptions: {result.new:,}. Replaced: {result.replaced:,}. "
        f"Kept: {result.kept:,}. "
        f"Without one, as nothing is certain: {result.missing:,}. Rejected clips: {len(result.rejected):,}."
    )
    parts = ["## Captioned", *_failed_archives(result.failed), counts]
    parts += [f"- {markdown_text(text)}" for text in [*result.remarks, *result.rejected[:MOST_ROWS]]]
    return "\n\n".join(parts)


def trained_section(result: TrainResult) -> str:
    begun = f", resumed at step {result.resumed_from:,}" if result.resumed_from else ""
    ending = "" if result.ending == "trained" else f", {result.ending}"
    counts = f"Steps: {result.steps:,}, epochs: {result.epochs}{begun}{ending}."
    if result.best_loss is not None:
        counts += f" {result.best_name.capitalize()}: {result.best_loss:.4f} in epoch {result.best_epoch}."
    if result.first_loss is not None and result.last_loss is not None:
        counts += f" Training loss: {result.first_loss:.4f} in the first epoch, {result.last_loss:.4f} in the last."
    parts = ["## Trained", counts]
    run_dir = storage.as_path(result.run_dir)
    found = [(name, file_link(run_dir / file)) for name, file in _OTHER_FILES.items() if _is_there(run_dir / file)]
    parts.append(_places(found) if found else "")
    parts += [f"- {markdown_text(warning)}" for warning in result.warnings]
    if result.evaluation is not None:
        parts.append(evaluated_section(result.evaluation))
    return "\n\n".join(part for part in parts if part)


def failed_section(error: Exception) -> str:
    """Return the section on a failed run: the error and its advice."""
    parts = ["## Failed"]
    if isinstance(error, MusicgenError):
        found, next_step = markdown_text(in_form(error.found)), markdown_text(in_form(error.next_step))
        parts += [f"{found}.", f"**What to do.** {next_step}" if next_step else ""]
    elif advice := advice_on(error):
        parts += [f"{markdown_text(reason_of(error))}.", f"**What to do.** {advice}."]
    else:
        parts += [markdown_text(reason_of(error)), "This is probably a bug: the run's log has its traceback."]
    return "\n\n".join(part for part in parts if part)


def cancelled_section(message: str, again: str = "") -> str:
    """Return the section on a cancelled run, whose message may end with the command that continues it, `again`."""
    has_command = bool(again) and message.endswith(again)
    text = markdown_text(message[:1].upper() + message[1:].removesuffix(again))
    return f"## Cancelled\n\n{text}\n\n{markdown_block(again)}" if has_command else f"## Cancelled\n\n{text}."


def evaluated_section(evaluation: Evaluation) -> str:
    def row(name: str, one: Comparison) -> tuple[str, ...]:
        losses = (f"{one.base_loss:.4f}", f"{one.adapter_loss:.4f}", f"{one.difference:+.4f}")
        return name, *losses, f"{one.base_perplexity:.2f}", f"{one.adapter_perplexity:.2f}"

    header = ("", "base loss", "adapter loss", "change", "base perplexity", "adapter perplexity")
    rows = [row("all codebooks", evaluation.loss)]
    rows += [row(f"codebook {k}", one) for k, one in enumerate(evaluation.codebooks)]
    parts = ["## Is it better?", markdown_text(evaluation.sentence()), markdown_table(header, rows)]
    if (music := evaluation.music) is not None:
        scores = [
            ("CLAP score", f"{music.base_clap_score:.4f}", f"{music.adapter_clap_score:.4f}"),
            ("Fréchet audio distance", f"{music.base_frechet_distance:.4f}", f"{music.adapter_frechet_distance:.4f}"),
        ]
        parts.append(
            markdown_table((f"of {counted(music.clips, 'sample')} each", "base model", "with adapter"), scores)
        )
    if (originality := evaluation.originality) is not None:
        parts += _originality(originality)
    parts += [f"- {markdown_text(remark)}" for remark in evaluation.remarks]
    return "\n\n".join(parts)


def _originality(found: Originality) -> list[str]:
    columns = (found.held_out, found.base, found.adapter)
    rows = [
        ("n-grams in training clips", *(f"{one.shared:.2%}" for one in columns)),
        ("longest run (s)", *(f"{one.longest_seconds:.2f}" for one in columns)),
        ("repetition", *(f"{one.repeated:.2%}" for one in columns)),
    ]
    if (distances := found.distances) is not None:
        values = (distances.held_out, distances.base, distances.adapter)
        rows.append(("Fréchet distance", *("–" if value is None else f"{value:.2f}" for value in values)))
    header = (f"of {counted(found.adapter.samples, 'sample')}", "held-out clips", "base model", "with adapter")
    parts = ["### Does it copy?", markdown_text(found.sentence()), markdown_table(header, rows)]
    if found.adapter.nearest is not None:
        parts.append(markdown_text(f"Nearest: {found.adapter.nearest.sentence()}"))
    return parts


def outcome_section(outcome: Outcome) -> str:
    """Return the section of outputs with their locations, and of next steps: prefilled forms, or commands."""
    parts = []
    if outcome.made:
        lines = [f"- {markdown_text(made.thing)}:  \n  {_place(made.place)}" for made in outcome.made]
        parts += ["## What was made", "\n".join(lines)]
    if outcome.steps:
        parts += ["## What next", *map(_step, outcome.steps)]
    return "\n\n".join(parts)


def _again_section(task: str) -> str:
    way = "run the command again, with the same parameters or others."
    if runtime.deployment.id:  # without a deployment, the page of the run lacks these buttons
        page = f"/runs/flow-run/{runtime.flow_run.root_flow_run_id}"
        way = (
            f"press *Retry* on [the page of the run]({page}) once its cause is fixed, or *Copy to new run* there to "
            "change the parameters."
        )
    return f"## What next\n\n**{task}:** {way}"


def _place(place: str) -> str:
    return markdown_link(place, place) if place.startswith(("http://", "https://")) else file_link(place)


def _step(step: Step) -> str:
    text = markdown_text(step.text)
    if step.deployment and (link := form_link(step.deployment, step.parameters)):
        return f"**{text}:** [open the form, filled in]({link})"
    return f"**{text}**, in a terminal:\n\n{markdown_block(step.command_line())}"


def _is_there(path: UPath) -> bool:
    """Return whether a path is a file or a folder that is not empty."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def rendered_section(pieces: Sequence[Rendered], names_adapter: bool = True) -> str:
    """Return the section on generated music. The summary of `finetune` names the adapter elsewhere."""
    folder, page = folder_of(pieces), page_of(pieces)
    rows = [
        (
            file_link(piece.wav, PurePosixPath(piece.wav).name),
            f"{piece.seconds:.1f}",
            piece.voice,
            markdown_text(piece.title),
        )
        for piece in pieces[:MOST_ROWS]
    ]
    more = len(pieces) - len(rows)
    parts = [
        "## Music",
        _players(pieces) if names_adapter else "",
        f"In {file_link(folder)}: {file_link(page, PAGE)} plays all of them side by side. "
        "Beside each wav lies a `.json` with its prompt, seed and settings.",
        markdown_table(("file", "seconds", "played by", "prompt"), rows),
        f"and {more:,} more in the same folder" if more else "",
    ]
    return "\n\n".join(part for part in parts if part)


def rendered_files(pieces: Sequence[Rendered]) -> list[str]:
    """Return the outputs that `rendered_section` lists."""
    return [page_of(pieces), *(piece.wav for piece in pieces)]


def _players(pieces: Sequence[Rendered]) -> str:
    adapters, is_compared = adapters_of(pieces), not all(piece.with_adapter for piece in pieces)
    if not adapters:
        return "Played by the base model." if is_compared else ""
    named = f"adapter{'s' if len(adapters) > 1 else ''} {', '.join(map(file_link, adapters))}"
    return f"Played by the {named}{' and by the base model' if is_compared else ''}."


def _places(rows: Sequence[tuple[str, str]]) -> str:
    return markdown_table(("what", "where"), rows)
