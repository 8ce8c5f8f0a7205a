"""Report on how well metadata, descriptions and archives match, before hours of encoding."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from upath import UPath

from musicgen_core.data.archive import archive_stem, open_archive
from musicgen_core.data.captions import Captioner, Captions, keys, listed
from musicgen_core.data.members import limits_of, sidecar_key
from musicgen_core.errors import ArchiveError, MetadataError
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
        return [
            message("{subject}: {found}", subject=source, found=text) for text in (*lines, *self.captions.wrong.lines())
        ]


def match_report(captions: Captions, members: Iterable[tuple[str, str]], are_all: bool = True) -> MatchReport:
    """Compare metadata with the names of clips, which are read once and not kept.

    Args:
        captions: the metadata.
        members: stem of the archive and name of each clip.
        are_all: whether `members` is complete; otherwise entries without a clip are not reported.
    """
    clips = 0
    missing, unmatched = NameExcerpt(), NameExcerpt()
    used: list[set[str]] = [set() for _ in captions.tables]
    for archive, member in members:
        clips += 1
        if match := captions.match(member, archive):
            used[match[0]].add(match[1])
        else:
            missing.add(member)
    of_archives, *of_paths = used
    if are_all:
        for path in captions.by_archive:
            if path not in of_archives:
                unmatched.add(path)
        for path in captions.by_path:
            if not any(key in matched for key, matched in zip(keys(path), of_paths, strict=True)):
                unmatched.add(path)
    return MatchReport(captions, clips, unmatched, missing)


def check_matches(captions: Captions, names_by_archive: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Check that the metadata match at least one clip, given the stem of each archive and the names of its clips.

    Raises:
        MetadataError: no clip of any archive matches, a mistake better found before hours of encoding.
    """
    seen = 0
    example = None
    for archive, names in names_by_archive:
        if any(captions.match(name, archive) for name in names):
            return
        seen += len(names)
        example = example or next(iter(names), None)
    if example is not None:
        raise MetadataError(
            message(
                "{source} matches none of the {seen:,} clips: it has, for one, {next!r}, the archives {example!r}",
                source=captions.source,
                seen=seen,
                next=next(captions.paths),
                example=example,
            ),
            message("Make the paths, file names or stems agree, or leave the metadata out"),
        )


def undescribed_clips(archives: Sequence[UPath], captioner: Captioner) -> str | None:
    """Return `none of the 8 clips in a.zip` if the first readable zip with clips has no descriptions, else None.

    Tars are skipped, as their sidecars are known only after a full read.
    """
    encoding, limits = captioner.settings.name_encoding, limits_of(captioner.settings)
    for archive in archives:
        try:
            with open_archive(archive, limits, encoding) as opened:
                names = list(opened.clip_names()) if opened.clip_count else []
                sidecars = opened.read_sidecars() if names and captioner.uses_sidecars else {}
        except (ArchiveError, OSError):
            continue  # its task reports the problem
        if names:
            captioner = replace(captioner, archive=archive_stem(archive))
            if any(captioner.describe(name, *sidecars.get(sidecar_key(name), ())) for name in names):
                return None
            return message("none of the {clips} in {archive}", clips=counted(len(names), "clip"), archive=archive.name)
    return None
