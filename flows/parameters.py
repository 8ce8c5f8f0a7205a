"""Parameters of the flows, defined once for the run forms and the command line.

A model's fields are a flow's parameters: first the essential ones, then groups of the others, which the Prefect UI
shows as sections of the form. On the command line, in YAML and with `-p` each field of a group has its own name.
Nothing here imports Prefect or torch: the command line's help and usage errors take no longer than these definitions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from flows.fields import (
    Adapters,
    AdaptersModel,
    AdaptersOrBase,
    Archives,
    CaptionFile,
    CaptionMissing,
    Compare,
    ContinueFrom,
    Device,
    ExportFormat,
    ExportOut,
    HourlyPrice,
    Limit,
    Melody,
    Metadata,
    Model,
    MusicPrompts,
    OnFailedArchives,
    OnlyMissing,
    Output,
    Overwrite,
    PromptsFile,
    Public,
    PushTo,
    Report,
    RunDir,
    SampledClips,
    SeparateFollowed,
    Strengths,
    Tokens,
    Variations,
)
from musicgen_core.captioning.tagger_settings import TaggerSettings
from musicgen_core.config import (
    ChoiceSettings,
    DataSettings,
    DescriptionSettings,
    Duration,
    Epochs,
    Format,
    HardwareSettings,
    LearningRate,
    LoraRank,
    MusicSeed,
    ReadingSettings,
    SampleSettings,
    SavingSettings,
    Seed,
    Trained,
    ValidationSettings,
)
from musicgen_core.evaluation.request import (
    ClapSettings,
    JudgingSettings,
    OriginalitySettings,
    PieceDuration,
    PieceSeed,
    ReportPrompts,
)
from musicgen_core.exclusions import Exclude
from musicgen_core.generation.control import ControlSettings
from musicgen_core.generation.seam_settings import SeamSettings
from musicgen_core.learning_settings import DEFAULT_RANK, AdapterSettings, OptimizerSettings
from musicgen_core.separation.settings import RemoveVocals, SeparateMelody
from musicgen_core.settings import MOST_SIDE_BY_SIDE, MOST_WORKERS, Settings, names_in

_CopyTo = Annotated[str | None, Field(description="Folder or URL for a second copy")]


def archives_at_a_time(max_workers: int | None) -> int:
    """Return how many archives are tokenized at a time: `max_workers`, or one per core, at most 4."""
    return max_workers or min(4, os.cpu_count() or 1)


class Threads(Settings):
    """How many archives are worked on at a time."""

    model_config = ConfigDict(title="Workers")

    max_workers: int | None = Field(
        None,
        ge=1,
        le=MOST_WORKERS,
        description="Archives worked on at the same time; by default one for each CPU core, at most 4",
    )


class Workers(Threads):
    """Where archives are worked on, and how many at a time."""

    task_runner: Literal["threads", "dask"] = Field(
        "threads", description="Where archives are worked on: in this process, or on a Dask cluster"
    )
    dask_address: str | None = Field(
        None, description="Address of the Dask cluster's scheduler, such as tcp://10.0.0.5:8786"
    )


class Start(Settings):
    """What the training begins with."""

    model_config = ConfigDict(title="Start")

    resume: str = Field(
        "auto", description="auto: resume from the newest checkpoint; never: a new training; or a checkpoint's path"
    )
    init_adapter: str | None = Field(
        None,
        description="Start from an adapter: a *_lora.pt, the best of a run directory, a PEFT directory, or "
        "USER/NAME on the Hub",
    )
    init_from_latest: bool = Field(
        False, description="Start from the final adapter of the last completed training run beside this one, if any"
    )
    only_new_tokens: bool = Field(
        False, description="Skip the training if the last completed one beside it has learned from all of this music"
    )


class Validation(ValidationSettings):
    """Held-out clips, when the training stops, and what is compared then."""

    evaluate: bool = Field(
        True,
        description="At the end test whether the adapter is better than the base model, on up to 500 clips "
        "that it has not learned from",
    )


class Saving(SavingSettings):
    """Checkpoints and models on disk."""

    copy_to: _CopyTo = None


class Files(Settings):
    """What is written beside the wavs."""

    model_config = ConfigDict(title="Files")

    formats: Annotated[list[Format] | None, BeforeValidator(names_in)] = Field(
        None, description="Write these beside each wav, too: flac, mp3"
    )
    spectrograms: bool = Field(True, description="Draw a spectrogram of each sample")
    save_codes: bool = Field(False, description="Keep the tokens beside each wav, as .npy")
    keep_candidates: bool = Field(False, description="Write all candidates of best_of, not only the best")
    copy_to: _CopyTo = None


# The command line passes text.
_Bits = Annotated[Literal[8, 16], BeforeValidator(lambda bits: int(bits) if bits in ("8", "16") else bits)]


class EngineOptions(Settings):
    """How the GPU is used for generating."""

    model_config = ConfigDict(title="Engine")

    batch_size: int | None = Field(
        None,
        ge=1,
        le=MOST_SIDE_BY_SIDE,
        description="Samples generated at the same time (batch size); by default 1 on a CPU, and 1, 8 or 32 on a"
        " GPU as they fit",
    )
    weight_bits: _Bits = Field(16, description="Bits of the model's weights on a GPU; 8: faster for single samples")
    cache_bits: _Bits = Field(
        16, description="Bits of the key-value cache on a GPU; 8: faster for many samples at a time"
    )


class TokenizeParameters(Settings):
    """Parameters of `tokenize-archives`."""

    archives: Archives = ""
    tokens: Tokens = ""
    metadata: Metadata = ""
    model: Model = ""
    device: Device = "auto"
    limit: Limit = 0
    exclude: Exclude = ()
    remove_vocals: RemoveVocals = False
    separate_melody: SeparateMelody = False
    descriptions: DescriptionSettings = DescriptionSettings()
    reading: ReadingSettings = ReadingSettings()
    workers: Workers = Workers()


class CaptionParameters(Settings):
    """Parameters of `caption-archives`."""

    archives: Archives = ""
    metadata: CaptionFile = ""
    device: Device = "auto"
    limit: Limit = 0
    overwrite: Overwrite = False
    only_missing: OnlyMissing = False
    tags: TaggerSettings = TaggerSettings()
    reading: ReadingSettings = ReadingSettings()
    workers: Workers = Workers()


class TrainParameters(Settings):
    """Parameters of `train-lora`."""

    tokens: Tokens = ""
    run_dir: RunDir = ""
    model: Model = ""
    device: Device = "auto"
    num_epochs: Epochs = 5
    train: Trained = "lora"
    lora_r: LoraRank = DEFAULT_RANK
    learning_rate: LearningRate = 0.0
    seed: Seed = 0
    start: Start = Start()
    lora: AdapterSettings = AdapterSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    validation: Validation = Validation()
    samples: SampleSettings = SampleSettings()
    data: DataSettings = DataSettings()
    saving: Saving = Saving()
    hardware: HardwareSettings = HardwareSettings()


class FinetuneParameters(Settings):
    """Parameters of `finetune`."""

    archives: Archives = ""
    tokens: Tokens = ""
    run_dir: RunDir = ""
    output: Output = ""
    metadata: Metadata = ""
    model: Model = ""
    device: Device = "auto"
    limit: Limit = 0
    exclude: Exclude = ()
    remove_vocals: RemoveVocals = False
    separate_melody: SeparateMelody = False
    captions: CaptionMissing = "auto"
    on_failed_archives: OnFailedArchives = "stop"
    num_epochs: Epochs = 5
    train: Trained = "lora"
    lora_r: LoraRank = DEFAULT_RANK
    learning_rate: LearningRate = 0.0
    seed: Seed = 0
    prompts: MusicPrompts = ()
    duration: Duration = 10.0
    tags: TaggerSettings = TaggerSettings()
    descriptions: DescriptionSettings = DescriptionSettings()
    reading: ReadingSettings = ReadingSettings()
    workers: Workers = Workers()
    lora: AdapterSettings = AdapterSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    validation: Validation = Validation()
    samples: SampleSettings = SampleSettings()
    data: DataSettings = DataSettings()
    saving: Saving = Saving()
    hardware: HardwareSettings = HardwareSettings()


class EvaluateParameters(Settings):
    """Parameters of `evaluate-adapter`."""

    tokens: Tokens = ""
    adapter: Adapters = ()
    output: Report = ""
    model: AdaptersModel = ""
    device: Device = "auto"
    prompts: ReportPrompts = ()
    duration: PieceDuration = 10.0
    seed: PieceSeed = 0
    clips: JudgingSettings = JudgingSettings()
    originality: OriginalitySettings = OriginalitySettings()
    clap: ClapSettings = ClapSettings()


class GenerateParameters(Settings):
    """Parameters of `generate-music`."""

    prompts: MusicPrompts = ()
    prompts_file: PromptsFile = ""
    adapter: AdaptersOrBase = ()
    output: Output = ""
    duration: Duration = 10.0
    variations: Variations = 1
    seed: MusicSeed = 0
    compare: Compare = False
    strengths: Strengths = ()
    continue_from: ContinueFrom = ""
    melody: Melody = ""
    separate_melody: SeparateFollowed = False
    model: AdaptersModel = ""
    device: Device = "auto"
    control: ControlSettings = ControlSettings()
    seams: SeamSettings = SeamSettings()
    sampling: ChoiceSettings = ChoiceSettings()
    files: Files = Files()
    engine: EngineOptions = EngineOptions()


class EstimateParameters(Settings):
    """Parameters of `estimate`."""

    archives: Archives = ""
    clips: SampledClips = 100
    hourly_price: HourlyPrice = 0.0
    model: Model = ""
    train: Trained = "lora"
    device: Device = "auto"
    workers: Threads = Threads()


class ExportParameters(Settings):
    """Parameters of `export`."""

    adapter: Adapters = ()
    out: ExportOut = ""
    format: ExportFormat = "peft"
    model: AdaptersModel = ""
    push_to: PushTo = ""
    public: Public = False


def groups_in(form: type[Settings]) -> dict[str, type[Settings]]:
    """Return those fields of a form that are groups, by name."""
    kinds = {name: field.annotation for name, field in form.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Settings)}


def grouped(given: Mapping[str, Any], groups: Mapping[str, type[Settings]]) -> dict[str, Any]:
    """Return parameters with each field inside its group; fields may also be given flat, as in earlier versions.

    Where a field is given both ways, the one inside the group wins unless it is the default, with which forms are
    prefilled.
    """
    found = dict(given)
    for group, kind in groups.items():
        beside = {name: found.pop(name) for name in kind.model_fields if name in found}
        if not beside:
            continue
        inside = found.get(group, {})
        inside = inside.model_dump() if isinstance(inside, Settings) else inside
        if not isinstance(inside, Mapping):
            continue  # validation rejects it
        chosen = {name: value for name, value in inside.items() if value != kind.model_fields[name].default}
        found[group] = {**inside, **beside, **chosen}
    return found
