"""`tokenize-archives`: archives of wavs → shards of codes, one task per archive."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from prefect import get_run_logger, runtime
from prefect.client.schemas import State
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed, Failed
from upath import UPath

from flows.decorator import form_flow
from flows.locations import chosen_device, chosen_model, location_of, run_name
from flows.parameters import TokenizeParameters, archives_at_a_time
from flows.runners import call_everywhere
from flows.runners import task_runner as make_task_runner
from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import ArchiveFile, archive_stem, choose_archives, clip_names
from musicgen_core.data.captions import Captioner, Captions, load_captions, metadata_beside
from musicgen_core.data.match_report import check_matches, match_report, undescribed_clips
from musicgen_core.data.members import limits_of
from musicgen_core.data.shards import ShardReport, described_clips, is_whole, was_repaired
from musicgen_core.errors import ArchiveError, DeviceError, MusicgenError, StorageError
from musicgen_core.language import message, stored_message
from musicgen_core.settings import collect
from musicgen_core.stages import announce
from musicgen_core.wording import counted, joined_sentences
from tasks.artifacts import artifacts_of_run
from tasks.outcomes import no_descriptions, tokenized
from tasks.summary import show_summary, tokenized_section
from tasks.tokenizing import check_codec, concerns_all, stop_tokenizing, tokenize_archive
from tasks.tokenizing_log import TokenizingLog, log_tokenizing

_SHOWN = 3
_core_logger = logging.getLogger("musicgen_core.tokenizing")  # the terminal shows what the core logs
Work = dict[str, Any]
"""Parameters of one archive's task"""
_Described = Sequence[tuple[str, str | None]]
"""Clips of a shard and their descriptions"""


@dataclass(frozen=True)
class TokenizeResult:
    """The result of a `tokenize-archives` run: its shards, failed archives and remarks.

    Attributes:
        reports: reports of the archives that were tokenized.
        failed: reasons of the failed archives, by path.
        remarks: sentences on clips and descriptions that need attention.
        notice: that no clip has a description; may be empty.
        is_announced: whether a warning at the start said so already.
    """

    tokens: str
    reports: list[ShardReport]
    failed: dict[str, str]
    remarks: list[str] = field(default_factory=list)
    notice: str = ""
    is_announced: bool = False


class ArchivesFailed(ArchiveError):
    """Archives could not be tokenized; `result` has the reasons, and the reports of the others."""

    def __init__(self, reasons: str, result: TokenizeResult) -> None:
        super().__init__(
            reasons, message("Do what each reason says, then run or retry again: finished archives are kept")
        )
        self.args = (reasons, result)  # arguments for unpickling
        self.result = result

    @property
    def unnamed(self) -> dict[str, str]:
        """Return the reasons of those failed archives that the error message only counts."""
        return dict(list(self.result.failed.items())[_SHOWN:])


@form_flow(
    name="tokenize-archives",
    form=TokenizeParameters,
    flow_run_name=run_name("tokenize-archives", "archives", "musicgen_archives"),
)
def tokenize_archives(given: TokenizeParameters) -> State[TokenizeResult]:
    """Tokenize every clip of every archive with EnCodec, one task per archive; finished shards are kept."""
    on = {"model": given.model, "device": given.device}
    settings = collect(TokenizeSettings, given)
    model, device = chosen_model(given.model), chosen_device(given.device)
    announce(message("looking into the archives"))
    found, left_out = choose_archives(_absolute(location_of(given.archives, "musicgen_archives")))
    _warn_in_terminal(left_out)
    target = _absolute(location_of(given.tokens, "musicgen_tokens"))
    storage.make_folder(storage.as_path(target))
    runner = make_task_runner(
        given.workers.task_runner, archives_at_a_time(given.workers.max_workers), given.workers.dask_address, target
    )
    described_by = _find_metadata(given.metadata, found[0])
    limits = _spread_limit(found, given.limit or None, settings)
    work: list[Work] = [
        {
            "archive": str(archive),
            "stem": archive_stem(archive),
            "tokens": target,
            "model": model,
            "settings": settings,
            "device": device,
            "metadata": described_by,
            "limit": limits[archive],
            "flow_run": f"{runtime.flow_run.id}-{runtime.flow_run.run_count}",  # stopping it must not stop its retry
        }
        for archive in found
        if archive in limits
    ]
    get_run_logger().info("%s, metadata: %s", counted(len(work), "archive"), described_by or "none")
    captions = load_captions(storage.as_path(described_by), settings) if described_by else None
    if captions is not None:
        announce(message("comparing descriptions with clips"))
        check_matches(captions, ((archive_stem(archive), _names_in(archive, settings)) for archive in limits))
    if undescribed := undescribed_clips(list(limits), Captioner(settings, captions)):
        _core_logger.warning("%s", no_descriptions(undescribed))
    if given.workers.task_runner == "threads":  # a cluster's workers have their own caches and GPUs
        check_codec(model, device)
    with runner, log_tokenizing(target, [entry["stem"] for entry in work]) as log:
        reports, failed = _tokenize_all(work, runner, storage.as_path(target), log)
    failed = {str(entry["archive"]): failed[entry["stem"]] for entry in work if entry["stem"] in failed}
    announce(message("looking for clips without a description"))
    are_all = not given.limit and not failed
    folder = storage.as_path(target)
    described = {report.archive: described_clips(folder, archive_stem(UPath(report.archive))) for report in reports}
    remarks = list(_remarks(captions, reports, described, are_all))
    for remark in remarks:
        get_run_logger().warning("%s", remark)
    result = TokenizeResult(
        target, reports, failed, [*left_out, *remarks], _notice(described), is_announced=bool(undescribed)
    )
    with artifacts_of_run() as artifacts:
        show_summary(
            artifacts,
            partial(tokenized_section, target, reports, failed, result.remarks),
            outcome=partial(tokenized, target, len(reports), on, result.notice, len(failed)),
            again="Fix what is listed, then tokenize again, which keeps finished archives" if failed else "",
        )
    if failed:
        reasons = message(
            "{failed} of {archives} failed: {reasons}",
            failed=len(failed),
            archives=counted(len(work), "archive"),
            reasons=_first_reasons(failed),
        )
        return Failed(message=str(reasons), data=ArchivesFailed(reasons, result))
    clips = counted(sum(shard.clips for shard in reports), "clip")
    return Completed(message=message("tokenized {clips} into {target}", clips=clips, target=target), data=result)


def _warn_in_terminal(remarks: Sequence[str]) -> None:
    """Log the first few remarks and the number of others, also in the terminal: the run may fail before its table."""
    for remark in remarks[:_SHOWN]:
        _core_logger.warning("%s", remark)
    if len(remarks) > _SHOWN:
        _core_logger.warning("and %d more of this kind, listed in the run's summary", len(remarks) - _SHOWN)


def _first_reasons(failed: Mapping[str, str]) -> str:
    """Return the reasons of the first few failed archives, and the number of others."""
    reasons = [
        stored_message(f"{path}{reason.removeprefix(name)}")
        if reason.startswith(name := storage.as_path(path).name)
        else message("{subject}: {found}", subject=path, found=stored_message(reason))
        for path, reason in failed.items()
    ]
    more = [message("and {number:,} more", number=len(reasons) - _SHOWN)] if len(reasons) > _SHOWN else []
    return joined_sentences([*reasons[:_SHOWN], *more])


def _absolute(location: str) -> str:
    return str(storage.as_path(location).absolute())  # the process of a task may be in another directory


def _find_metadata(given: str, first_archive: UPath) -> str | None:
    if given:
        return _absolute(given)
    beside = metadata_beside(first_archive)
    return None if beside is None else str(beside)


def _spread_limit(archives: Sequence[UPath], limit: int | None, settings: TokenizeSettings) -> dict[UPath, int | None]:
    """Return the archives to tokenize, each with its limit of clips; None: no limit."""
    if limit is None:
        return dict.fromkeys(archives)
    limits: dict[UPath, int | None] = {}
    left = limit
    for archive in archives:
        if left <= 0:
            break
        clips = len(_names_in(archive, settings))
        limits[archive] = None if clips <= left else left
        left -= clips
    return limits


def _names_in(archive: UPath, settings: TokenizeSettings) -> list[str]:
    try:
        return clip_names(archive, settings.name_encoding, limits_of(settings))
    except ArchiveError:
        return []  # its task reports the error


def _tokenize_all(
    work: Sequence[Work], runner: Any, tokens: UPath, log: TokenizingLog
) -> tuple[list[ShardReport], dict[str, str]]:
    """Return the reports of tokenized archives, and the reasons of failed ones by stem, both in archive order."""
    announce(message("encoding the clips"))
    try:
        futures = {entry["stem"]: runner.submit(tokenize_archive, entry) for entry in work}
        reports, failed, cached = _collect(futures, log)
        # A persisted result does not track its shard: redo shards that are missing, damaged or out of date.
        again = tokenize_archive.with_options(refresh_cache=True)
        stale = [entry for entry in work if entry["stem"] in cached and _is_stale(reports[entry["stem"]], entry)]
        redone, failed_again, _ = _collect({entry["stem"]: runner.submit(again, entry) for entry in stale}, log)
    except BaseException:
        call_everywhere(runner, stop_tokenizing, work[0]["flow_run"])  # the tasks would outlive a cancelled run
        raise
    reports |= redone
    failed |= failed_again
    done = [reports[stem] for stem in futures if stem in reports and stem not in failed]
    return done, {stem: failed[stem] for stem in futures if stem in failed}


def _collect(
    futures: Mapping[str, PrefectFuture[Any]], log: TokenizingLog
) -> tuple[dict[str, ShardReport], dict[str, str], set[str]]:
    """Wait for all tasks; return reports and reasons of failure, both by stem, and the stems of cached results."""
    stems = {future.task_run_id: stem for stem, future in futures.items()}
    reports: dict[str, ShardReport] = {}
    failed: dict[str, str] = {}
    cached: set[str] = set()
    for future in as_completed(list(futures.values())):
        stem, outcome = stems[future.task_run_id], _outcome(future)
        if isinstance(outcome, ShardReport):
            reports[stem] = outcome
            if future.state.name == "Cached":
                cached.add(stem)
        elif concerns_all(outcome):
            raise _not_of_the_archive(outcome, stem)
        else:
            failed[stem] = str(outcome) or type(outcome).__name__
        log.end(stem, reports.get(stem), stem in cached, failed.get(stem, ""))
    return reports, failed, cached


def _outcome(future: PrefectFuture[Any]) -> Any:
    """Return the value that a task returned, or the exception that it raised."""
    try:
        return future.result(raise_on_failure=False)
    except Exception as error:  # from Dask: the task killed one worker after another, or the scheduler is gone
        return error


def _not_of_the_archive(error: Exception, stem: str) -> Exception:
    """Return the error of the whole run, for an error that every other archive would meet, too."""
    if isinstance(error, OSError):
        where = message(" at {path}", path=error.filename) if error.filename else ""
        return StorageError(
            message("no space left{where} while tokenizing {archive}", where=where, archive=stem),
            message("Make room and run or retry again: archives that are complete are kept"),
        )
    if isinstance(error, MusicgenError):
        return error
    return DeviceError(
        message("the GPU failed while tokenizing {archive} ({error})", archive=stem, error=error),
        message("Check the GPU with nvidia-smi, and run again"),
    )


def _is_stale(report: ShardReport, work: Work) -> bool:
    archive, settings = storage.as_path(work["archive"]), work["settings"]
    try:
        whole = is_whole(storage.as_path(work["tokens"]), work["stem"], report)
        with ArchiveFile(archive, limits_of(settings), settings.name_encoding) as file:
            return not whole or was_repaired(file, report)
    except (MusicgenError, OSError):
        return True  # the task meets the same error, and has retries


def _notice(described: Mapping[str, _Described]) -> str:
    """Return the notice for shards in which no clip has a description; else an empty string."""
    texts = [text for clips in described.values() for _, text in clips]
    if not texts or any(texts):
        return ""
    return no_descriptions(message("none of the {clips}", clips=counted(len(texts), "clip")))


def _remarks(
    captions: Captions | None, reports: Sequence[ShardReport], described: Mapping[str, _Described], are_all: bool
) -> Iterator[str]:
    """Yield remarks on clips and their descriptions, one sentence each."""
    names: list[tuple[str, str]] = []
    undescribed = 0
    for report in reports:
        if not report.clips and not report.rejected:
            yield message("{archive} holds no .wav", archive=report.archive)
        clips = described[report.archive]
        stem = archive_stem(UPath(report.archive))
        names += [(stem, name) for name in chain((name for name, _ in clips), (each.clip for each in report.rejected))]
        undescribed += sum(description is None for _, description in clips)
    if captions is not None:
        yield from match_report(captions, names, are_all).lines()
    noted = [f"{report.archive}: {each.clip}: {each.remark}" for report in reports for each in report.remarks]
    if noted:
        shown = noted[:_SHOWN]
        if (more := len(noted) - _SHOWN) > 0:
            shown.append(message("and {number:,} more, listed in the .json of each shard", number=more))
        yield message("descriptions, {number:,} to look at: {names}", number=len(noted), names=joined_sentences(shown))
    total = sum(report.clips for report in reports)
    if 0 < undescribed < total:
        yield message(
            "{number:,} of {clips} have no description: they are learnt without a text",
            number=undescribed,
            clips=counted(total, "clip"),
        )
