"""One archive → one shard: every clip of it becomes a row of codes or a rejection with its reason."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.data.archive import Member, archive_stem, content_digest, iterate_clips
from musicgen_core.data.audio import decode_wav
from musicgen_core.data.captions import Captions
from musicgen_core.data.shards import (
    SCHEMA_VERSION,
    Rejected,
    Row,
    ShardReport,
    ShardWriter,
    publish_shard,
    read_report,
    read_rows,
    shard_paths,
)
from musicgen_core.errors import Cancelled, ClipRejected, TokensError

Progress = Callable[[int, int], None]
"""Called after each clip with the number of rows and of rejections so far."""


@dataclass(frozen=True)
class Tokenizer:
    """What tokenizing needs beside the archive.

    Attributes:
        codec: the loaded codec.
        tokens: the directory of shards.
        captions: descriptions, or None.
    """

    codec: Codec
    tokens: UPath
    captions: Captions | None = None

    def tokenize(
        self,
        archive: UPath,
        limit: int | None = None,
        on_clip: Progress = lambda done, rejected: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> ShardReport:
        """Make the shard of `archive`, or what of it is missing: nothing that is whole and current is done again.

        Args:
            archive: a zip or tar, local or remote; a remote one is staged and deleted.
            limit: clips to take at most; None for all.
            on_clip: called after each clip.
            cancelled: asked after each clip.

        Raises:
            ArchiveError: the archive can't be read. No shard is left.
            Cancelled: `cancelled` said so. No shard is left.
        """
        fingerprint = shard_fingerprint(archive, self.codec.identity, limit)
        existing = read_report(self.tokens, archive_stem(archive))
        if existing is not None and existing.fingerprint == fingerprint:
            with suppress(TokensError):  # a damaged shard is made anew
                return self._refresh_captions(archive_stem(archive), existing)
        return self._encode_archive(archive, fingerprint, limit, on_clip, cancelled)

    def _encode_archive(
        self, archive: UPath, fingerprint: str, limit: int | None, on_clip: Progress, cancelled: Callable[[], bool]
    ) -> ShardReport:
        rows: list[tuple[str, str | None]] = []
        rejected: list[Rejected] = []
        seconds = 0.0
        with storage.staged(archive) as local, tempfile.TemporaryDirectory(prefix="musicgen-") as folder:
            parquet = Path(folder) / f"{archive_stem(archive)}.parquet"
            writer = ShardWriter(parquet, self.codec.identity)
            for index, member in enumerate(iterate_clips(local)):
                if index == limit:
                    break
                if cancelled():
                    raise Cancelled(f"tokenizing {archive.name} was cancelled after {index} clips")
                try:
                    row = self._encode_clip(member)
                except ClipRejected as error:
                    rejected.append(Rejected(member.name, str(error)))
                else:
                    writer.add(row)
                    rows.append((row.clip, row.description))
                    seconds += row.duration
                on_clip(len(rows), len(rejected))
            writer.close()
            report = ShardReport(
                archive=archive.name,
                archive_bytes=local.stat().st_size,
                fingerprint=fingerprint,
                captions_fingerprint=captions_fingerprint(rows),
                clips=len(rows),
                audio_seconds=round(seconds, 6),
                rejected=rejected,
                limited_to=limit,
            )
            publish_shard(parquet, report, self.tokens)
        return report

    def _encode_clip(self, member: Member) -> Row:
        clip = decode_wav(member.read())
        codes = self.codec.encode(torch.from_numpy(clip.samples)[None, None])[0]
        return Row(member.name, self._describe(member.name), clip.seconds, codes.cpu().numpy().astype(np.uint16))

    def _describe(self, member: str) -> str | None:
        return self.captions.find(member)[1] if self.captions else None

    def _refresh_captions(self, stem: str, report: ShardReport) -> ShardReport:
        """Where only descriptions changed, write those again and keep the codes."""
        parquet, _ = shard_paths(self.tokens, stem)
        with storage.staged(parquet) as local, tempfile.TemporaryDirectory(prefix="musicgen-") as folder:
            described = [replace(row, description=self._describe(row.clip)) for row in read_rows(local)]
            fingerprint = captions_fingerprint([(row.clip, row.description) for row in described])
            if fingerprint == report.captions_fingerprint:
                return report
            rewritten = Path(folder) / f"{stem}.parquet"
            writer = ShardWriter(rewritten, self.codec.identity)
            for row in described:
                writer.add(row)
            writer.close()
            report = replace(report, captions_fingerprint=fingerprint)
            publish_shard(rewritten, report, self.tokens)
        return report


def shard_fingerprint(archive: UPath, codec: str, limit: int | None) -> str:
    """Of the archive's content, the codec, and the settings that shape the codes; never of times or places."""
    parts = [content_digest(archive), codec, SCHEMA_VERSION, limit]
    return f"sha256:{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def captions_fingerprint(rows: Sequence[tuple[str, str | None]]) -> str:
    """Of clips and their descriptions, in order."""
    return f"sha256:{hashlib.sha256(json.dumps(rows).encode()).hexdigest()}"
