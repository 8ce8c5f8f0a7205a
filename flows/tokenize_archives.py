"""`tokenize-archives`: archives of wavs → shards of codes, one task an archive."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_table_artifact
from prefect.client.schemas import State
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from upath import UPath

from flows.parameters import (
    DEFAULT_MODEL,
    Archives,
    Device,
    Limit,
    MaxWorkers,
    Metadata,
    Model,
    Tokens,
    place,
    run_name,
)
from musicgen_core import storage
from musicgen_core.data.archive import archive_stem, clip_names, find_archives
from musicgen_core.data.captions import check_matches, load_captions
from musicgen_core.data.shards import ShardReport, read_report
from musicgen_core.errors import ArchiveError
from tasks.keys import export_secrets
from tasks.progress import Update, report
from tasks.tokenizing import stop_tokenizing, tokenize_archive
from tasks.tokenizing_log import TokenizingLog, log_tokenizing


@dataclass(frozen=True)
class TokenizeResult:
    """Where the shards are, the report of each archive that worked, and why each other did not."""

    tokens: str
    reports: list[ShardReport]
    failed: dict[str, str]


@flow(name="tokenize-archives", flow_run_name=run_name("tokenize-archives", "archives"))
def tokenize_archives(
    archives: Archives = None,
    tokens: Tokens = None,
    metadata: Metadata = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    limit: Limit = None,
    max_workers: MaxWorkers = None,
) -> State[TokenizeResult]:
    """Tokenize every clip of every archive with EnCodec, a task an archive; what is done already is kept."""
    export_secrets()
    found = find_archives(place(archives, "musicgen_archives"))
    target = place(tokens, "musicgen_tokens")
    captions = _find_metadata(metadata, found[0])
    limits = _spread_limit(found, limit)
    work = [
        {
            "archive": str(archive),
            "stem": archive_stem(archive),
            "tokens": target,
            "model": model,
            "device": device,
            "metadata": captions,
            "limit": limits[archive],
            "flow_run": str(runtime.flow_run.id),
        }
        for archive in found
        if archive in limits
    ]
    get_run_logger().info("%d archives, metadata: %s", len(work), captions or "none")
    reports, failed = _tokenize_all(work, storage.as_path(target), max_workers)
    _show(reports, failed)
    result = TokenizeResult(target, reports, failed)
    if failed:
        reasons = "; ".join(f"{stem}: {reason}" for stem, reason in failed.items())
        return Failed(message=f"{len(failed)} of {len(work)} archives failed: {reasons}", data=result)
    return Completed(message=f"{sum(shard.clips for shard in reports):,} clips in {target}", data=result)


def _find_metadata(given: str | None, first_archive: UPath) -> str | None:
    beside = first_archive.parent / "metadata.jsonl"
    return given or (str(beside) if beside.exists() else None)


def _spread_limit(archives: Sequence[UPath], limit: int | None) -> dict[UPath, int | None]:
    """The archives to take and how many clips of each: None for all of them."""
    if limit is None:
        return dict.fromkeys(archives)
    limits: dict[UPath, int | None] = {}
    left = limit
    for archive in archives:
        if left <= 0:
            break
        clips = _count_clips(archive)
        limits[archive] = None if clips <= left else left
        left -= clips
    return limits


def _count_clips(archive: UPath) -> int:
    try:
        return len(clip_names(archive))
    except ArchiveError:
        return 0  # its task says what is wrong with it


def _tokenize_all(
    work: list[dict[str, Any]], tokens: UPath, max_workers: int | None
) -> tuple[list[ShardReport], dict[str, str]]:
    """→ reports of the archives that worked, and the reasons of those that failed, by stem."""
    _check_captions(work)
    report(Update("tokenize", "", 0, len(work)))
    workers = max_workers or min(4, os.cpu_count() or 1)
    with (
        ThreadPoolTaskRunner[Any](max_workers=workers) as runner,
        log_tokenizing(str(tokens), len(work)) as log,
    ):
        try:
            futures = {entry["stem"]: runner.submit(tokenize_archive, entry) for entry in work}
            reports, failed = _collect(futures, log)
            # A persisted result knows nothing of the shard that it told of: redo what is missing or damaged.
            again = tokenize_archive.with_options(refresh_cache=True)
            stale = [entry for entry in work if _is_stale(reports.get(entry["stem"]), tokens, entry["stem"])]
            redone, failed_again = _collect({entry["stem"]: runner.submit(again, entry) for entry in stale}, log)
            reports, failed = reports | redone, failed | failed_again
        except BaseException:
            stop_tokenizing(work[0]["flow_run"])  # the threads would outlive a cancelled run
            raise
    return [reports[stem] for stem in futures if stem in reports and stem not in failed], failed


def _collect(
    futures: Mapping[str, PrefectFuture[Any]], log: TokenizingLog
) -> tuple[dict[str, ShardReport], dict[str, str]]:
    """Outcomes as they come → reports and reasons of failure, by stem."""
    stems = {future.task_run_id: stem for stem, future in futures.items()}
    reports: dict[str, ShardReport] = {}
    failed: dict[str, str] = {}
    for future in as_completed(list(futures.values())):
        stem, outcome = stems[future.task_run_id], future.result(raise_on_failure=False)
        if isinstance(outcome, ShardReport):
            reports[stem] = outcome
            clips = outcome.clips + len(outcome.rejected)
            report(Update("tokenize", stem, clips, clips))  # cached ones have said nothing themselves
        else:
            failed[stem] = str(outcome) or type(outcome).__name__
        log.add(stem, reports.get(stem))
    return reports, failed


def _is_stale(shard: ShardReport | None, tokens: UPath, stem: str) -> bool:
    return shard is not None and read_report(tokens, stem) != shard


def _check_captions(work: list[dict[str, Any]]) -> None:
    """Stop before the first archive is encoded if the metadata match no clip at all."""
    metadata = work[0]["metadata"]
    if metadata is None:
        return
    captions = load_captions(storage.as_path(metadata))
    if captions.broken_lines:
        numbers = ", ".join(map(str, captions.broken_lines[:10]))
        get_run_logger().warning("%d lines of %s can't be used: %s", len(captions.broken_lines), metadata, numbers)

    def names() -> Any:
        for entry in work:
            try:
                yield entry["stem"], clip_names(storage.as_path(entry["archive"]))
            except ArchiveError:
                continue

    check_matches(captions, names())


def _show(reports: Sequence[ShardReport], failed: dict[str, str]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "archive": shard.archive,
            "clips": shard.clips,
            "rejected": len(shard.rejected),
            "audio seconds": round(shard.audio_seconds),
            "problem": "; ".join(f"{entry.clip}: {entry.reason}" for entry in shard.rejected[:3]),
        }
        for shard in reports
    ]
    rows += [
        {"archive": stem, "clips": 0, "rejected": 0, "audio seconds": 0, "problem": why} for stem, why in failed.items()
    ]
    create_table_artifact(rows, key="tokenized-archives", description="Clips and rejections of each archive")
