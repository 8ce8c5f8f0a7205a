"""`finetune`: archives → shards → adapter → music, all three flows in a row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger

from flows.beginning import begin
from flows.endings import ends_with_reason
from flows.generate_music import generate_music
from flows.parameters import FinetuneParameters
from flows.places import chosen_device, chosen_model, new_folder, place, run_name
from flows.run_form import explained, spread
from flows.tokenize_archives import ArchivesFailed, TokenizeResult, tokenize_archives
from flows.train_lora import train_lora
from musicgen_core import storage
from musicgen_core.config import TokenizeSettings, TrainSettings
from musicgen_core.errors import ArchiveError
from tasks.artifacts import artifacts_of_run
from tasks.fetching import check_model
from tasks.outcomes import finetuned
from tasks.summary import rendered_section, show_summary, tokenized_section, trained_section

if TYPE_CHECKING:
    from musicgen_core.generation.request import Rendered
    from musicgen_core.training.request import TrainResult


@dataclass(frozen=True)
class FinetuneResult:
    """What each part came to."""

    tokenized: TokenizeResult
    trained: TrainResult
    rendered: list[Rendered]


@explained
@flow(name="finetune", flow_run_name=run_name("finetune", "run_dir"))
@ends_with_reason
@spread(FinetuneParameters, TrainSettings, TokenizeSettings)
def finetune(given: FinetuneParameters, settings: TrainSettings, tokenizing: TokenizeSettings) -> FinetuneResult:
    """Tokenize the archives, train an adapter on them, and make music with it."""
    begin()
    model, device = chosen_model(given.model), chosen_device(given.device)
    check_model(model)
    directory = given.run_dir or str(storage.as_path(place(None, "musicgen_runs")) / new_folder("finetune"))
    state = tokenize_archives(
        archives=given.archives,
        tokens=given.tokens,
        metadata=given.metadata,
        model=model,
        device=device,
        limit=given.limit,
        max_workers=given.max_workers,
        task_runner=given.task_runner,
        dask_address=given.dask_address,
        **tokenizing.model_dump(),
        return_state=True,
    )
    outcome = state.result(raise_on_failure=False)
    tokenized = outcome.result if isinstance(outcome, ArchivesFailed) else outcome
    if not isinstance(tokenized, TokenizeResult):
        raise tokenized
    if tokenized.failed:
        if given.on_failed_archives == "stop" or not tokenized.reports:
            raise ArchiveError(
                str(state.message),
                "Do what each reason says and run or retry again, or set on_failed_archives to continue: "
                "finished archives are kept",
            )
        get_run_logger().warning("going on without them: %s", state.message)
    trained = train_lora(
        tokens=tokenized.tokens,
        run_dir=directory,
        model=model,
        device=device,
        evaluate=given.evaluate,
        **settings.model_dump(),
    )
    rendered: Any = generate_music(  # raises CancelledRun for the state that its type allows for
        output=given.output,
        prompts=given.prompts,
        model=model,
        device=device,
        adapter=directory,
        duration=given.duration,
        seed=settings.seed,
    )
    with artifacts_of_run() as artifacts:
        show_summary(
            artifacts,
            partial(tokenized_section, tokenized.tokens, tokenized.reports, tokenized.failed, tokenized.remarks),
            partial(trained_section, trained),
            partial(rendered_section, rendered),
            outcome=partial(
                finetuned,
                tokenized.tokens,
                len(tokenized.reports),
                trained,
                rendered,
                given.model_dump(),
                tokenized.notice,
            ),
        )
    return FinetuneResult(tokenized, trained, rendered)
