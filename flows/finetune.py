"""`finetune`: archives → shards → adapter → music, all three flows in a row."""

# No `from __future__ import annotations`: Prefect and the command line read the parameters' annotations as they are.

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from prefect import flow, get_run_logger
from pydantic import Field

from flows.beginning import begin
from flows.endings import ends_with_reason
from flows.generate_music import generate_music
from flows.parameters import (
    DEFAULT_MODEL,
    Archives,
    DaskAddress,
    Device,
    Evaluate,
    Limit,
    MaxWorkers,
    Metadata,
    Model,
    Output,
    TaskRunner,
    Tokens,
    new_folder,
    place,
    run_name,
    spread,
)
from flows.run_form import explained
from flows.tokenize_archives import ArchivesFailed, TokenizeResult, tokenize_archives
from flows.train_lora import train_lora
from musicgen_core import storage
from musicgen_core.config import LONGEST_SECONDS, PromptText, TokenizeSettings, TrainSettings
from musicgen_core.errors import ArchiveError
from tasks.artifacts import artifacts_of_run
from tasks.fetching import check_model
from tasks.summary import rendered_section, show_summary, tokenized_section, trained_section

if TYPE_CHECKING:
    from musicgen_core.generation.request import Rendered
    from musicgen_core.training.request import TrainResult


@dataclass(frozen=True)
class FinetuneResult:
    """What each part came to."""

    tokenized: TokenizeResult
    trained: "TrainResult"
    rendered: "list[Rendered]"


@explained
@flow(name="finetune", flow_run_name=run_name("finetune", "run_dir"))
@ends_with_reason
@spread(TokenizeSettings, into="tokenizing")
@spread(TrainSettings)
def finetune(
    *,
    archives: Archives = None,
    tokens: Tokens = None,
    run_dir: Annotated[
        str | None,
        Field(description="Directory of the training; by default a new one under the variable musicgen_runs"),
    ] = None,
    output: Output = None,
    metadata: Metadata = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    limit: Limit = None,
    max_workers: MaxWorkers = None,
    task_runner: TaskRunner = "threads",
    dask_address: DaskAddress = None,
    on_failed_archives: Annotated[
        Literal["stop", "continue"], Field(description="What to do when archives could not be tokenized")
    ] = "stop",
    prompts: Annotated[list[PromptText] | None, Field(description="Texts to make music from at the end")] = None,
    evaluate: Evaluate = True,
    duration: Annotated[float, Field(gt=0, le=LONGEST_SECONDS, description="Seconds of music a prompt")] = 10.0,
    settings: TrainSettings,
    tokenizing: TokenizeSettings,
) -> FinetuneResult:
    """Tokenize the archives, train an adapter on them, and make music with it."""
    begin()
    check_model(model)
    directory = run_dir or str(storage.as_path(place(None, "musicgen_runs")) / new_folder("finetune"))
    state = tokenize_archives(
        archives=archives,
        tokens=tokens,
        metadata=metadata,
        model=model,
        device=device,
        limit=limit,
        max_workers=max_workers,
        task_runner=task_runner,
        dask_address=dask_address,
        **tokenizing.model_dump(),
        return_state=True,
    )
    outcome = state.result(raise_on_failure=False)
    tokenized = outcome.result if isinstance(outcome, ArchivesFailed) else outcome
    if not isinstance(tokenized, TokenizeResult):
        raise tokenized
    if tokenized.failed:
        if on_failed_archives == "stop" or not tokenized.reports:
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
        evaluate=evaluate,
        **settings.model_dump(),
    )
    rendered: Any = generate_music(  # raises CancelledRun for the state that its type allows for
        output=output,
        prompts=prompts,
        model=model,
        device=device,
        adapter=directory,
        duration=duration,
        seed=settings.seed,
    )
    with artifacts_of_run() as artifacts:
        show_summary(
            artifacts,
            partial(tokenized_section, tokenized.tokens, tokenized.reports, tokenized.failed, tokenized.remarks),
            partial(trained_section, trained),
            partial(rendered_section, rendered),
        )
    return FinetuneResult(tokenized, trained, rendered)
