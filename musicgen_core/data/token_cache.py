"""Where packed shards are kept: a folder of the user's cache, so that a restart or a second training begins at once.

Each entry is a file named by what its shard's report says, so it never has to be changed: other content is another
entry. Trainings may share the folder. What a training reads is leased to it; of the rest, the entries that were used
longest ago give way when the folder grows beyond its limit or the disk has no room for new ones.
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
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from platformdirs import user_cache_path
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import CODEBOOKS, FRAME_RATE
from musicgen_core.data.packed_shards import VERSION, PackedShard, holds_other_data, open_packed, pack_shard
from musicgen_core.data.shards import ShardReport, shard_paths
from musicgen_core.errors import TokensError, reason_of
from musicgen_core.language import message
from musicgen_core.wording import counted, sized

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "MUSICGEN_TOKENS_CACHE"
LIMIT = 50 * 10**9  # bytes: 30 times the users' 139 archives
THREADS = 8  # shards fetched and packed at a time: remote ones are a matter of waiting
_ENTRY = re.compile(r"[0-9a-f]{32}\.arrow")
_PARTIAL = re.compile(r"[0-9a-f]{32}\.arrow\.\d+-[0-9a-f]{8}\.partial")
_ANOTHER_FOLDER = f"Free some room, or set {FOLDER_VARIABLE} to a folder on a larger local disk"


def default_folder() -> Path:
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser() if given else user_cache_path("musicgen-flows") / "tokens"


class Lease:
    """Keeps entries from being removed, until this object is gone or its process has ended."""

    def __init__(self, folder: Path, entries: Iterable[Path]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, hidden = tempfile.mkstemp(prefix=".", dir=folder)  # not to be found before it is locked
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        Path(hidden).write_text("\n".join(entry.name for entry in entries), encoding="utf-8")
        self.path = folder / Path(hidden).name.removeprefix(".")
        os.replace(hidden, self.path)
        weakref.finalize(self, _release, descriptor, self.path)


def _release(descriptor: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    os.close(descriptor)


class TokenCache:
    """The packed shards in one folder.

    Args:
        folder: made if it is not there; by default the user's cache, or what MUSICGEN_TOKENS_CACHE says.
        limit: bytes that entries may take. Those in use may take more.
    """

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        self.folder = folder or default_folder()
        self.limit = limit

    def entry(self, stem: str, codec: str, report: ShardReport) -> Path:
        """The file of a shard with this report."""
        # All of the report: a fresh copy of a damaged archive has its fingerprint, but more clips.
        content = json.dumps([VERSION, stem, codec, asdict(report)], sort_keys=True)
        return self.folder / f"{hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}.arrow"

    def packed(
        self, tokens: UPath, reports: Mapping[str, ShardReport], codec: str
    ) -> tuple[dict[str, PackedShard], Lease]:
        """The shards with these reports, by their stems and in their order; those that are not there yet are made.

        Raises:
            TokensError: a shard is damaged or of another codec; no room is left; the folder can't be written to.
        """
        entries = {stem: self.entry(stem, codec, report) for stem, report in reports.items()}
        lease = self._lease(entries.values())  # first: nothing found is then taken away
        shards = self._open(entries, reports)
        if len(shards) < len(entries):
            with self._filling():
                shards |= self._open({stem: entries[stem] for stem in entries if stem not in shards}, reports)
                if missing := [stem for stem in entries if stem not in shards]:
                    self._make_room(sum(_packed_bytes(reports[stem]) for stem in missing))
                    logger.info("packing %s of %s into %s", counted(len(missing), "shard"), tokens, self.folder)
                    with self._explained(), ThreadPoolExecutor(THREADS, "pack") as pool:
                        made = pool.map(lambda stem: _make(tokens, stem, codec, reports[stem], entries[stem]), missing)
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
                os.utime(shard.path)  # used last now
        return found

    @contextmanager
    def _filling(self) -> Iterator[None]:
        """One process at a time: the ranks of a training would each fetch and pack everything."""
        with open(self.folder / ".lock", "a", opener=storage.open_file_alone) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for another process that fills %s", self.folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, needed: int) -> None:
        """Remove what was used longest ago, as far as `needed` more bytes ask for it."""
        for left in self.folder.glob("*.partial"):  # of a process that was killed: no other is writing now
            if _PARTIAL.fullmatch(left.name):
                left.unlink(missing_ok=True)
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
        """Names of the entries in use. Leases of processes that have ended are removed."""
        names: set[str] = set()
        for path in (self.folder / "leases").glob("[!.]*"):
            with suppress(OSError, UnicodeDecodeError), open(path, "r+") as lease:
                if not all(map(_ENTRY.fullmatch, lease.read().split("\n"))):
                    continue  # somebody else's
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
    """Whether a file of the folder is the cache's: it may be somebody else's folder, with other Arrow files in it."""
    return bool(_ENTRY.fullmatch(path.name)) and path.is_file() and not holds_other_data(path)


def _packed_bytes(report: ShardReport) -> int:
    """About what a shard takes: 2 bytes a code, and some for each clip's description and hash."""
    return round(report.audio_seconds * FRAME_RATE) * CODEBOOKS * 2 + 512 * report.clips


def _make(tokens: UPath, stem: str, codec: str, report: ShardReport, entry: Path) -> PackedShard:
    with (
        storage.staged(shard_paths(tokens, stem)[0]) as parquet,
        storage.publish(UPath(entry)) as beside,
        open(beside, "wb") as file,
    ):
        if pack_shard(parquet, stem, codec, file) != report.clips:
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
