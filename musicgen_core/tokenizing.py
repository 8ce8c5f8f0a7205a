"""Tokenize an archive to a shard: every clip becomes a row of codes or a rejection with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path

from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import ArchiveFile, archive_stem
from musicgen_core.data.captions import Captioner, Captions, ClipTexts
from musicgen_core.data.decoding import Counts, OnClip, decoded_clips
from musicgen_core.data.members import CLIP_SUFFIXES, Member, Sidecars, limits_of, sidecar_key
from musicgen_core.data.outdated_shards import lacks_clips, was_repaired
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
from musicgen_core.encoding import Encoded, encode_clips
from musicgen_core.errors import Cancelled, ClipRejected, TokensError
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
        settings: limits, and how descriptions are composed.
        metadata: descriptions of clips, or None.
    """

    codec: Codec
    tokens: UPath
    settings: TokenizeSettings = field(default_factory=TokenizeSettings)
    metadata: Captions | None = None

    def tokenize(
        self,
        archive: UPath,
        limit: int | None = None,
        on_clip: OnClip = lambda counts: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> ShardReport:
        """Write the shard of `archive`. A complete and current shard is kept; changed descriptions are updated.

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
            fingerprint = self._fingerprint(file, limit)
            existing = read_report(self.tokens, archive_stem(archive))
            if existing is not None and self._is_current(file, existing, fingerprint, limit):
                with suppress(TokensError):  # a damaged shard is regenerated
                    return self._refresh_captions(file, existing)
            self._refuse_foreign(file)
            return self._encode_archive(file, fingerprint, limit, on_clip, cancelled)

    def _is_current(self, file: ArchiveFile, report: ShardReport, fingerprint: str, limit: int | None) -> bool:
        """Return whether to keep a shard. A limited run doesn't truncate a complete one."""
        if report.fingerprint == fingerprint:
            return not lacks_clips(file, report)
        return report.fingerprint == self._fingerprint(file, None) and not was_repaired(file, report)

    def _fingerprint(self, file: ArchiveFile, limit: int | None) -> str:
        return shard_fingerprint(file.digest, self.codec.identity, self.settings, limit)

    def _refuse_foreign(self, file: ArchiveFile) -> None:
        refuse_foreign_shard(self.tokens, file.path, partial(self._fingerprint, file))

    def _encode_archive(
        self, file: ArchiveFile, fingerprint: str, limit: int | None, on_clip: OnClip, cancelled: Callable[[], bool]
    ) -> ShardReport:
        archive = file.path
        captioner = Captioner(self.settings, self.metadata, archive_stem(archive))
        described: _Described = []
        rejected: list[Rejected] = []
        seconds = 0.0
        with file.staged() as (local, opened), storage.scratch_folder() as folder:
            total = opened.clip_count if limit is None or opened.clip_count is None else min(limit, opened.clip_count)
            on_clip(Counts(0, 0, total))
            parquet = folder / f"{archive_stem(archive)}.parquet"
            with (
                ShardWriter(parquet, self.codec.identity, self.codec.cardinality, self.codec.model) as writer,
                closing(self.encoded_clips(islice(opened.clips(), limit), cancelled)) as clips,
            ):
                for name, clip in clips:
                    if cancelled():
                        done = len(described) + len(rejected)
                        raise Cancelled(f"tokenizing {archive.name} was cancelled after {counted(done, 'clip')}")
                    if isinstance(clip, ClipRejected):
                        rejected.append(Rejected(name, str(clip)))
                    else:
                        texts = captioner.texts(name, *opened.sidecars().get(sidecar_key(name), ()))
                        writer.add(Row(name, texts.description, clip.seconds, clip.codes, texts.fields, texts.group))
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
        with closing(decoded_clips(members, limits_of(self.settings).max_clip_bytes, cancelled)) as ahead:
            yield from encode_clips(self.codec, ahead)

    def _refresh_captions(self, file: ArchiveFile, report: ShardReport) -> ShardReport:
        """Rewrite the descriptions if they have changed, and keep the codes."""
        captioner = Captioner(self.settings, self.metadata, archive_stem(file.path))
        sidecars = file.opened.read_sidecars() if captioner.uses_sidecars else {}
        source, _ = shard_paths(self.tokens, archive_stem(file.path))
        with storage.staged(source) as local, storage.scratch_folder() as folder:
            described = _describe(captioner, [row.clip for row in read_rows(local)], sidecars)
            fingerprint, remarks = captions_fingerprint(described), _remarks(captioner, described, sidecars)
            if fingerprint == report.captions_fingerprint and remarks == report.remarks:
                return report
            parquet = _rewrite(local, folder / source.name, described, self.codec)
            report = replace(report, captions_fingerprint=fingerprint, remarks=remarks)
            publish_shard(parquet, report, self.tokens)
        return report


def _describe(captioner: Captioner, names: Sequence[str], sidecars: Sidecars) -> _Described:
    return [(name, captioner.texts(name, *sidecars.get(sidecar_key(name), ()))) for name in names]


def _remarks(captioner: Captioner, described: _Described, sidecars: Sidecars) -> list[Remark]:
    found = ((name, captioner.remark(name, *sidecars.get(sidecar_key(name), ()))) for name, _ in described)
    return [Remark(name, remark) for name, remark in found if remark]


def _rewrite(source: Path, target: Path, described: _Described, codec: Codec) -> Path:
    """Copy rows to `target` with new texts."""
    target.parent.mkdir(exist_ok=True)
    with ShardWriter(target, codec.identity, codec.cardinality, codec.model) as writer:
        for row, (_, texts) in zip(read_rows(source), described, strict=True):
            writer.add(replace(row, **vars(texts)))
    return target


def shard_fingerprint(digest: str, codec: str, settings: TokenizeSettings, limit: int | None) -> str:
    """Return a hash of the digest of the archive's content, the codec, and the settings that affect the codes.

    Times and paths never enter it.
    """
    shaping = settings.model_dump(include={"name_encoding", "max_clip_gib", "max_ratio"})
    parts = [digest, codec, CODES_VERSION, limit, shaping]
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
