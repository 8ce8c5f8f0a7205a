"""Report on how well metadata and archives match."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field

from musicgen_core.data.captions import Captions, keys, listed
from musicgen_core.language import message
from musicgen_core.wording import counted

_EXAMPLES = 5


@dataclass
class NameExcerpt:
    """Number of names, and the first few of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(name)


@dataclass(frozen=True)
class MatchReport:
    """Result of matching metadata with clips.

    Attributes:
        captions: the metadata.
        clips: number of clips.
        unmatched: paths of entries that match no clip.
        missing: names of clips without an entry.
    """

    captions: Captions
    clips: int
    unmatched: NameExcerpt
    missing: NameExcerpt

    def lines(self) -> list[str]:
        """Return a sentence for each mismatch; none if everything matches."""
        lines = [
            message(
                "{lines} {what}: {numbers}", lines=counted(len(numbers), "line"), what=what, numbers=listed(numbers)
            )
            for numbers, what in (
                (self.captions.broken_lines, message("can't be used")),
                (self.captions.duplicate_lines, message("not used, as the path stands further up")),
                (self.captions.incomplete_lines, message("without all fields of caption_template")),
            )
            if numbers
        ] + [
            message(
                "{number:,} of {total:,} {what}: {names}",
                number=sample.count,
                total=whole,
                what=what,
                names=listed([repr(name) for name in sample.examples], sample.count),
            )
            for sample, whole, what in (
                (self.unmatched, self.captions.entries, message("entries without a clip")),
                (self.missing, self.clips, message("clips without an entry")),
            )
            if sample.count
        ]
        source = posixpath.basename(self.captions.source)
        return [message("{subject}: {found}", subject=source, found=text) for text in lines]


def match_report(captions: Captions, members: Iterable[str], are_all: bool = True) -> MatchReport:
    """Compare metadata with the names of clips, which are read once and not kept.

    Args:
        captions: the metadata.
        members: names of the clips.
        are_all: whether `members` is complete; otherwise entries without a clip are not reported.
    """
    clips = 0
    missing, unmatched = NameExcerpt(), NameExcerpt()
    used: list[set[str]] = [set() for _ in captions.tables]
    for member in members:
        clips += 1
        match = captions.match(member)
        if match is None:
            missing.add(member)
        else:
            used[match[0]].add(match[1])
    for path in captions.by_path if are_all else ():
        if not any(key in matched for key, matched in zip(keys(path), used, strict=True)):
            unmatched.add(path)
    return MatchReport(captions, clips, unmatched, missing)
