"""Disk cache of packed shards, so that a restart or a second training run starts immediately.

Several runs may share the folder, whatever tokens they train on, and each part is needed for that:

- An entry is an immutable file whose name is a hash of its shard's whole report. Changed tokens are another entry, so
  that nothing has to be invalidated.
- The fill lock: ranks of a run, and runs that start together, fetch and pack each shard once.
- Eviction: 139 shards of 1,000 clips take 1.7 GB, and every version of them would stay on the disk. When the folder
  exceeds its limit or the disk has no room for new entries, the least recently used ones are deleted.
- Leases: entries in use aren't evicted. On a local disk a mapped file survives its deletion, but its space isn't free
  until the run ends; on a network file system the run would be killed by SIGBUS. A lease is one file of a run: locks on
  the entries themselves would exceed the usual limit of 1,024 open files with 1,390 shards.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pyarrow as pa
from platformdirs import user_cache_path
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import FRAME_RATE, MONO, STEREO, STEREO_SUFFIX
from musicgen_core.data.levels import CodeVectors
from musicgen_core.data.packed_shards import VERSION, PackedShard, holds_other_data, open_packed, pack_shard
from musicgen_core.data.shards import ShardReport, shard_paths
from musicgen_core.errors import TokensError, reason_of
from musicgen_core.language import message
from musicgen_core.wording import counted, sized

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "MUSICGEN_TOKENS_CACHE"
LIMIT = 50 * 10**9  # bytes: some 4 million clips of 30 s
THREADS = 8  # shards fetched and packed in parallel; remote reads are latency-bound
_ENTRY = re.compile(r"[0-9a-f]{32}\.arrow")
_ANOTHER_FOLDER = f"Free some room, or set {FOLDER_VARIABLE} to a folder on a larger local disk"


def default_folder() -> Path:
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser() if given else user_cache_path("musicgen-flows") / "tokens"


class Lease:
    """Protects entries from eviction until this object is garbage-collected or its process ends."""

    def __init__(self, folder: Path, entries: Iterable[Path]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, hidden = tempfile.mkstemp(prefix=".", dir=folder)  # hidden until it is locked
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        Path(hidden).write_text("\n".join(entry.name for entry in entries), encoding="utf-8")
        self.path = folder / Path(hidden).name.removeprefix(".")
        os.replace(hidden, self.path)
        weakref.finalize(self, _release, descriptor, self.path)


def _release(descriptor: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    os.close(descriptor)


class TokenCache:
    """Cache of packed shards in one folder.

    Args:
        folder: directory, created if missing; by default MUSICGEN_TOKENS_CACHE or the user's cache.
        limit: maximum bytes of all entries, which entries in use may exceed.
    """

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        self.folder = folder or default_folder()
        self.limit = limit

    def entry(self, stem: str, codec: str, report: ShardReport, with_profiles: bool = False) -> Path:
        """Return the path of the entry of a shard with this report."""
        # The whole report: a fresh copy of a damaged archive has the same fingerprint, but more clips.
        content = json.dumps([VERSION, stem, codec, with_profiles, asdict(report)], sort_keys=True)
        return self.folder / f"{hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}.arrow"

    def packed(
        self,
        tokens: UPath,
        reports: Mapping[str, ShardReport],
        codec: str,
        vectors: Callable[[], CodeVectors] | None = None,
    ) -> tuple[dict[str, PackedShard], Lease]:
        """Return the packed shards of these reports, by stem and in order, packing those that are missing.

        Args:
            vectors: returns those of the codec's codes, for `PackedShard.profiles`. Called if something is packed.

        Raises:
            TokensError: a shard is damaged or of another codec, the disk is full, or the folder isn't writable.
        """
        entries = {stem: self.entry(stem, codec, report, vectors is not None) for stem, report in reports.items()}
        lease = self._lease(entries.values())  # first, so that entries found below aren't evicted
        shards = self._open(entries, reports)
        if len(shards) < len(entries):
            with self._filling():
                shards |= self._open({stem: entries[stem] for stem in entries if stem not in shards}, reports)
                if missing := [stem for stem in entries if stem not in shards]:
                    self._make_room(sum(_packed_bytes(reports[stem], codec) for stem in missing))
                    logger.info("packing %s of %s into %s", counted(len(missing), "shard"), tokens, self.folder)
                    with self._explained(), ThreadPoolExecutor(THREADS, "pack") as pool:
                        make = partial(_make, tokens, codec=codec, vectors=None if vectors is None else vectors())
                        made = pool.map(lambda stem: make(stem, report=reports[stem], entry=entries[stem]), missing)
                        shards |= dict(zip(missing, made, strict=True))
                    pa.default_memory_pool().release_unused()
        return {stem: shards[stem] for stem in entries}, lease

    def _lease(self, entries: Iterable[Path]) -> Lease:
        try:
            return Lease(self.folder / "leases", entries)
        except OSError as error:
            raise TokensError(
                message(
                    "packed tokens can't be written to {folder} ({reason})", folder=self.folder, reason=reason_of(error)
                ),
                _ANOTHER_FOLDER,
            ) from error

    def _open(self, entries: Mapping[str, Path], reports: Mapping[str, ShardReport]) -> dict[str, PackedShard]:
        with ThreadPoolExecutor(THREADS, "open") as pool:
            shards = list(pool.map(lambda stem: open_packed(entries[stem], reports[stem].clips), entries))
        found = {stem: shard for stem, shard in zip(entries, shards, strict=True) if shard is not None}
        for shard in found.values():
            with suppress(OSError):
                os.utime(shard.path)  # most recently used
        return found

    @contextmanager
    def _filling(self) -> Iterator[None]:
        """Hold the fill lock, so that the ranks of a run don't each fetch and pack everything."""
        with open(self.folder / ".lock", "a", opener=storage.open_file_alone) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for another process that fills %s", self.folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, needed: int) -> None:
        """Evict least recently used entries until there is room for `needed` more bytes."""
        storage.delete_partials(UPath(self.folder))
        leased = self._leased()
        unused, held = [], 0
        for path in filter(_is_entry, self.folder.glob("*.arrow")):
            with suppress(FileNotFoundError):
                status = path.stat()
                held += status.st_size
                if path.name not in leased:
                    unused.append((status.st_mtime_ns, status.st_size, path))
        free = shutil.disk_usage(self.folder).free
        if needed > (room := free + sum(size for _, size, _ in unused)):
            raise TokensError(
                message(
                    "packing the tokens takes {needed} in {folder}, where {room} are free",
                    needed=sized(needed),
                    folder=self.folder,
                    room=sized(room),
                ),
                _ANOTHER_FOLDER,
            )
        for _, size, path in sorted(unused):
            if held + needed <= self.limit and needed <= free:
                break
            path.unlink(missing_ok=True)
            held, free = held - size, free + size

    def _leased(self) -> set[str]:
        """Return the names of leased entries, and remove leases of processes that have ended."""
        names: set[str] = set()
        for path in (self.folder / "leases").glob("[!.]*"):
            with suppress(OSError, UnicodeDecodeError), open(path, "r+") as lease:
                if not all(map(_ENTRY.fullmatch, lease.read().split("\n"))):
                    continue  # another program's file
                lease.seek(0)
                try:
                    fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    names.update(lease.read().split("\n"))
                else:
                    path.unlink(missing_ok=True)
        return names

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            places = f"{self.folder}, where tokens are packed, or {tempfile.gettempdir()}, where they are fetched to"
            raise TokensError(
                message("no room is left in {places} ({reason})", places=places, reason=reason_of(error)),
                _ANOTHER_FOLDER,
            ) from error


def _is_entry(path: Path) -> bool:
    """Return whether a file is a cache entry: the folder may contain other programs' Arrow files."""
    return bool(_ENTRY.fullmatch(path.name)) and path.is_file() and not holds_other_data(path)


def _packed_bytes(report: ShardReport, codec: str) -> int:
    """Estimate the packed size of a shard: 2 bytes per code, and some per clip for its texts, hash and fingerprints."""
    codebooks = (STEREO if codec.endswith(STEREO_SUFFIX) else MONO).codebooks
    return round(report.audio_seconds * FRAME_RATE) * codebooks * 2 + 896 * report.clips


def _make(
    tokens: UPath,
    stem: str,
    codec: str,
    report: ShardReport,
    entry: Path,
    vectors: CodeVectors | None,
) -> PackedShard:
    with (
        storage.staged(shard_paths(tokens, stem)[0]) as parquet,
        storage.publish(UPath(entry)) as beside,
        open(beside, "wb") as file,
    ):
        if pack_shard(parquet, stem, codec, file, vectors) != report.clips:
            raise TokensError(
                message("the shard {name} changed while it was read", name=parquet.name),
                message("Run again when tokenize is done"),
            )
    shard = open_packed(entry, report.clips)
    if shard is None:
        raise TokensError(
            message("{entry}, just written, can't be read back", entry=entry),
            message("Check the disk, or set {folder_variable} to another folder", folder_variable=FOLDER_VARIABLE),
        )
    return shard
