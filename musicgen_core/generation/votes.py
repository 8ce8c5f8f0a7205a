"""`votes.jsonl`: which of two samples listeners preferred in blind comparisons, and the tally.

One line per vote, a JSON object: `time` (ISO 8601, UTC), `prompt`, `seed`, `variation`, `order_seed` (of the pair and
its order), `vote` (`a`, `b` or `none`), and the samples `a` and `b` in the order shown, each with `file` and `adapter`:
a list of objects with `path`, `sha256` and `strength`, empty for the base model.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ConfigError
from musicgen_core.language import message, translated
from musicgen_core.model.weighted_adapters import shown_strength
from musicgen_core.run_layout import short_name
from musicgen_core.settings import Settings

VOTES = "votes.jsonl"
CONFIDENCE = 0.95
MOST_CHARACTERS = 4096
"""Largest text in a vote"""
_Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Side = tuple[tuple[str, float], ...]
"""Adapters (hash, or path if that is unknown) with their strengths, sorted; none: the base model"""


class VotedAdapter(Settings):
    """An adapter of a sample."""

    path: _Text = ""
    sha256: _Text = ""
    strength: float = 1.0


class VotedSample(Settings):
    """One of the two samples of a vote; the base model's has no adapters."""

    file: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]
    adapter: Annotated[tuple[VotedAdapter, ...], Field(max_length=64)] = ()

    @property
    def side(self) -> Side:
        return tuple(sorted((one.sha256 or one.path, one.strength) for one in self.adapter if one.strength))

    @property
    def name(self) -> str:
        """Return the adapters' short names with their strengths; an empty string for the base model."""
        played = sorted((one for one in self.adapter if one.strength), key=lambda one: one.sha256 or one.path)
        return " + ".join(f"{short_name(one.path)} {shown_strength(one.strength)}" for one in played)


class Vote(Settings):
    """A vote of one listener: a line of `votes.jsonl`, whose fields the module's docstring describes."""

    time: _Text = ""
    prompt: _Text = ""
    seed: int | None = None
    variation: int = 0
    order_seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    a: VotedSample
    b: VotedSample
    vote: Literal["a", "b", "none"]

    @model_validator(mode="after")
    def _of_two_samples(self) -> Vote:
        if self.a.file == self.b.file or self.a.side == self.b.side:
            raise ValueError("a and b are the same")
        return self


def append_vote(path: Path, vote: Vote) -> None:
    """Append a line to a local file under a lock. A torn last line, of a process that was killed, is ended first.

    Raises:
        OSError: the file can't be written, or is a symbolic link or a pipe.
    """
    line = vote.model_dump_json().encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", opener=_open_for_reading_too, buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file
        size = os.fstat(file.fileno()).st_size
        is_torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(b"\n" * is_torn + line)


def _open_for_reading_too(path: str, flags: int) -> int:
    return storage.open_file_alone(path, flags & ~os.O_WRONLY | os.O_RDWR)


def read_votes(path: UPath) -> tuple[list[Vote], int]:
    """Return the votes of a file, none if it doesn't exist, and the number of lines that aren't votes.

    Raises:
        OSError: the file can't be read.
    """
    try:
        storage.require_file(path)
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    votes, unreadable = [], 0
    for line in lines:
        if line.strip():
            try:
                votes.append(Vote.model_validate_json(line))
            except ValidationError:
                unreadable += 1
    return votes, unreadable


def votes_in(places: Sequence[str]) -> tuple[list[Vote], int]:
    """Return the votes of files, and of `votes.jsonl` in folders, and the number of lines that aren't votes.

    Raises:
        ConfigError: a place has no votes.
    """
    votes: dict[str, Vote] = {}
    unreadable = 0
    for place in places:
        path = storage.as_path(place)
        path = path / VOTES if path.is_dir() else path
        if not path.exists():
            raise ConfigError(
                message("there are no votes at {path}", path=path),
                message("Vote in the blind comparison of a page, or give a folder or a file {name}", name=VOTES),
            )
        found, bad = read_votes(path)
        votes |= {vote.model_dump_json(): vote for vote in found}  # a saved file may lie beside the folder's own
        unreadable += bad
    return list(votes.values()), unreadable


@dataclass
class PairTally:
    """The votes between two sides, adapters at strengths or the base model.

    Attributes:
        first: name of the first side, the base model's if it is one of the two; an empty string for the base model.
        second: name of the other side.
        for_first: votes for the first side.
        for_second: votes for the second side.
        ties: votes "no difference", which the share and its interval leave out.
    """

    first: str
    second: str
    for_first: int = 0
    for_second: int = 0
    ties: int = 0

    @property
    def share(self) -> float | None:
        """Share of the second side in the votes for either; None without any."""
        decided = self.for_first + self.for_second
        return self.for_second / decided if decided else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the share (Wilson 1927), to `CONFIDENCE`; 0 to 1 without votes for either."""
        from scipy.stats import binomtest  # slow to import

        decided = self.for_first + self.for_second
        if not decided:
            return 0.0, 1.0
        found = binomtest(self.for_second, decided).proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)

    @property
    def preferred(self) -> str | None:
        """Name of the side that the interval shows to be preferred; None while it includes one half."""
        low, high = self.interval
        return self.second if low > 0.5 else self.first if high < 0.5 else None

    def sentence(self) -> str:
        """Return the result in one sentence."""
        if self.preferred is None:
            return message("the interval includes 50 %: these votes show no preference yet")
        return message("{name} is preferred", name=shown_side(self.preferred))

    def counts(self) -> str:
        """Return votes, share and interval as one text."""
        low, high = self.interval
        texts = {"first": self.for_first, "second": self.for_second, "ties": self.ties}
        if self.share is None:
            return message("{first} : {second}, {ties} without a difference", **texts)
        return message(
            "{first} : {second}, {ties} without a difference; {name} in {share:.0%} of decided votes "
            "(95 % interval {low:.0%} to {high:.0%})",
            **texts,
            name=shown_side(self.second),
            share=self.share,
            low=low,
            high=high,
        )

    def title(self) -> str:
        return message("{first} : {second}", first=shown_side(self.first), second=shown_side(self.second))


def shown_side(name: str) -> str:
    return name or message("base model")


def tally(votes: Iterable[Vote]) -> list[PairTally]:
    """Return the tally of each pair of sides, those with most votes first."""
    votes = list(votes)
    names = _names(votes)
    pairs: dict[tuple[Side, Side], PairTally] = {}
    for vote in votes:
        first, second = sorted((vote.a.side, vote.b.side))
        pair = pairs.setdefault((first, second), PairTally(names[first], names[second]))
        if vote.vote == "none":
            pair.ties += 1
        elif (vote.a if vote.vote == "a" else vote.b).side == first:
            pair.for_first += 1
        else:
            pair.for_second += 1
    return sorted(pairs.values(), key=lambda pair: -(pair.for_first + pair.for_second + pair.ties))


def _names(votes: Sequence[Vote]) -> dict[Side, str]:
    """Return a name for each side. Sides with equal names, files of two directories, get the hashes' beginnings."""
    names: dict[Side, str] = {}
    for vote in votes:
        for sample in (vote.a, vote.b):
            names.setdefault(sample.side, sample.name)
    found = list(names.values())
    return {
        side: name if found.count(name) == 1 else f"{name} ({', '.join(adapter[-12:] for adapter, _ in side)})"
        for side, name in names.items()
    }


def described(votes: Sequence[Vote]) -> list[Mapping[str, Any]]:
    """Return the tally in the user's language, as pages show it."""
    return [
        {part: translated(text) for part, text in texts.items()}
        for pair in tally(votes)
        for texts in [{"title": pair.title(), "counts": pair.counts(), "sentence": pair.sentence()}]
    ]
