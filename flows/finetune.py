"""`finetune`: archives → captions → shards → adapter → music, all flows in a row."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from upath import UPath

from flows.archive_runs import ArchivesFailed, absolute
from flows.caption_archives import caption_archives, lacks_descriptions
from flows.decorator import form_flow
from flows.generate_music import generate_music
from flows.locations import chosen_device, chosen_model, location_of, new_location, run_name
from flows.parameters import (
    CaptionParameters,
    FinetuneParameters,
    GenerateParameters,
    TokenizeParameters,
    TrainParameters,
)
from flows.tokenize_archives import TokenizeResult, tokenize_archives
from flows.train_lora import train_lora
from musicgen_core import storage
from musicgen_core.captioning.metadata import check_writable
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import choose_archives
from musicgen_core.data.captions import METADATA
from musicgen_core.errors import ArchiveError, MetadataError
from musicgen_core.exclusions import measured
from musicgen_core.language import message
from musicgen_core.separation.settings import separating_option
from musicgen_core.separation.weights import find_separator
from musicgen_core.settings import Settings, collect
from musicgen_core.stages import announce
from tasks.artifacts import artifacts_of_run
from tasks.captioning import CaptionResult
from tasks.outcomes import finetuned
from tasks.summary import (
    captioned_section,
    rendered_files,
    rendered_section,
    show_summary,
    tokenized_section,
    trained_section,
)
from tasks.training import check_model

if TYPE_CHECKING:
    from musicgen_core.generation.request import Rendered
    from musicgen_core.training.request import TrainResult


@dataclass(frozen=True)
class FinetuneResult:
    """Results of the parts; `captioned` is None if no clip had to be described."""

    tokenized: TokenizeResult
    trained: TrainResult
    rendered: list[Rendered]
    captioned: CaptionResult | None = None


@form_flow(name="finetune", form=FinetuneParameters, flow_run_name=run_name("finetune", "run_dir"))
def finetune(given: FinetuneParameters) -> FinetuneResult:
    """Tokenize the archives, train an adapter on them, and make music with it."""
    on = {"model": given.model, "device": given.device, "duration": given.duration}
    chosen = {"model": chosen_model(given.model), "device": chosen_device(given.device)}
    check_model(chosen["model"])
    if option := separating_option(given.remove_vocals, given.separate_melody):
        find_separator(option)  # fails before clips are described if Demucs or its weights are missing
    directory = given.run_dir or new_location("musicgen_runs", "finetune")
    metadata, captioned = _captioned(given, chosen["device"])
    described = {"metadata": str(metadata)} if metadata is not None and metadata.exists() else {}
    state = tokenize_archives(**_part(given, TokenizeParameters) | chosen | described, return_state=True)
    outcome: Any = state.result(raise_on_failure=False)
    tokenized: Any = outcome.result if isinstance(outcome, ArchivesFailed) else outcome
    if not isinstance(tokenized, TokenizeResult):
        raise tokenized
    if tokenized.failed:
        if given.on_failed_archives == "stop" or not tokenized.reports:
            raise ArchiveError(
                outcome.found if isinstance(outcome, ArchivesFailed) else str(state.message),
                message(
                    "Do what each reason says and run or retry again, or set on_failed_archives to continue: "
                    "finished archives are kept"
                ),
            )
        get_run_logger().warning("continuing without them: %s", state.message)
    places = {"tokens": tokenized.tokens, "run_dir": directory}
    trained: Any = train_lora(**_part(given, TrainParameters) | chosen | places)  # Prefect returns its state's data
    # A state, which its type allows, is raised as CancelledRun.
    rendered: Any = generate_music(**_part(given, GenerateParameters) | chosen, adapter=directory)
    with artifacts_of_run() as artifacts:
        show_summary(
            artifacts,
            *([partial(captioned_section, captioned)] if captioned else []),
            partial(tokenized_section, tokenized.tokens, tokenized.reports, tokenized.failed, tokenized.remarks),
            partial(trained_section, trained),
            partial(rendered_section, rendered, names_adapter=False),
            outcome=partial(
                finetuned,
                tokens=tokenized.tokens,
                shards=len(tokenized.reports),
                result=trained,
                pieces=rendered,
                on=on,
                notice=tokenized.notice,
                new_captions=captioned.metadata if captioned else "",
                page=tokenized.page,
            ),
            listed=rendered_files(rendered),
        )
    return FinetuneResult(tokenized, trained, rendered, captioned)


def _captioned(given: FinetuneParameters, device: str) -> tuple[UPath | None, CaptionResult | None]:
    """Describe the clips without a description, and measure all if that says what to leave out.

    Return where the descriptions are, and the result if any were made.
    """
    leaves_out = bool(measured(given.exclude))
    if given.captions == "none" or (given.descriptions.caption and not leaves_out):
        return None, None
    archives, _ = choose_archives(absolute(location_of(given.archives, "musicgen_archives")))
    metadata = storage.as_path(given.metadata) if given.metadata else _metadata_for(archives[0], given.tokens)
    if given.metadata and not metadata.exists():
        return None, None  # tokenizing reports it
    announce(message("looking for clips without a description"))
    settings = collect(TokenizeSettings, given)
    if not leaves_out and not lacks_descriptions(archives, metadata, settings):
        return metadata, None
    announce(
        message("measuring the clips first, to find those to leave out")
        if leaves_out
        else message("describing the clips that have no description by their audio first (--captions none skips this)")
    )
    asked = {
        "metadata": str(metadata),
        "device": device,
        "only_missing": settings.caption_template is None and not leaves_out,
    }
    result: Any = caption_archives(**_part(given, CaptionParameters) | asked, return_state=True).result(
        raise_on_failure=False
    )
    captioned: Any = result.result if isinstance(result, ArchivesFailed) else result
    if not isinstance(captioned, CaptionResult):
        raise captioned
    return metadata, captioned if captioned.new else None


def _metadata_for(archive: UPath, tokens: str) -> UPath:
    """Return the metadata file beside the archives, or with the tokens if the folder of the archives is read-only."""
    beside = archive.parent / METADATA
    with suppress(MetadataError):
        if not beside.exists():
            check_writable(beside)
        return beside
    return storage.as_path(absolute(location_of(tokens, "musicgen_tokens"))) / METADATA


def _part(given: FinetuneParameters, form: type[Settings]) -> dict[str, Any]:
    """Return those parameters that the flow of another form takes, too."""
    return {name: value for name, value in given if name in form.model_fields}
