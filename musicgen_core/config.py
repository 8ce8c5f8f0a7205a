"""Typed settings. One definition serves the YAML file, the flows' parameters and the command line."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import PydanticCustomError

from musicgen_core.data.member_names import check_encoding
from musicgen_core.errors import ConfigError
from musicgen_core.texts import MAX_CHARACTERS

if TYPE_CHECKING:
    from musicgen_core.storage import Location

DEFAULT_MODEL = "facebook/musicgen-large"
"""The base model where none is given"""

EFFECTIVE_BATCH = 16
"""Clips an optimizer update learns from, unless the user gives other numbers."""

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Linear layers that get LoRA: self- and cross-attention each have the first four, so ten layers a block."""

DEFAULT_PROMPTS = (
    "A dynamic heavy metal song with fast drums and guitar solo",
    "Relaxing jazz piano with soft background ambience",
    "Upbeat electronic dance music with strong bass",
)
"""What is rendered where no prompts are given"""

LONGEST_SECONDS = 3600
"""Of a piece of music"""

LARGEST_COUNT = 10**9
"""Upper bound of counts without a tighter one: fits 32 bits. Integers over 64 bits break Prefect's database."""

MOST_WORKERS = 1024
"""Upper bound of threads and processes"""

MOST_SIDE_BY_SIDE = 64
"""Upper bound of the samples that are generated in one batch"""

Format = Literal["flac", "mp3"]
"""Of the files that may stand beside a wav"""


class Settings(BaseModel):
    """Base of all settings: unknown names are errors, numbers are finite, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _check_prompt(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("text", "should be whole characters: half of a surrogate pair is in it") from error
    if len(text) > MAX_CHARACTERS:
        lengths = {"most": f"{MAX_CHARACTERS:,}", "given": f"{len(text):,}"}
        raise PydanticCustomError("text", "should have at most {most} characters, and has {given}", lengths)
    return text


PromptText = Annotated[str, AfterValidator(_check_prompt)]
"""Text that music is made from"""


def _check_prior_prompts(path: str | None, info: ValidationInfo) -> str | None:
    if path is not None and info.data.get("prior_preservation") == 0:
        raise PydanticCustomError("prior_prompts", "should only be given with prior_preservation, such as 0.25")
    return path


class TrainSettings(Settings):
    """How to train."""

    lora_r: int = Field(
        8, ge=1, le=8192, description="LoRA rank: 8 is a good start, 16 learns more and takes more memory"
    )
    lora_alpha: float = Field(32, gt=0, le=1e6, description="LoRA scale; the update is multiplied by alpha / rank")
    lora_dropout: float = Field(0.1, ge=0, lt=1, description="dropout before LoRA's down-projection")
    lora_targets: list[str] = Field(
        list(LORA_TARGETS),
        min_length=1,
        description="linear layers that get LoRA; all by default, encoder_attn.q_proj is cross-attention's alone",
    )
    lora_rslora: bool = Field(False, description="scale by alpha / √rank (rsLoRA), steadier at high ranks")
    lora_dora: bool = Field(False, description="learn the weights' magnitudes too (DoRA); slower")
    learning_rate: float = Field(1e-4, gt=0, le=10, description="learning rate of AdamW, constant after the warm-up")
    warmup_steps: int = Field(
        0, ge=0, le=LARGEST_COUNT, description="optimizer steps over which the learning rate rises from 0"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate after the warm-up: constant, or falling to 0 at the last step"
    )
    weight_decay: float = Field(0.01, ge=0, le=1000, description="weight decay of AdamW")
    batch_size: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = Field(
        "auto", description="clips in a micro-batch; auto picks it and the accumulation for the device"
    )
    gradient_accumulation_steps: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description=f"micro-batches in an optimizer step; by default batch × accumulation is {EFFECTIVE_BATCH}",
    )
    num_epochs: int = Field(5, ge=1, le=10**6, description="how often each training clip is seen")
    max_steps: int | None = Field(
        None, ge=1, le=LARGEST_COUNT, description="stop after this many optimizer steps, if earlier"
    )
    gpus: int = Field(
        1, ge=1, le=MOST_WORKERS, description="GPUs of this machine to train on, each with its own micro-batches"
    )
    base_precision: Literal["bf16", "fp8"] = Field(
        "bf16", description="precision of the frozen base on a GPU; fp8 is faster on an H100 and newer"
    )
    activation_checkpointing: bool | None = Field(
        None, description="compute activations twice to save memory; by default where the GPU needs it"
    )
    compile_blocks: bool | None = Field(
        None, description="compile the model's blocks, which takes a minute; by default on a GPU"
    )
    max_grad_norm: float = Field(1.0, gt=0, le=1e9, description="gradients are clipped to this norm")
    segment_seconds: float = Field(30.0, ge=0.2, le=30, description="seconds of a clip seen at once, a random crop")
    validation_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of the clips held out for validation; of 40 clips or more at least 8, unless it is 0",
    )
    validate_every_steps: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="optimizer steps between validations within an epoch; by default only at its end",
    )
    early_stopping: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="stop after this many validations in a row without a new best; by default never",
    )
    save_every_steps: int = Field(500, ge=1, le=LARGEST_COUNT, description="optimizer steps between step checkpoints")
    save_every_minutes: float = Field(5.0, gt=0, le=1e9, description="minutes between updates of latest.pt")
    keep_last: int | None = Field(
        None, ge=1, le=LARGEST_COUNT, description="step and epoch checkpoints to keep, the newest ones; by default all"
    )
    full_models: Literal["each_epoch", "best_and_final", "none"] = Field(
        "each_epoch", description="when to write base and adapter merged: 6.2 GB each for musicgen-large"
    )
    cfg_dropout: float | None = Field(
        None, ge=0, le=1, description="share of clips trained without their text; by default the model's own"
    )
    word_dropout: float | None = Field(
        None, ge=0, le=1, description="share of words left out of the other texts; by default the model's own"
    )
    prior_preservation: float = Field(
        0.0,
        ge=0,
        le=0.99,
        description="share of an epoch's clips that the base model generates from general prompts before the first "
        "step, so that the adapter forgets less of what the base model can play",
    )
    prior_prompts: Annotated[str | None, AfterValidator(_check_prior_prompts)] = Field(
        None, description="text file of these general prompts, one a line; by default a built-in list"
    )
    sample_prompts: list[PromptText] | None = Field(
        None,
        description="texts rendered at first and after each epoch; by default three on a GPU and none on a CPU",
    )
    sample_seconds: float = Field(10.0, gt=0, le=30, description="seconds of each sample")
    seed: int = Field(0, ge=0, lt=2**32, description="everything random derives from it")


def template_fields(template: str) -> list[str]:
    """`"{genre}, {bpm} bpm"` → `["genre", "bpm"]`. There is at least one, and nothing but plain names.

    Raises:
        ValueError: with what is wrong, in words.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"should hold names of fields in braces, such as {{genre}} ({error})") from error
    names = []
    for _, name, spec, conversion in parts:
        if name is None:  # text behind the last placeholder
            continue
        if spec or conversion or not re.fullmatch(r"[^\W\d][\w -]*", name):
            raise ValueError("should hold nothing but names of fields in braces, such as {genre}")
        names.append(name)
    if not names:
        raise ValueError(
            "should name a field in braces, such as {genre}; for the same text everywhere there is caption"
        )
    return list(dict.fromkeys(names))


# Validators in annotations rather than methods, so that a flow's parameters and the command line have them too.


def _none_if_blank(text: str | None) -> str | None:
    return (text or "").strip() or None


def _check_template(template: str | None, info: ValidationInfo) -> str | None:
    if template is None:
        return None
    try:
        template_fields(template)
    except ValueError as error:
        raise PydanticCustomError("caption_template", str(error)) from error
    if info.data.get("caption") is not None:
        raise PydanticCustomError("caption_template", "caption stands for every clip, so give only one of the two")
    return template


def _check_encoding(name: str) -> str:
    name = name.strip() or "auto"
    try:
        check_encoding(name)
    except ConfigError as error:
        raise PydanticCustomError("encoding", "should be auto or an encoding such as cp932 or utf-8") from error
    return name


_Text = Annotated[str | None, AfterValidator(_none_if_blank)]


class TokenizeSettings(Settings):
    """How to describe clips, and what to expect of archives."""

    caption: _Text = Field(None, description="the same description for every clip, whatever the metadata say")
    caption_prefix: _Text = Field(None, description="put before every description, such as a trigger word")
    caption_template: Annotated[_Text, AfterValidator(_check_template)] = Field(
        None, description='description made from fields of the metadata, such as "{genre}, {bpm} bpm"'
    )
    name_encoding: Annotated[str, AfterValidator(_check_encoding)] = Field(
        "auto", description="encoding of file names in zips without Unicode names, such as cp932"
    )
    max_clip_gib: float = Field(
        2.0,
        gt=0,
        le=2**20,
        description="clips larger than this, unpacked or decoded, in GiB, are rejected",
    )
    max_ratio: float = Field(
        200.0,
        gt=1,
        le=1e9,
        description="an archive that unpacks to more than this many times its size is refused as a zip bomb",
    )


class SamplingSettings(Settings):
    """How to choose codes while generating."""

    duration: float = Field(
        10.0, gt=0, le=LONGEST_SECONDS, description="seconds of music a prompt; over 30 in overlapping windows"
    )
    overlap: float = Field(
        12.0, gt=0, le=29, description="seconds that a window of 30 goes on from, in pieces longer than that"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="each prompt draws from its own random stream of this seed")
    greedy: bool = Field(False, description="always take the likeliest code instead of sampling")
    top_k: int = Field(250, ge=0, le=LARGEST_COUNT, description="sample from the k likeliest codes; 0 for all")
    top_p: float = Field(
        0.0,
        ge=0,
        le=1,
        description="sample from the likeliest codes that hold this much probability, instead of top-k; 0: off",
    )
    temperature: float = Field(1.0, ge=1e-5, le=1000, description="above 1 more surprising, below 1 more predictable")
    guidance: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="how strongly the text guides (classifier-free guidance); by default the model's own",
    )


S = TypeVar("S", bound=Settings)


def validate(kind: type[S], values: Mapping[str, Any], origin: str = "the settings") -> S:
    """Build settings of a kind.

    Raises:
        ConfigError: with every problem at once, each with the setting's name and what was given.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        problems = describe_problems(error)
        raise ConfigError(
            f"{origin} have {'a problem' if len(problems) == 1 else f'{len(problems)} problems'}: "
            + "; ".join(problems),
            "Change or remove what is named",
        ) from error


def describe_problems(error: ValidationError, shown: Callable[[str], str] = str) -> list[str]:
    """What is wrong, in words, a text for each setting; `shown` gives what the user calls it."""
    by_name: dict[str, list[Any]] = {}
    for problem in error.errors():  # a value that may be of two kinds has one for each kind
        by_name.setdefault(str(problem["loc"][0]), []).append(problem)
    return [_describe(shown(name), problems) for name, problems in by_name.items()]


def _describe(name: str, problems: Sequence[Any]) -> str:
    if problems[0]["type"] == "extra_forbidden":
        return f"there is no setting {name}"
    first, *others = dict.fromkeys(problem["msg"] for problem in problems)
    reasons = [f"{first[0].lower()}{first[1:]}", *(other.removeprefix("Input should be ") for other in others)]
    given = repr(problems[0]["input"])
    return f"{name}: {' or '.join(reasons)}, not {given if len(given) <= 100 else f'{given[:100]}…'}"


def read_yaml(path: Location) -> dict[str, Any]:
    """Settings from a YAML file of `name: value` lines.

    Raises:
        ConfigError: the file is missing or is not such a file.
    """
    import yaml  # not at the top: the command line's help waits for neither

    from musicgen_core import storage

    try:
        values = yaml.safe_load(storage.as_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: of encodings, dates
        reason = " ".join(str(error).split())  # YAML's reasons have several lines
        raise ConfigError(f"the settings file {path} can't be read ({reason})", "Check path and file") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"the settings file {path} holds no settings", "Write one `name: value` a line")
    return values
