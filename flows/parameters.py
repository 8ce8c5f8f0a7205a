"""Parameters of the flows, of `estimate` and of `export`, defined once for the run forms and the command line.

Nothing here imports Prefect or torch: the command line's help and usage errors take no longer than these definitions.
The settings of `musicgen_core` (TrainSettings and so on) are further parameters, of equal rank.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field

from musicgen_core.config import (
    DEFAULT_MODEL,
    LARGEST_COUNT,
    LONGEST_SECONDS,
    MOST_SIDE_BY_SIDE,
    MOST_WORKERS,
    Format,
    PromptText,
    Settings,
)

GROUPS = {
    "LoRA": ("lora_alpha", "lora_dropout", "lora_targets", "lora_rslora", "lora_dora"),
    "Optimizer": ("gradient_accumulation_steps", "warmup_steps", "schedule", "weight_decay", "max_grad_norm"),
    "Start": ("resume", "init_adapter", "init_from_latest", "only_new_tokens"),
    "Validation and stopping": (
        "max_steps",
        "validation_fraction",
        "validate_every_steps",
        "early_stopping",
        "evaluate",
        "sample_seconds",
    ),
    "Training data": ("segment_seconds", "cfg_dropout", "word_dropout", "prior_preservation", "prior_prompts"),
    "Sampling": ("overlap", "greedy", "top_k", "top_p", "temperature", "guidance"),
    "CLAP": ("clap_weights", "clap_clips"),
    "Descriptions": ("metadata", "caption", "caption_prefix", "caption_template"),
    "Archives": ("name_encoding", "max_clip_gib", "max_ratio", "on_failed_archives"),
    "Files": (
        "save_every_steps",
        "save_every_minutes",
        "keep_last",
        "full_models",
        "formats",
        "spectrograms",
        "save_codes",
        "copy_to",
    ),
    "Hardware": (
        "gpus",
        "base_precision",
        "activation_checkpointing",
        "compile_blocks",
        "weight_bits",
        "cache_bits",
        "max_workers",
        "task_runner",
        "dask_address",
    ),
}
"""By its title, each group of parameters that are not the essential ones; those of no group are."""

_MODELS = (
    "A Hugging Face id, a directory in audiocraft's format, or a model that needs no Hub: demo (small, "
    "trained on synthesized music) or debug (random weights)"
)
_DEFAULT = f"for a deployment the variable musicgen_model if it is set, else {DEFAULT_MODEL}"
Model = Annotated[str | None, Field(description=f"{_MODELS}; by default {_DEFAULT}")]
AdaptersModel = Annotated[
    str | None, Field(description=f"{_MODELS}; by default the base model of the adapter; without one, {_DEFAULT}")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    Field(
        description="Where to compute; auto: for a deployment the variable musicgen_device if it is set, else a GPU "
        "if there is one"
    ),
]
Archives = Annotated[
    str | None, Field(description="A file, a directory or a glob; by default the variable musicgen_archives")
]
RunDir = Annotated[
    str | None,
    Field(description="Directory of the training; by default a new one under the variable musicgen_runs"),
]
Tokens = Annotated[str | None, Field(description="Directory of the shards; by default the variable musicgen_tokens")]
Metadata = Annotated[
    str | None, Field(description="Descriptions; by default metadata.jsonl beside the archives, if it is there")
]
Limit = Annotated[
    int | None, Field(ge=1, le=LARGEST_COUNT, description="Take only the first so many clips of the whole run")
]
MaxWorkers = Annotated[
    int | None,
    Field(ge=1, le=MOST_WORKERS, description="Archives at a time in threads; by default one a core, at most 4"),
]
TaskRunner = Annotated[
    Literal["threads", "dask"], Field(description="What runs the tasks: threads of this process, or a Dask cluster")
]
DaskAddress = Annotated[
    str | None, Field(description="Address of the Dask cluster's scheduler, such as tcp://10.0.0.5:8786")
]
Output = Annotated[
    str | None, Field(description="Directory of the wavs; by default a new one under the variable musicgen_output")
]
Evaluate = Annotated[
    bool,
    Field(description="At the end compare the best adapter with the base model on up to 500 validation clips"),
]
BASE = "base"
"""What stands for no adapter where an adapter could be given"""


def archives_at_a_time(max_workers: int | None) -> int:
    """Return how many archives are tokenized at a time: as given, else one a core, at most 4."""
    return max_workers or min(4, os.cpu_count() or 1)


class TokenizeParameters(Settings):
    """Parameters of `tokenize-archives`, beside TokenizeSettings."""

    archives: Archives = None
    tokens: Tokens = None
    metadata: Metadata = None
    model: Model = None
    device: Device = "auto"
    limit: Limit = None
    max_workers: MaxWorkers = None
    task_runner: TaskRunner = "threads"
    dask_address: DaskAddress = None


class TrainParameters(Settings):
    """Parameters of `train-lora`, beside TrainSettings."""

    tokens: Tokens = None
    run_dir: RunDir = None
    model: Model = None
    device: Device = "auto"
    resume: str = Field(
        "auto", description="auto: resume from the newest checkpoint; never: a new training; or a checkpoint's path"
    )
    init_adapter: str | None = Field(
        None,
        description="Start from this *_lora.pt, the best of this run directory, this PEFT directory, "
        "or USER/NAME on the Hub",
    )
    init_from_latest: bool = Field(
        False, description="Start from the final adapter of the last completed training beside this one, if any"
    )
    only_new_tokens: bool = Field(
        False, description="Skip the training if the last completed one beside it has learned from all these tokens"
    )
    copy_to: str | None = Field(None, description="Keep a second copy of the adapters here")
    evaluate: Evaluate = True


class EvaluateParameters(Settings):
    """Parameters of `evaluate-adapter`, beside EvaluateSettings."""

    tokens: Tokens = None
    adapter: str | None = Field(
        None,
        description="A *_lora.pt, a run directory (its best), a PEFT directory, or USER/NAME on the Hub; "
        "by default the best of the training under the variable musicgen_runs that was completed last",
    )
    output: str | None = Field(
        None,
        description="Directory of the report; by default evaluation in the adapter's run directory, or beside it",
    )
    model: AdaptersModel = None
    device: Device = "auto"


def _bits(default: int, description: str) -> Any:
    """Return the field of a parameter that is 8 or 16."""
    return Field(default, ge=8, le=16, multiple_of=8, description=description)


class GenerateParameters(Settings):
    """Parameters of `generate-music`, beside SamplingSettings."""

    output: Output = None
    prompts: list[PromptText] | None = Field(None, description="Texts to make music from; by default a few examples")
    adapter: str | None = Field(
        None,
        description="A *_lora.pt, a run directory (its best), a PEFT directory, or USER/NAME on the Hub; base: the "
        "base model alone. By default: for a deployment the best of the training under the variable musicgen_runs that "
        "was completed last, on the command line base",
    )
    prompts_file: str | None = Field(
        None,
        description="A text file with a prompt a line; or a .jsonl of objects with prompt and, if wanted, "
        "duration, seed and continue_from",
    )
    variations: int = Field(1, ge=1, le=10_000, description="Samples a prompt, each from its own random stream")
    continue_from: str | None = Field(
        None, description="A sound file that the pieces continue; the duration is that of the whole"
    )
    model: AdaptersModel = None
    device: Device = "auto"
    compare: bool = Field(False, description="Render each prompt with the base model, too, from the same seed")
    formats: list[Format] | None = Field(None, description="Write these beside each wav, too: flac, mp3")
    spectrograms: bool = Field(True, description="Draw each piece's spectrogram")
    save_codes: bool = Field(False, description="Keep the codes beside each wav, as .npy")
    batch_size: int | None = Field(
        None,
        ge=1,
        le=MOST_SIDE_BY_SIDE,
        description="Pieces in one batch; by default 1 on a CPU, and 1, 8 or 32 on a GPU as they fit",
    )
    weight_bits: int = _bits(16, "Bits of weights on a GPU, 16 or 8; 8: quicker for single pieces")
    cache_bits: int = _bits(
        16, "Bits of what is kept of earlier frames, on a GPU, 16 or 8; 8: quicker for many side by side"
    )
    copy_to: str | None = Field(None, description="Keep a second copy of the files here")


class FinetuneParameters(Settings):
    """Parameters of `finetune`, beside TrainSettings and TokenizeSettings."""

    archives: Archives = None
    tokens: Tokens = None
    run_dir: RunDir = None
    output: Output = None
    metadata: Metadata = None
    model: Model = None
    device: Device = "auto"
    limit: Limit = None
    max_workers: MaxWorkers = None
    task_runner: TaskRunner = "threads"
    dask_address: DaskAddress = None
    on_failed_archives: Literal["stop", "continue"] = Field(
        "stop", description="What to do when archives could not be tokenized"
    )
    prompts: list[PromptText] | None = Field(None, description="Texts to make music from at the end")
    evaluate: Evaluate = True
    duration: float = Field(10.0, gt=0, le=LONGEST_SECONDS, description="Seconds of music a prompt")


class EstimateParameters(Settings):
    """Parameters of `estimate`."""

    archives: Archives = None
    clips: int = Field(
        100, ge=1, le=LARGEST_COUNT, description="Clips to encode, spread over at most 4 of the archives"
    )
    hourly_price: float | None = Field(None, gt=0, le=1e12, description="Price of this machine an hour, for the cost")
    model: str = Field(DEFAULT_MODEL, description=_MODELS)
    device: Device = "auto"
    max_workers: MaxWorkers = None


class ExportParameters(Settings):
    """Parameters of `export`."""

    adapter: str | None = Field(
        None,
        description="A *_lora.pt, a training's run directory (its best), a PEFT directory, or USER/NAME on the Hub",
    )
    out: str | None = Field(None, description="Directory or URL to write; nothing may be there yet")
    format: Literal["peft", "audiocraft"] | None = Field(
        None,
        description="peft: the adapter alone, for PeftModel.from_pretrained on Hugging Face's "
        "MusicgenForConditionalGeneration. audiocraft: base and adapter merged, for MusicGen.get_pretrained",
    )
    model: str | None = Field(
        None, description="A Hugging Face id, a directory, demo or debug; by default the base model of its training"
    )
