"""`finetune`: archives → shards → adapter → music, all three flows in a row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger

from flows.decorator import form_flow
from flows.generate_music import generate_music
from flows.locations import chosen_device, chosen_model, location_of, new_folder, run_name
from flows.parameters import (
    Archives,
    Device,
    Limit,
    Metadata,
    Model,
    MusicPrompts,
    OnFailedArchives,
    Output,
    RunDir,
    Saving,
    Tokens,
    Validation,
    Workers,
)
from flows.tokenize_archives import ArchivesFailed, TokenizeResult, tokenize_archives
from flows.train_lora import train_lora
from musicgen_core import storage
from musicgen_core.config import (
    AdapterSettings,
    DataSettings,
    DescriptionSettings,
    Duration,
    Epochs,
    HardwareSettings,
    LearningRate,
    LoraRank,
    OptimizerSettings,
    ReadingSettings,
    SampleSettings,
    Seed,
)
from musicgen_core.errors import ArchiveError
from musicgen_core.language import message
from tasks.artifacts import artifacts_of_run
from tasks.outcomes import finetuned
from tasks.summary import rendered_files, rendered_section, show_summary, tokenized_section, trained_section
from tasks.training import check_model

if TYPE_CHECKING:
    from musicgen_core.generation.request import Rendered
    from musicgen_core.training.request import TrainResult


@dataclass(frozen=True)
class FinetuneResult:
    """Results of the three parts."""

    tokenized: TokenizeResult
    trained: TrainResult
    rendered: list[Rendered]


@form_flow(name="finetune", flow_run_name=run_name("finetune", "run_dir"))
def finetune(
    archives: Archives = "",
    tokens: Tokens = "",
    run_dir: RunDir = "",
    output: Output = "",
    metadata: Metadata = "",
    model: Model = "",
    device: Device = "auto",
    limit: Limit = 0,
    on_failed_archives: OnFailedArchives = "stop",
    num_epochs: Epochs = 5,
    lora_r: LoraRank = 8,
    learning_rate: LearningRate = 1e-4,
    seed: Seed = 0,
    prompts: MusicPrompts = (),
    duration: Duration = 10.0,
    descriptions: DescriptionSettings = DescriptionSettings(),
    reading: ReadingSettings = ReadingSettings(),
    workers: Workers = Workers(),
    lora: AdapterSettings = AdapterSettings(),
    optimizer: OptimizerSettings = OptimizerSettings(),
    validation: Validation = Validation(),
    samples: SampleSettings = SampleSettings(),
    data: DataSettings = DataSettings(),
    saving: Saving = Saving(),
    hardware: HardwareSettings = HardwareSettings(),
) -> FinetuneResult:
    """Tokenize the archives, train an adapter on them, and make music with it."""
    on = {"model": model, "device": device, "duration": duration}
    model, device = chosen_model(model), chosen_device(device)
    check_model(model)
    directory = run_dir or str(storage.as_path(location_of(None, "musicgen_runs")) / new_folder("finetune"))
    state = tokenize_archives(
        archives=archives,
        tokens=tokens,
        metadata=metadata,
        model=model,
        device=device,
        limit=limit,
        descriptions=descriptions,
        reading=reading,
        workers=workers,
        return_state=True,
    )
    outcome: Any = state.result(raise_on_failure=False)
    tokenized = outcome.result if isinstance(outcome, ArchivesFailed) else outcome
    if not isinstance(tokenized, TokenizeResult):
        raise tokenized
    if tokenized.failed:
        if on_failed_archives == "stop" or not tokenized.reports:
            raise ArchiveError(
                outcome.found if isinstance(outcome, ArchivesFailed) else str(state.message),
                message(
                    "Do what each reason says and run or retry again, or set on_failed_archives to continue: "
                    "finished archives are kept"
                ),
            )
        get_run_logger().warning("going on without them: %s", state.message)
    trained: Any = train_lora(  # Prefect returns the data of its state
        tokens=tokenized.tokens,
        run_dir=directory,
        model=model,
        device=device,
        num_epochs=num_epochs,
        lora_r=lora_r,
        learning_rate=learning_rate,
        seed=seed,
        lora=lora,
        optimizer=optimizer,
        validation=validation,
        samples=samples,
        data=data,
        saving=saving,
        hardware=hardware,
    )
    rendered: Any = generate_music(  # a state, which its type allows, is raised as CancelledRun
        output=output,
        prompts=prompts,
        model=model,
        device=device,
        adapter=directory,
        duration=duration,
        seed=seed,
    )
    with artifacts_of_run() as artifacts:
        show_summary(
            artifacts,
            partial(tokenized_section, tokenized.tokens, tokenized.reports, tokenized.failed, tokenized.remarks),
            partial(trained_section, trained),
            partial(rendered_section, rendered, names_adapter=False),
            outcome=partial(
                finetuned,
                tokenized.tokens,
                len(tokenized.reports),
                trained,
                rendered,
                on,
                tokenized.notice,
            ),
            listed=rendered_files(rendered),
        )
    return FinetuneResult(tokenized, trained, rendered)
