"""`caption-archives`: archives of clips → `metadata.jsonl` with a description of each clip, one task per archive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from prefect import get_run_logger
from prefect.client.schemas import State
from prefect.states import Completed, Failed
from upath import UPath

from flows.archive_runs import (
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
from flows.locations import chosen_device, location_of, run_name
from flows.parameters import CaptionParameters, archives_at_a_time
from flows.runners import task_runner as make_task_runner
from musicgen_core import storage
from musicgen_core.captioning.metadata import (
    ExistingMetadata,
    MeasuredArchive,
    MeasuredClip,
    Merged,
    check_writable,
    merge,
    write,
)
from musicgen_core.captioning.tagger_settings import TaggerSettings
from musicgen_core.captioning.taggers import find_tagger
from musicgen_core.captioning.versions import measured_by
from musicgen_core.config import ReadingSettings, TokenizeSettings
from musicgen_core.data.archive import archive_stem, choose_archives, open_archive
from musicgen_core.data.captions import METADATA, Captioner, listed, load_captions
from musicgen_core.data.members import limits_of, sidecar_key
from musicgen_core.errors import ArchiveError
from musicgen_core.language import message
from musicgen_core.settings import collect
from musicgen_core.stages import announce
from musicgen_core.wording import counted
from tasks.archives_log import CAPTIONING, log_archives
from tasks.artifacts import artifacts_of_run
from tasks.captioning import CaptionResult, measure_clips
from tasks.dataset_page import DATASET, dataset_artifact, page_of_captions
from tasks.outcomes import captioned
from tasks.summary import captioned_section, show_summary


@form_flow(
    name="caption-archives",
    form=CaptionParameters,
    flow_run_name=run_name("caption-archives", "archives", "musicgen_archives"),
)
def caption_archives(given: CaptionParameters) -> State[CaptionResult]:
    """Measure every clip of every archive, and write a metadata.jsonl with descriptions; those that are there stay."""
    reading, device = collect(ReadingSettings, given), chosen_device(given.device)
    announce(message("looking into the archives"))
    location = absolute(location_of(given.archives, "musicgen_archives"))
    found, left_out = choose_archives(location)
    tagger = find_tagger(collect(TaggerSettings, given))
    target = _target(given.metadata, found[0])
    runner = make_task_runner(
        given.workers.task_runner,
        archives_at_a_time(given.workers.max_workers),
        given.workers.dask_address,
        str(storage.as_path(target).parent),
    )
    check_writable(storage.as_path(target))
    limits = spread_limit(found, given.limit or None, reading)
    existing = ExistingMetadata(storage.as_path(target))
    left_out = [*_unusable(target, existing), *left_out]
    warn_in_terminal(left_out)
    complete = [] if given.overwrite else list(_complete(existing, list(limits), reading, given.only_missing))
    done = {archive_stem(UPath(each.archive)) for each in complete}
    work: list[Work] = [
        {
            "archive": str(archive),
            "stem": archive_stem(archive),
            "reading": reading,
            "tagger": tagger,
            "device": device,
            "limit": limits[archive],
            "flow_run": this_run(),
        }
        for archive in limits
        if archive_stem(archive) not in done
    ]
    get_run_logger().info(
        "%s to measure, %d with captions already; metadata: %s", counted(len(work), "archive"), len(complete), target
    )
    measured: list[MeasuredArchive] = []
    failed: dict[str, str] = {}
    if work:
        with runner, log_archives(CAPTIONING, [entry["stem"] for entry in work]) as log:
            announce(message("measuring the clips"))
            measured, failed = run_on_archives(measure_clips, work, runner, log, _lacks_clips)
    failed = {str(entry["archive"]): failed[entry["stem"]] for entry in work if entry["stem"] in failed}
    announce(message("writing the captions"))
    by_stem = {archive_stem(UPath(each.archive)): each for each in [*complete, *measured]}
    stems = [archive_stem(archive) for archive in limits]
    in_order = [by_stem[stem] for stem in stems if stem in by_stem]
    existing = ExistingMetadata(storage.as_path(target))  # again: it may have been corrected in the meantime
    merged = merge(existing, in_order, measured_by(tagger.name), given.overwrite)
    if measured and merged.lines:
        write(storage.as_path(target), merged.lines)
    announce(message("looking for clips that stand out"))
    page = page_of_captions(storage.as_path(target), merged, measured, list(limits), reading)
    result = replace(
        _result(target, len(limits) - len(failed), merged, measured, failed, left_out), page=page.path if page else ""
    )
    with artifacts_of_run() as artifacts:
        if page is not None:
            artifacts.markdown(DATASET, partial(dataset_artifact, page), "The clips of the data set")
        show_summary(
            artifacts,
            partial(captioned_section, result),
            outcome=partial(captioned, target, location, len(failed), result.page, result.clips),
            again="Fix what is listed, then caption again, which keeps finished archives" if failed else "",
        )
    if failed:
        reasons = reasons_of_failure(failed, counted(len(limits), "archive"))
        return Failed(message=str(reasons), data=ArchivesFailed(reasons, result))
    clips = counted(result.clips, "clip")
    return Completed(message=message("captioned {clips} in {target}", clips=clips, target=target), data=result)


def _unusable(target: str, existing: ExistingMetadata) -> list[str]:
    """Return remarks on lines of the metadata file that are no JSON objects with a path, and on wrong values."""
    remarks: list[str] = [message("{subject}: {found}", subject=target, found=text) for text in existing.wrong.lines()]
    if broken := existing.broken:
        remarks.append(
            message(
                "{path}: {lines} can't be used: no JSON object with a path ({numbers}); the clips get new lines, and "
                "these stay at the end",
                path=target,
                lines=counted(len(broken), "line"),
                numbers=listed(broken),
            )
        )
    return remarks


def lacks_descriptions(archives: Sequence[UPath], metadata: UPath, settings: TokenizeSettings) -> bool:
    """Return whether an archive has clips to which the settings, the metadata and the files beside give no description.

    Raises:
        MetadataError: the metadata can't be used with these settings.
    """
    captions = load_captions(metadata, settings) if metadata.exists() else None
    own = settings.model_copy(update={"caption_prefix": None})
    for archive in archives:
        with suppress(ArchiveError, OSError), open_archive(archive, limits_of(own), own.name_encoding) as opened:
            names, sidecars = list(opened.clip_names()), opened.read_sidecars()
            captioner = Captioner(own, captions, archive_stem(archive))
            if not all(captioner.describe(name, *sidecars.get(sidecar_key(name), ())) for name in names):
                return True
    return False


def _target(metadata: str, first_archive: UPath) -> str:
    return absolute(metadata) if metadata else str(first_archive.parent / METADATA)


def _complete(
    existing: ExistingMetadata, archives: Sequence[UPath], reading: ReadingSettings, only_missing: bool
) -> Iterator[MeasuredArchive]:
    """Yield the archives that need not be measured: every clip has a description, and measurements if they matter."""
    for archive in archives:
        try:
            with open_archive(archive, limits_of(reading), reading.name_encoding) as opened:
                names = list(opened.clip_names())
                sidecars = opened.read_sidecars() if only_missing else {}
        except (ArchiveError, OSError):
            continue  # its task reports the problem
        captioner = Captioner()
        clips = [
            MeasuredClip(name, {}, captioner.describe(name, *sidecars.get(sidecar_key(name), ()))) for name in names
        ]
        whole = MeasuredArchive(archive.name, clips, [])
        if clips and existing.is_complete(whole, needs_measurements=not only_missing):
            yield whole


def _lacks_clips(result: MeasuredArchive, work: Work) -> bool:
    """Return whether an archive has clips that a persisted result lacks, as an earlier version read only `.wav`."""
    try:
        names = names_in(storage.as_path(work["archive"]), work["reading"])[: work["limit"]]
    except OSError:
        return True  # the task meets the same error, and has retries
    return not {*(each.path for each in result.measured), *(each.clip for each in result.rejected)}.issuperset(names)


def _result(
    target: str,
    archives: int,
    merged: Merged,
    measured: Sequence[MeasuredArchive],
    failed: dict[str, str],
    left_out: list[str],
) -> CaptionResult:
    rejected = [f"{archive.archive}: {each.clip}: {each.reason}" for archive in measured for each in archive.rejected]
    return CaptionResult(
        metadata=target,
        archives=archives,
        new=merged.new,
        replaced=merged.replaced,
        kept=merged.kept,
        missing=merged.missing,
        rejected=rejected,
        failed=failed,
        remarks=left_out,
    )
