"""Tokenize an archive to a shard: every clip becomes a row of codes or a rejection with its reason."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import ArchiveFile, archive_stem, clip_names
from musicgen_core.data.captions import Captioner, Captions, ClipTexts
from musicgen_core.data.decoding import Counts, OnClip, decoded_clips
from musicgen_core.data.duplicate_clips import RepeatedClips, repeated_clips
from musicgen_core.data.exclusion import duplicate_of, excluded_clips, fingerprint_without, is_duplicate, is_excluded
from musicgen_core.data.levels import CodeVectors
from musicgen_core.data.members import CLIP_SUFFIXES, Member, Sidecars, limits_of, sidecar_key
from musicgen_core.data.outdated_shards import lacks_clips, lacks_originals, was_repaired
from musicgen_core.data.shard_codec import shard_codec, shard_shape
from musicgen_core.data.shards import (
    Rejected,
    Remark,
    Row,
    ShardReport,
    ShardWriter,
    origin_of,
    publish_shard,
    read_report,
    read_rows,
    refuse_foreign_shard,
    shard_paths,
)
from musicgen_core.data.token_cache import THREADS
from musicgen_core.encoding import Encoded, encode_clips
from musicgen_core.errors import Cancelled, ClipRejected, ConfigError, TokensError
from musicgen_core.exclusions import DUPLICATE, measured
from musicgen_core.language import message
from musicgen_core.melody import chroma_identity
from musicgen_core.separation.clips import Separation, separated_clips
from musicgen_core.wording import counted

CODES_VERSION = 1
"""Version of how codes are made: increase it when the same clip would get other codes"""


_Described = list[tuple[str, ClipTexts]]
"""Clips and their texts, in order"""


@dataclass(frozen=True)
class Tokenizer:
    """Tokenizes archives. Several may be tokenized at once, in threads.

    Attributes:
        codec: the loaded codec.
        tokens: the directory of shards.
        settings: limits, how descriptions are composed, and what clips to leave out.
        metadata: descriptions of clips, and which to leave out; or None.
        separation: removes the vocals of all clips, or takes their melodies without drums and bass; or None.

    Raises:
        ConfigError: melodies are to be separated for a model that takes none.
    """

    codec: Codec
    tokens: UPath
    settings: TokenizeSettings = field(default_factory=TokenizeSettings)
    metadata: Captions | None = None
    separation: Separation | None = None

    def __post_init__(self) -> None:
        if self.separation is not None and self.separation.extract_chroma:
            check_separates_melody(self.codec)

    def tokenize(
        self,
        archive: UPath,
        limit: int | None = None,
        on_clip: OnClip = lambda counts: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> ShardReport:
        """Write the shard of `archive`. A complete and current shard is kept.

        Changed descriptions are updated, and clips that are left out now are removed, without encoding anything.

        Args:
            archive: a zip or tar, local or remote; a remote one is staged and deleted afterwards.
            limit: maximum number of clips; None for all.
            on_clip: called before the first and after each clip.
            cancelled: polled after each clip, and while a native decoder works on one.

        Raises:
            ArchiveError: the archive can't be read. As with all errors, an earlier shard of it is kept.
            TokensError: a file at the shard's path isn't this archive's.
            Cancelled: `cancelled` returned True.
            OSError: storage failed; a retry may help.
        """
        with ArchiveFile(archive, limits_of(self.settings), self.settings.name_encoding) as file:
            excluded = self._excluded(file, limit)
            fingerprint = self._fingerprint(file, limit, excluded)
            existing = read_report(self.tokens, archive_stem(archive))
            if existing is not None and self._is_current(file, existing, limit):
                with suppress(TokensError):  # a damaged shard is regenerated
                    return self._refresh(file, existing)
            self._refuse_foreign(file)
            return self._encode_archive(file, fingerprint, excluded, limit, on_clip, cancelled)

    @property
    def chroma(self) -> str | None:
        """How the chroma of the clips is computed; None if the model takes no melody."""
        if not self.codec.takes_melody:
            return None
        return chroma_identity(self.separation.melody_identity if self.separation else "")

    def _is_current(self, file: ArchiveFile, report: ShardReport, limit: int | None) -> bool:
        """Return whether to keep a shard. A limited run doesn't truncate a complete one.

        Chroma is kept where the model takes no melody.
        """
        if self.chroma is not None and report.chroma != self.chroma:
            return False
        left_out = _names(filter(is_excluded, report.rejected))
        is_back = DUPLICATE not in self.settings.exclude and any(map(is_duplicate, report.rejected))
        is_back |= lacks_originals(self.tokens, report, self.metadata)
        if is_back or not set(left_out).issubset(_names(self._excluded(file, report.limited_to))):
            return False  # clips that were left out come back
        if report.fingerprint == self._fingerprint(file, limit, report.rejected):
            return not lacks_clips(file, report)
        return report.fingerprint == self._fingerprint(file, None, report.rejected) and not was_repaired(file, report)

    def _excluded(self, file: ArchiveFile, limit: int | None) -> list[Rejected]:
        """Return the clips that the settings leave out, by the metadata."""
        if not measured(self.settings.exclude) or self.metadata is None:
            return []
        names = clip_names(file.path, self.settings.name_encoding, limits_of(self.settings))
        return excluded_clips(self.metadata, archive_stem(file.path), names[:limit])

    def _fingerprint(self, file: ArchiveFile, limit: int | None, rejected: Sequence[Rejected]) -> str:
        """Return the fingerprint of a shard with these rejections, which matter where clips are left out."""
        names = _names(filter(is_excluded, rejected))
        separator = self.separation.audio_identity if self.separation else ""
        whole = shard_fingerprint(file.digest, self.codec.identity, self.settings, limit, names, separator)
        return fingerprint_without(whole, rejected)

    def _refuse_foreign(self, file: ArchiveFile) -> None:
        def fingerprint_of(report: ShardReport) -> str:
            return self._fingerprint(file, report.limited_to, report.rejected)

        refuse_foreign_shard(self.tokens, file.path, fingerprint_of)

    def _encode_archive(
        self,
        file: ArchiveFile,
        fingerprint: str,
        excluded: Sequence[Rejected],
        limit: int | None,
        on_clip: OnClip,
        cancelled: Callable[[], bool],
    ) -> ShardReport:
        archive = file.path
        captioner = Captioner(self.settings, self.metadata, archive_stem(archive))
        described: _Described = []
        rejected, skipped = list(excluded), set(_names(excluded))
        seconds = 0.0
        with file.staged() as (local, opened), storage.scratch_folder() as folder:
            total = opened.clip_count if limit is None or opened.clip_count is None else min(limit, opened.clip_count)
            on_clip(Counts(0, len(rejected), total))
            members = (member for member in islice(opened.clips(), limit) if member.name not in skipped)
            parquet = folder / f"{archive_stem(archive)}.parquet"
            with (
                ShardWriter(parquet, self.codec.identity, self.codec.shape, self.codec.model) as writer,
                closing(self.encoded_clips(members, cancelled)) as clips,
            ):
                for name, clip in clips:
                    if cancelled():
                        done = len(described) + len(rejected)
                        raise Cancelled(f"tokenizing {archive.name} was cancelled after {counted(done, 'clip')}")
                    if isinstance(clip, ClipRejected):
                        rejected.append(Rejected(name, str(clip)))
                    else:
                        texts = captioner.texts(name, *opened.sidecars().get(sidecar_key(name), ()))
                        row = Row(name, texts.description, clip.seconds, clip.codes, texts.fields, texts.group)
                        writer.add(replace(row, chroma=clip.chroma))
                        described.append((name, texts))
                        seconds += clip.seconds
                    on_clip(Counts(len(described), len(rejected), total))
            # In a tar a description may follow its clip.
            final = _describe(captioner, [name for name, _ in described], opened.sidecars())
            if final != described:
                parquet = _rewrite(parquet, folder / "described" / parquet.name, final, self.codec)
            report = ShardReport(
                archive=archive.name,
                archive_bytes=local.stat().st_size,
                fingerprint=fingerprint,
                captions_fingerprint=captions_fingerprint(final),
                clips=len(final),
                audio_seconds=round(seconds, 6),
                rejected=rejected,
                limited_to=limit,
                remarks=_remarks(captioner, final, opened.sidecars()),
                origin=origin_of(archive),
                clip_suffixes=CLIP_SUFFIXES,
                chroma=self.chroma,
            )
            self._refuse_foreign(file)  # another job may have finished first
            publish_shard(parquet, report, self.tokens)
        return report

    def encoded_clips(
        self, members: Iterator[Member], cancelled: Callable[[], bool] = lambda: False
    ) -> Generator[tuple[str, Encoded | ClipRejected]]:
        """Yield name and codes of each member, in order. Members are read and decoded ahead, in threads.

        Raises:
            Cancelled: `cancelled` returned True while a clip was decoded.
        """
        channels, separation = self.codec.shape.channels, self.separation
        stereo = separation is not None or channels == 2
        rate = separation.separator.rate if separation is not None and separation.removed else None
        with closing(decoded_clips(members, limits_of(self.settings).max_clip_bytes, cancelled, stereo, rate)) as ahead:
            clips = separated_clips(separation, ahead, cancelled, channels) if separation else ahead
            yield from encode_clips(self.codec, clips)

    def _refresh(self, file: ArchiveFile, report: ShardReport) -> ShardReport:
        """Rewrite the shard if descriptions have changed or more clips are left out, and keep the other codes."""
        excluded = self._excluded(file, report.limited_to)
        skipped = set(_names(excluded))
        captioner = Captioner(self.settings, self.metadata, archive_stem(file.path))
        sidecars = file.opened.read_sidecars() if captioner.uses_sidecars else {}
        source, _ = shard_paths(self.tokens, archive_stem(file.path))
        with storage.staged(source) as local, storage.scratch_folder() as folder:
            names, seconds = [], []
            for row in read_rows(local):
                if row.clip not in skipped:
                    names.append(row.clip)
                    seconds.append(row.duration)
            described = _describe(captioner, names, sidecars)
            others = [each for each in report.rejected if not is_excluded(each) and each.clip not in skipped]
            rejected = [*excluded, *others]
            new = replace(
                report,
                fingerprint=self._fingerprint(file, report.limited_to, rejected),
                captions_fingerprint=captions_fingerprint(described),
                clips=len(names),
                audio_seconds=report.audio_seconds if len(names) == report.clips else round(math.fsum(seconds), 6),
                rejected=rejected,
                remarks=_remarks(captioner, described, sidecars),
            )
            if new != report:
                parquet = _rewrite(local, folder / source.name, described, self.codec, skipped)
                publish_shard(parquet, new, self.tokens)
        return new


def check_separates_melody(codec: Codec) -> None:
    """Check that there is a melody to separate.

    Raises:
        ConfigError: the codec's model takes none.
    """
    if not codec.takes_melody:
        raise ConfigError(
            message("--separate-melody is for models that take a melody, which {model} does not", model=codec.model),
            message("Leave it out, or give a model such as facebook/musicgen-melody"),
        )


def exclude_duplicates(tokens: UPath, codec: str, vectors: Callable[[], CodeVectors] | None = None) -> None:
    """Remove each clip that is a near duplicate of an earlier one, in the order of stems and rows, from its shard.

    The shards of all archives are compared, and nothing is encoded. Shards without such clips stay as they are.

    Args:
        codec: identity of the codec; shards of others are ignored.
        vectors: those of its codes, as in `load_clips`.

    Raises:
        TokensError: no shard has clips, or one is damaged or changed while it was read.
        OSError: storage failed; a retry may help.
    """
    if not storage.is_local(tokens):
        tokens.fs.invalidate_cache(tokens.path)  # the cached listing may be outdated
    parquets = [path for path in tokens.iterdir() if path.suffix == ".parquet"]
    with ThreadPoolExecutor(THREADS) as pool:  # remote reads are latency-bound
        are_of = pool.map(partial(_is_of, codec=codec), parquets)
    stems = [path.stem for path, is_of in zip(parquets, are_of, strict=True) if is_of]
    if stems:
        for repeated in repeated_clips(tokens, codec, stems, vectors=vectors):
            _remove(tokens, repeated)


def _is_of(parquet: UPath, codec: str) -> bool:
    try:
        return shard_codec(parquet)[0] == codec
    except ValueError:  # damaged, or no Parquet file
        return False


def _remove(tokens: UPath, repeated: RepeatedClips) -> None:
    """Remove clips from a shard as near duplicates of others."""
    source, _ = shard_paths(tokens, repeated.stem)
    report = read_report(tokens, repeated.stem)
    if report is None:
        return  # being written by another job, which removes them afterwards
    repeated.check_rows(report)
    originals = repeated.originals
    described, durations, removed = [], [], []
    with storage.staged(source) as local, storage.scratch_folder() as folder:
        codec, model = shard_codec(local)
        target = folder / source.name
        with ShardWriter(target, codec, shard_shape(pq.read_schema(local)), model) as writer:
            for number, row in enumerate(read_rows(local)):
                if number in originals:
                    removed.append(duplicate_of(row.clip, originals[number]))
                else:
                    writer.add(row)
                    described.append((row.clip, ClipTexts(row.description, row.fields, row.group)))
                    durations.append(row.duration)
        rejected = [*report.rejected, *removed]
        names = {name for name, _ in described}
        report = replace(
            report,
            fingerprint=fingerprint_without(report.fingerprint, rejected),
            captions_fingerprint=captions_fingerprint(described),
            clips=len(described),
            audio_seconds=round(math.fsum(durations), 6),
            rejected=rejected,
            remarks=[each for each in report.remarks if each.clip in names],
        )
        publish_shard(target, report, tokens)


def _describe(captioner: Captioner, names: Sequence[str], sidecars: Sidecars) -> _Described:
    return [(name, captioner.texts(name, *sidecars.get(sidecar_key(name), ()))) for name in names]


def _remarks(captioner: Captioner, described: _Described, sidecars: Sidecars) -> list[Remark]:
    found = ((name, captioner.remark(name, *sidecars.get(sidecar_key(name), ()))) for name, _ in described)
    return [Remark(name, remark) for name, remark in found if remark]


def _names(rejected: Iterable[Rejected]) -> list[str]:
    return [each.clip for each in rejected]


def _rewrite(source: Path, target: Path, described: _Described, codec: Codec, skipped: Collection[str] = ()) -> Path:
    """Copy rows to `target` with new texts, without those of skipped clips."""
    target.parent.mkdir(exist_ok=True)
    with ShardWriter(target, codec.identity, codec.shape, codec.model) as writer:
        rows = (row for row in read_rows(source) if row.clip not in skipped)
        for row, (_, texts) in zip(rows, described, strict=True):
            writer.add(replace(row, description=texts.description, fields=texts.fields, group=texts.group))
    return target


def shard_fingerprint(
    digest: str,
    codec: str,
    settings: TokenizeSettings,
    limit: int | None,
    excluded: Sequence[str] = (),
    separator: str = "",
) -> str:
    """Return a hash of the digest of the archive's content, the codec, and the settings that affect the codes.

    Times and paths never enter it. Names of clips that are left out do, if there are any, and so does the identity of
    the separator.
    """
    shaping = settings.model_dump(include={"name_encoding", "max_clip_gib", "max_ratio"})
    parts = [digest, codec, CODES_VERSION, limit, shaping, *([sorted(excluded)] if excluded else [])]
    parts += [separator] if separator else []
    return f"sha256:{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def captions_fingerprint(rows: _Described) -> str:
    """Return a hash of clips and their texts, in order; of clip and description alone where there are no others."""
    parts = [
        (clip, texts.description, texts.fields, texts.group)
        if texts.fields or texts.group
        else (clip, texts.description)
        for clip, texts in rows
    ]
    return f"sha256:{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"
