"""The prompts on the page of a folder of music, each with its samples side by side.

Samples of one prompt with the same adapters at several strengths form a grid: a column for each strength, the base
model at 0, and a row for each variation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from musicgen_core.generation.player import PlayedSample, comparison, voted_sample
from musicgen_core.generation.sidecars import Sidecar, adapter_entries, best_of, candidate_of, number_of, strength_of
from musicgen_core.language import message, say, translated
from musicgen_core.model.weighted_adapters import shown_strength
from musicgen_core.run_layout import short_name
from musicgen_core.settings import LONGEST_SECONDS
from musicgen_core.wording import counted

ONE_PART_SECONDS = 30
"""Up to this length a piece is made without overlapping parts"""
_SAMPLING = {
    "overlap": message("overlap"),
    "greedy": message("greedy"),
    "temperature": message("temperature"),
    "guidance": message("guidance"),
}
"""Names of sampling settings that each language has its own word for"""
_OF_ROW = (
    "prompt",
    "seed",
    "variation",
    "negative_prompt",
    "sections",
    "duration",
    "continued_from",
    "redo",
    "melody",
    "melody_separator",
    "model",
    "sampling",
    "weight_bits",
    "cache_bits",
)
Piece = tuple[str, Sidecar]
Column = tuple[tuple[str, float], ...]
"""Hashes of adapters with their strengths, sorted; none: the base model"""


@dataclass(frozen=True)
class Version:
    """One way in which a prompt was rendered."""

    stem: str
    label: str
    facts: list[str]
    links: dict[str, str]
    """Relative URLs of its existing files, by ending."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt and everything rendered from it with one seed.

    Attributes:
        rows: one row that wraps, or the rows of a grid, in which None stands for a sample that is missing.
        is_grid: whether the columns are strengths of adapters.
        comparisons: of samples that differ in their adapters alone, for `player.js`.
    """

    text: str
    rows: Sequence[Sequence[Version | None]]
    is_grid: bool = False
    comparisons: Sequence[Mapping[str, Any]] = ()

    @property
    def count(self) -> int:
        return sum(version is not None for row in self.rows for version in row)


def prompt_rows(pieces: Sequence[Piece], common: Mapping[str, Any], files: set[str]) -> list[PromptRow]:
    """Return a row for each prompt and seed, in the order of their first samples.

    Args:
        pieces: stems and sidecars.
        common: sampling settings that are shown elsewhere.
        files: names of the files in the folder.
    """
    groups: dict[tuple[str, str], list[Piece]] = {}
    for stem, sidecar in pieces:
        key = (str(sidecar.get("prompt") or ""), str(sidecar.get("seed")))
        groups.setdefault(key, []).append((stem, sidecar))
    adapters = {(*_family(_column(sidecar)), *adapter_names(sidecar)) for _, sidecar in pieces}
    many_adapters = len(adapters - {()}) > 1  # labels name the adapter
    columns = _columns(group for group in groups.values() if _is_grid(group))
    prompts = []
    for (text, _), members in groups.items():
        varied = len({str(sidecar.get("variation")) for _, sidecar in members}) > 1
        is_grid = _is_grid(members)

        def version(piece: Piece, in_grid: bool = is_grid, varied: bool = varied) -> Version:
            stem, sidecar = piece
            label = _label(sidecar, varied, many_adapters, in_grid)
            return Version(stem, label, _facts(sidecar, common), links(stem, files))

        rows = _grid(members)
        compared = [found for row in rows if (found := _comparison(map(version, row.values()), row.values()))]
        if not is_grid:
            prompts.append(PromptRow(text, [[version(piece) for piece in members]], comparisons=compared))
            continue
        families = {_family(_column(sidecar)) for _, sidecar in members}
        own = [column for column in columns if _family(column) in {*families, ()}]
        cells = [[piece and version(piece) for piece in map(row.get, own)] for row in rows]
        prompts.append(PromptRow(text, cells, is_grid=True, comparisons=compared))
    return prompts


def _column(sidecar: Sidecar) -> Column:
    entries = adapter_entries(sidecar)
    return tuple(sorted((str(one.get("sha256") or one.get("path")), strength_of(one)) for one in entries))


def _family(column: Column) -> tuple[str, ...]:
    """Return the adapters of a column, whatever their strengths."""
    return tuple(adapter for adapter, _ in column)


def _is_grid(pieces: Sequence[Piece]) -> bool:
    """Return whether some adapters play at several strengths."""
    columns = {column for _, sidecar in pieces if (column := _column(sidecar))}
    return len({_family(column) for column in columns}) < len(columns)


def _columns(grids: Iterable[Sequence[Piece]]) -> list[Column]:
    """Return the columns of all grids of a page, by adapters and ascending strengths; the base model is strength 0."""
    found = list(dict.fromkeys(_column(sidecar) for pieces in grids for _, sidecar in pieces))
    families = list(dict.fromkeys(_family(column) for column in found if column))

    def order(column: Column) -> tuple[int, list[float]]:
        if not column:
            return (0, [0.0]) if len(families) == 1 else (-1, [])
        return families.index(_family(column)), [strength for _, strength in column]

    return sorted(found, key=order)


def _grid(pieces: Sequence[Piece]) -> list[dict[Column, Piece]]:
    """Return rows of pieces by column: pieces of a row differ in their adapters alone."""
    rows: dict[tuple[str, int], dict[Column, Piece]] = {}
    for stem, sidecar in pieces:
        key, column, number = row_of(sidecar), _column(sidecar), 0
        while column in rows.setdefault((key, number), {}):
            number += 1
        rows[key, number][column] = (stem, sidecar)
    return list(rows.values())


def row_of(sidecar: Sidecar) -> str:
    """Return a text that is equal for samples that differ in their adapters alone."""
    return str([*(sidecar.get(name) for name in _OF_ROW), candidate_of(sidecar)])


def _comparison(versions: Iterable[Version], pieces: Iterable[Piece]) -> Mapping[str, Any] | None:
    pairs = [(version, piece) for version, piece in zip(versions, pieces, strict=True) if "wav" in version.links]
    samples = [
        PlayedSample(voted_sample(f"{stem}.wav", sidecar), version.label, version.links["wav"])
        for version, (stem, sidecar) in pairs
    ]
    return comparison(pairs[0][1][1], samples) if pairs else None


def links(stem: str, files: set[str]) -> dict[str, str]:
    names = {ending: f"{stem}.{ending}" for ending in ("wav", "flac", "mp3", "png", "json")}
    return {ending: f"./{quote(name)}" for ending, name in names.items() if name in files}


def _label(sidecar: Sidecar, varied: bool, many_adapters: bool, in_grid: bool) -> str:
    label, variation = _voice(sidecar, many_adapters, in_grid), sidecar.get("variation")
    if not (varied and isinstance(variation, int)):
        return label
    return say("{voice}, variation {number}", voice=label, number=variation + 1)


def _voice(sidecar: Sidecar, many_adapters: bool, in_grid: bool) -> str:
    entries = adapter_entries(sidecar)
    if len(entries) > 1:
        names = [short_name(str(one.get("path", "?"))) for one in entries]
        strengths = [shown_strength(strength_of(one)) for one in entries]
        return " + ".join(map(" ".join, zip(names, strengths, strict=True)))
    if not sidecar.get("adapter"):
        return say("Base model")
    label = " + ".join(adapter_names(sidecar)) if many_adapters else say("With adapter")
    strength = strength_of(entries[0]) if entries else 1.0
    if in_grid and not many_adapters:
        return say("Strength {strength}", strength=shown_strength(strength))
    if strength == 1 and not in_grid:
        return label
    return say("{voice}, strength {strength}", voice=label, strength=shown_strength(strength))


def _facts(sidecar: Sidecar, common: Mapping[str, Any]) -> list[str]:
    """Return the facts shown for one sample: those that aren't the same for all."""
    duration, seed, variation = number_of(sidecar.get("duration")), sidecar.get("seed"), sidecar.get("variation")
    facts = [say("{seconds:.1f} s", seconds=duration)] if duration is not None else []
    if seed is not None and isinstance(variation, int) and variation > 0:
        facts.append(say("seed {seed}, variation {number}", seed=seed, number=variation + 1))
    elif seed is not None:
        facts.append(say("seed {seed}", seed=seed))
    redo, loop = (one if isinstance(one := sidecar.get(name), Mapping) else None for name in ("redo", "loop"))
    if before := sidecar.get("continued_from"):
        facts.append(_redone(redo, before) if redo else say("continues {file}", file=_file_name(before)))
    if loop:
        facts.append(_looped(loop))
    if followed := sidecar.get("melody"):
        facts.append(say("follows {file}", file=_file_name(followed)))
    if found := best_of(sidecar):
        facts += _candidate_facts(found)
    if negative := sidecar.get("negative_prompt"):
        facts.append(say("away from “{text}”", text=negative))
    sections = sidecar.get("sections")
    facts += [
        say("from {start:g} s: {text}", start=start, text=section.get("prompt"))
        for section in (sections if isinstance(sections, list) else ())
        if isinstance(section, Mapping)
        and isinstance(start := section.get("start"), int | float)
        and 0 <= start <= LONGEST_SECONDS
    ]
    own = {name: value for name, value in _sampling(sidecar).items() if name not in common}
    return facts + words(own)


def _candidate_facts(found: Mapping[str, Any]) -> list[str]:
    """Return what is shown of a sample that is one of several candidates."""
    score, count, number = found.get("score"), found.get("candidates"), found.get("candidate")
    if not isinstance(score, int | float) or not 0 <= score <= 1 or not isinstance(number, int):
        return []
    if not found.get("all_kept"):
        return [say("best of {count}", count=count), say("score {score:.2f}", score=score)]
    fact = say("candidate {number} of {count}", number=number + 1, count=count)
    return [fact, say("score {score:.2f}", score=score), *([say("chosen")] if found.get("chosen") == number else [])]


def _redone(redo: Mapping[str, Any], recording: Any) -> str:
    begin, end = redo.get("begin"), redo.get("end")
    return say("{begin}-{end} s of {file} made again", begin=begin, end=end, file=_file_name(recording))


def _looped(loop: Mapping[str, Any]) -> str:
    bars, tempo = loop.get("bars"), number_of(loop.get("tempo"))
    if not isinstance(bars, int) or tempo is None:
        return say("loop")
    return say("loop of {count}, {tempo:.1f} bpm", count=counted(bars, "bar"), tempo=tempo)


def adapter_names(sidecar: Sidecar) -> list[str]:
    """Return the names of a sample's adapters, each with epoch and step if they are known."""
    return list(map(_adapter, adapter_entries(sidecar))) or [str(one) for one in [sidecar.get("adapter")] if one]


def _adapter(entry: Mapping[str, Any]) -> str:
    words = [_file_name(entry.get("path", "?"))]
    if "epoch" in entry:
        words.append(say("epoch {number}", number=entry["epoch"]))
    if "global_step" in entry:
        words.append(say("step {number}", number=entry["global_step"]))
    return ", ".join(words)


def _sampling(sidecar: Sidecar) -> dict[str, Any]:
    settings, duration = sidecar.get("sampling"), sidecar.get("duration")
    settings = settings if isinstance(settings, Mapping) else {}
    elsewhere = {"duration", "seed"}  # beside each piece
    if isinstance(duration, int | float) and duration <= ONE_PART_SECONDS and not sidecar.get("continued_from"):
        elsewhere.add("overlap")  # a sample of one window overlaps with nothing
    return {name: value for name, value in settings.items() if name not in elsewhere and value is not None}


def common_sampling(pieces: Sequence[Piece]) -> dict[str, Any]:
    """Return the sampling settings that are the same for all samples."""
    settings = [_sampling(sidecar) for _, sidecar in pieces]
    first = settings[0] if settings else {}
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in settings)}


def words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as texts, without those that are off."""
    words = []
    for name, value in settings.items():
        shown = translated(_SAMPLING.get(name, name.replace("_", "-")))
        if value is True:
            words.append(shown)
        elif value is not False and (name, value) != ("top_p", 0):
            words.append(f"{shown} {value:g}" if isinstance(value, float) else f"{shown} {value}")
    return words


def _file_name(path: Any) -> str:
    return PurePosixPath(str(path)).name
