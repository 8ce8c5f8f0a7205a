"""`dataset.html`: histograms, labels, and the clips that stand out, with players, on one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from upath import UPath

from musicgen_core import storage
from musicgen_core.config import ReadingSettings
from musicgen_core.escaping import html_page
from musicgen_core.exclusions import DUPLICATE
from musicgen_core.generation.page import OwnPage
from musicgen_core.language import Message, message, say, translated
from musicgen_core.overview.charts import Histogram, histogram
from musicgen_core.overview.findings import KEYWORDS, Example, Findings, StandingOut
from musicgen_core.overview.odd_labels import LEAST_FOR_RARE
from musicgen_core.overview.players import Players, players_of
from musicgen_core.wording import counted, lasting

PAGE = "dataset.html"
DATASET = OwnPage("musicgen-flows: data set", message("The clips of a data set"))
MOST_FREQUENT, MOST_IN_TABLE = 16, 40
_CATEGORIES = {
    "genre": message("Genres"),
    "instruments": message("Instruments"),
    "mood": message("Moods"),
    "vocals": message("Vocals"),
    KEYWORDS: message("Labels of no category"),
}
_STEPS = {"tempo": 5.0, "loudness": 1.0, "length": 0.5}
"""Width of a bin in bpm, LUFS and seconds"""


@dataclass(frozen=True)
class Section:
    """A way in which clips stand out.

    Attributes:
        title: heading.
        meaning: what clips are in it, and what can be done about them.
        count: how many there are, in words.
        examples: the most extreme ones.
        more: how many others there are, in words; empty without others.
    """

    title: str
    meaning: str
    count: str
    examples: list[Example]
    more: str


def write_page(
    target: UPath,
    findings: Findings,
    archives: Mapping[str, UPath],
    settings: ReadingSettings,
    left_out: str = "",
) -> None:
    """Write the page, unless it is the same already.

    Args:
        target: its path.
        archives: locations of the archives by file name, from which the clips to play are read.
        settings: how to read archives.
        left_out: how many clips were rejected, in words; may be empty.
    """
    sections = list(_sections(findings))
    wanted = [key for section in sections for example in section.examples for key in _keys_of(example)]
    players = players_of(wanted, archives, settings)
    page = html_page(
        "musicgen_core.overview",
        "dataset.html.j2",
        generator=DATASET.generator,
        title=translated(DATASET.title),
        facts=_facts(findings, left_out),
        histograms=_histograms(findings),
        keys=_bars(findings.keys.most_common()),
        frequent=_bars(findings.most_frequent[:MOST_FREQUENT]),
        tables=_tables(findings),
        sections=sections,
        players=players.urls,
        remark=_remark(players),
        translate=translated,
    )
    if not (target.exists() and storage.read_text(target) == page):  # a run that changes nothing writes nothing
        storage.write_text(target, page)


def _keys_of(example: Example) -> Iterator[tuple[str, str]]:
    yield example.archive, example.path
    if example.twin is not None:
        yield example.twin


def _facts(findings: Findings, left_out: str) -> dict[str, str]:
    facts = {say("Clips"): f"{findings.clips:,}", say("Archives"): f"{len(findings.archives):,}"}
    if timed := len(findings.lengths):
        length = translated(lasting(findings.seconds))
        if timed < findings.clips:
            length = say("{length}, of the {clips:,} clips whose length is known", length=length, clips=timed)
        facts[say("Length")] = length
    names = {"tempo": say("Without a tempo"), "key": say("Without a key"), "description": say("Without a description")}
    for name, shown in names.items() if findings.clips else ():
        number = findings.without[name]
        facts[shown] = say("{number:,} clips ({share:.1%})", number=number, share=number / findings.clips)
    if left_out:
        facts[say("Rejected")] = translated(left_out)
    return facts


@dataclass(frozen=True)
class Chart:
    """A histogram with its texts: `summary` says in words what it shows."""

    title: str
    unit: str
    summary: str
    data: Histogram


def _histograms(findings: Findings) -> list[Chart]:
    charts = []
    for title, unit, values, step in (
        (say("Tempo"), say("bpm"), findings.tempos, _STEPS["tempo"]),
        (say("Loudness"), "LUFS", findings.loudness, _STEPS["loudness"]),
        (say("Length"), say("seconds"), findings.lengths, _STEPS["length"]),
    ):
        if (data := histogram(values, step)) is not None:
            summary = say(
                "{clips:,} clips, {lowest:.4g} to {highest:.4g}, median {middle:.4g}",
                clips=data.count,
                lowest=data.lowest,
                highest=data.highest,
                middle=data.middle,
            )
            charts.append(Chart(title, unit, summary, data))
    return charts


@dataclass(frozen=True)
class LabelBar:
    """A label, its number of clips, and the width of its bar from 0 to 100."""

    label: str
    count: int
    width: float


def _bars(counts: Sequence[tuple[str, int]], most: int = MOST_IN_TABLE) -> list[LabelBar]:
    highest = counts[0][1] if counts else 1
    return [LabelBar(label, count, round(100 * count / highest, 1)) for label, count in counts[:most]]


@dataclass(frozen=True)
class Table:
    """The labels of a category, and how many more there are, in words."""

    title: str
    rows: list[tuple[str, int, str]]
    more: str


def _tables(findings: Findings) -> list[Table]:
    tables = []
    for category, counts in findings.labels.items():
        if not counts:
            continue
        rows = [(label, count, f"{count / findings.clips:.1%}") for label, count in counts.most_common(MOST_IN_TABLE)]
        others = len(counts) - len(rows)
        more = say("and {number:,} more labels", number=others) if others else ""
        tables.append(Table(translated(_CATEGORIES[category]), rows, more))
    return tables


def _sections(findings: Findings) -> Iterator[Section]:
    kinds = findings.kinds
    shown: list[tuple[Message, Message, str, StandingOut | None]] = [
        (message("Silent"), message("At least 90 % of their time is silent."), "silent", kinds["silent"]),
        (message("Clipped"), message("At least 1 % of their samples are clipped."), "clipped", kinds["clipped"]),
        (message("Speech"), message("At least half of their time has speech."), "speech", kinds["speech"]),
        (message("Vocals"), message("They have a label for vocals."), "vocals", kinds["vocals"]),
        (
            message("Near duplicates"),
            message("Clusters of clips with mostly the same tokens. They are on one side of the validation split."),
            DUPLICATE,
            findings.duplicates,
        ),
        (
            message("At odds with their song"),
            message(
                "Another key, tempo or genre, with a high confidence, than at least three quarters of the clips of "
                "their song. Either the clip or its label is in the wrong place."
            ),
            "",
            findings.songs,
        ),
        (
            message("Rare labels"),
            message(
                "Labels that fewer than 1 % of the clips have, with a high confidence; of data sets of at least "
                "{number} clips. Either such music is in the data set by mistake, or the label is wrong.",
                number=LEAST_FOR_RARE,
            ),
            "",
            findings.rare,
        ),
    ]
    for title, meaning, kind, standing_out in shown:
        if standing_out is not None and standing_out.count:
            advice = say("tokenize --exclude {kind} leaves them out.", kind=kind) if kind else ""
            yield _section(translated(title), " ".join(filter(None, [translated(meaning), advice])), standing_out)


def _section(title: str, meaning: str, standing_out: StandingOut) -> Section:
    others = standing_out.count - len(standing_out.examples)
    return Section(
        title=title,
        meaning=meaning,
        count=f"{standing_out.count:,}",
        examples=standing_out.examples,
        more=say("and {number:,} more", number=others) if others else "",
    )


def _remark(players: Players) -> str:
    if not players.remote_tars:
        return ""
    return say(
        "Clips in {archives} have no player here: a tar on a URL would have to be downloaded whole.",
        archives=translated(counted(len(set(players.remote_tars)), "archive")),
    )
