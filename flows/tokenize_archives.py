"""`tokenize-archives`: archives of clips → shards of codes, one task per archive."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from prefect import get_run_logger
from prefect.client.schemas import State
from prefect.states import Completed, Failed
from upath import UPath

from flows.archive_runs import (
    SHOWN,
    ArchivesFailed,
    Work,
    absolute,
    names_in,
    reasons_of_failure,
    run_on_archives,
    spread_limit,
    this_run,
    warn_in_terminal,
)
from flows.decorator import form_flow
from flows.locations import chosen_device, chosen_model, location_of, run_name
from flows.parameters import TokenizeParameters, archives_at_a_time
from flows.runners import task_runner as make_task_runner
from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import ArchiveFile, archive_stem, choose_archives
from musicgen_core.data.captions import Captioner, Captions, load_captions, metadata_beside
from musicgen_core.data.exclusion import check_exclusions
from musicgen_core.data.match_report import check_matches, match_report, undescribed_clips
from musicgen_core.data.members import limits_of
from musicgen_core.data.outdated_shards import lacks_clips, lacks_originals
from musicgen_core.data.shards import ShardReport, described_clips, is_whole, read_report
from musicgen_core.data.token_cache import THREADS
from musicgen_core.errors import MusicgenError
from musicgen_core.exclusions import DUPLICATE
from musicgen_core.language import message
from musicgen_core.separation.settings import separating_option
from musicgen_core.separation.weights import find_separator
from musicgen_core.settings import collect
from musicgen_core.stages import announce
from musicgen_core.wording import counted, joined_sentences
from tasks.archives_log import ArchivesLog, log_tokenizing
from tasks.artifacts import artifacts_of_run
from tasks.dataset_page import DATASET, dataset_artifact, page_of_tokens
from tasks.outcomes import no_descriptions, tokenized
from tasks.summary import show_summary, tokenized_section
from tasks.tokenizing import exclude_near_duplicates, load_models, tokenize_archive

_core_logger = logging.getLogger("musicgen_core.tokenizing")  # the terminal shows what the core logs
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
        page: path of the page of the clips; empty without clips.
    """

    tokens: str
    reports: list[ShardReport]
    failed: dict[str, str]
    remarks: list[str] = field(default_factory=list)
    notice: str = ""
    is_announced: bool = False
    page: str = ""


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
    if option := separating_option(settings.remove_vocals, settings.separate_melody):
        find_separator(option)  # fails before anything is read if Demucs or its weights are missing
    announce(message("looking into the archives"))
    found, left_out = choose_archives(absolute(location_of(given.archives, "musicgen_archives")))
    warn_in_terminal(left_out)
    target = absolute(location_of(given.tokens, "musicgen_tokens"))
    storage.make_folder(storage.as_path(target))
    runner = make_task_runner(
        given.workers.task_runner, archives_at_a_time(given.workers.max_workers), given.workers.dask_address, target
    )
    described_by = _find_metadata(given.metadata, found[0])
    limits = spread_limit(found, given.limit or None, settings)
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
            "flow_run": this_run(),
        }
        for archive in found
        if archive in limits
    ]
    get_run_logger().info("%s, metadata: %s", counted(len(work), "archive"), described_by or "none")
    captions = load_captions(storage.as_path(described_by), settings) if described_by else None
    if captions is not None:
        announce(message("comparing descriptions with clips"))
        check_matches(captions, ((archive_stem(archive), names_in(archive, settings)) for archive in limits))
    unmeasured = check_exclusions(
        captions,
        settings.exclude,
        ((archive_stem(archive), names_in(archive, settings)[: limits[archive]]) for archive in limits),
    )
    warn_in_terminal(unmeasured)
    if undescribed := undescribed_clips(list(limits), Captioner(settings, captions)):
        _core_logger.warning("%s", no_descriptions(undescribed))
    if given.workers.task_runner == "threads":  # a cluster's workers have their own caches and GPUs
        load_models(model, device, settings)
    folder = storage.as_path(target)
    stems = [entry["stem"] for entry in work]
    with ThreadPoolExecutor(THREADS) as pool:  # remote reads are latency-bound
        before = dict(zip(stems, pool.map(partial(read_report, folder), stems), strict=True))
    with runner, log_tokenizing(target, stems) as log:
        announce(message("encoding the clips"))
        # A persisted result does not track its shard: redo shards that are missing, damaged or out of date.
        reports, failed = run_on_archives(tokenize_archive, work, runner, log, _is_stale)
        if DUPLICATE in settings.exclude and not failed and any(report.clips for report in reports):
            announce(message("looking for near duplicates"))
            exclude_near_duplicates(target, model)
            reports = [_after_exclusion(report, target, log) for report in reports]
    failed = {str(entry["archive"]): failed[entry["stem"]] for entry in work if entry["stem"] in failed}
    announce(message("looking for clips without a description"))
    are_all = not given.limit and not failed
    described = {report.archive: described_clips(folder, archive_stem(UPath(report.archive))) for report in reports}
    kept = list(_already_tokenized(before, reports))
    for text in kept:
        get_run_logger().info("%s", text)
    remarks = list(_remarks(captions, reports, described, are_all))
    for remark in remarks:
        get_run_logger().warning("%s", remark)
    announce(message("looking for clips that stand out"))
    page = page_of_tokens(folder, reports, described_by, list(limits), settings, model)
    result = TokenizeResult(
        tokens=target,
        reports=reports,
        failed=failed,
        remarks=[*left_out, *kept, *unmeasured, *remarks],
        notice=_notice(described),
        is_announced=bool(undescribed),
        page=page.path if page else "",
    )
    with artifacts_of_run() as artifacts:
        if page is not None:
            artifacts.markdown(DATASET, partial(dataset_artifact, page), "The clips of the data set")
        show_summary(
            artifacts,
            partial(tokenized_section, target, reports, failed, result.remarks),
            outcome=partial(
                tokenized,
                target,
                sum(report.clips > 0 for report in reports),
                on,
                result.notice,
                len(failed),
                result.page,
            ),
            again="Fix what is listed, then tokenize again, which keeps finished archives" if failed else "",
        )
    if failed:
        reasons = reasons_of_failure(failed, counted(len(work), "archive"))
        return Failed(message=str(reasons), data=ArchivesFailed(reasons, result))
    clips = counted(sum(shard.clips for shard in reports), "clip")
    return Completed(message=message("tokenized {clips} into {target}", clips=clips, target=target), data=result)


def _find_metadata(given: str, first_archive: UPath) -> str | None:
    if given:
        return absolute(given)
    beside = metadata_beside(first_archive)
    return None if beside is None else str(beside)


def _after_exclusion(report: ShardReport, tokens: str, log: ArchivesLog) -> ShardReport:
    """Return the report of a shard after near duplicates were removed from it, if any were."""
    stem = archive_stem(UPath(report.archive))
    found = read_report(storage.as_path(tokens), stem)
    if found is None or found == report:
        return report
    log.end(stem, found)
    return found


def _already_tokenized(before: Mapping[str, ShardReport | None], reports: Sequence[ShardReport]) -> Iterator[str]:
    """Yield a remark on the archives whose codes were there already, and whether their descriptions are new."""
    found = [(before[archive_stem(UPath(report.archive))], report) for report in reports]
    same = [(earlier, report) for earlier, report in found if earlier and earlier.fingerprint == report.fingerprint]
    kept = [(earlier, report) for earlier, report in same if earlier.chroma == report.chroma]
    if len(kept) < len(same):
        yield message(
            "{archives} tokenized before: encoded again for the melodies that this model takes",
            archives=counted(len(same) - len(kept), "archive"),
        )
    if not kept:
        return
    updated = sum(earlier.captions_fingerprint != report.captions_fingerprint for earlier, report in kept)
    archives = counted(len(kept), "archive")
    if updated:
        yield message(
            "{archives} tokenized before: not encoded again, but the descriptions of {updated:,} are new",
            archives=archives,
            updated=updated,
        )
    else:
        yield message("{archives} tokenized before: not encoded again", archives=archives)


def _is_stale(report: ShardReport, work: Work) -> bool:
    archive, tokens, settings = storage.as_path(work["archive"]), storage.as_path(work["tokens"]), work["settings"]
    try:
        whole = is_whole(tokens, work["stem"], report) and not lacks_originals(tokens, report)
        with ArchiveFile(archive, limits_of(settings), settings.name_encoding) as file:
            return not whole or lacks_clips(file, report)
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
            yield message("{archive} holds no clips", archive=report.archive)
        clips = described[report.archive]
        stem = archive_stem(UPath(report.archive))
        names += [(stem, name) for name in chain((name for name, _ in clips), (each.clip for each in report.rejected))]
        undescribed += sum(description is None for _, description in clips)
    if captions is not None:
        yield from match_report(captions, names, are_all).lines()
    noted = [f"{report.archive}: {each.clip}: {each.remark}" for report in reports for each in report.remarks]
    if noted:
        shown = noted[:SHOWN]
        if (more := len(noted) - SHOWN) > 0:
            shown.append(message("and {number:,} more, listed in the .json of each shard", number=more))
        yield message("descriptions, {number:,} to look at: {names}", number=len(noted), names=joined_sentences(shown))
    total = sum(report.clips for report in reports)
    if 0 < undescribed < total:
        yield message(
            "{number:,} of {clips} have no description: they are trained on without a text",
            number=undescribed,
            clips=counted(total, "clip"),
        )
