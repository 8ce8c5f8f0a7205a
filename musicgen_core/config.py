"""Settings of tokenizing, training and generation, grouped as the run forms and the command line show them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from musicgen_core.errors import ConfigError
from musicgen_core.exclusions import Exclude
from musicgen_core.learning_settings import DEFAULT_RANK, AdapterSettings, OptimizerSettings
from musicgen_core.separation.settings import RemoveVocals, SeparateMelody
from musicgen_core.settings import LARGEST_COUNT, LONGEST_SECONDS, MOST_WORKERS, Settings
from musicgen_core.texts import MAX_CHARACTERS, check_encoding, template_fields

DEFAULT_MODEL = "facebook/musicgen-large"
"""Base model if none is given"""

DEFAULT_PROMPTS = (
    "A dynamic heavy metal song with fast drums and guitar solo",
    "Relaxing jazz piano with soft background ambience",
    "Upbeat electronic dance music with strong bass",
)
"""Default prompts"""

Format = Literal["flac", "mp3"]
"""Additional formats that can be written beside a wav"""


def check_prompt(text: str) -> str:
    """Return a prompt if it can be encoded and isn't too long; a validator of pydantic."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("text", "should be whole characters: half of a surrogate pair is in it") from error
    if len(text) > MAX_CHARACTERS:
        lengths = {"most": f"{MAX_CHARACTERS:,}", "given": f"{len(text):,}"}
        raise PydanticCustomError("text", "should have at most {most} characters, and has {given}", lengths)
    return text


PromptText = Annotated[str, AfterValidator(check_prompt)]
"""Text prompt for generation"""


def _none_if_null(prompts: Any) -> Any:
    return () if prompts is None else prompts


Prompts = Annotated[tuple[PromptText, ...], BeforeValidator(_none_if_null)]
"""Text prompts for generation; null, as sent by forms of earlier versions, means none"""


def _check_prior_prompts(path: str | None, info: ValidationInfo) -> str | None:
    if path is not None and info.data.get("prior_preservation") == 0:
        raise PydanticCustomError("prior_prompts", "should only be given with prior_preservation, such as 0.25")
    return path


def _read_switch(value: Any) -> Any:
    return {"auto": None, "on": True, "off": False}.get(value, value) if isinstance(value, str) else value


_Switch = Annotated[
    bool | None,
    BeforeValidator(_read_switch),
    WithJsonSchema({"type": "string", "enum": ["auto", "on", "off"]}),  # a form's toggle has two positions
]
_AUTO: dict[str, Any] = {"default": "auto"}


Epochs = Annotated[int, Field(ge=1, le=10**6, description="How many times the model hears each clip")]
LoraRank = Annotated[
    int,
    Field(
        ge=1,
        le=8192,
        description="Size of the adapter (LoRA rank): 8 is a good start, 16 learns more and takes more memory",
    ),
]
Trained = Annotated[
    Literal["lora", "all"],
    Field(
        description="The weights to train: lora, an adapter beside the model's; or all, those of the language model "
        "itself, which takes eight times the memory, and less with optimizer_name adamw8bit"
    ),
]
LEARNING_RATES = {"lora": 1e-4, "all": 1e-5}


def _rate_for(rate: float, info: ValidationInfo) -> float:
    return rate or LEARNING_RATES[info.data.get("train", "lora")]


LearningRate = Annotated[
    float,
    Field(
        ge=0,
        le=10,
        validate_default=True,
        description="How fast it learns (learning rate of AdamW): lower is gentler and slower; 0: 1e-4, and 1e-5 with "
        "train all",
    ),
    BeforeValidator(lambda rate: 0 if rate is None or rate == "" else rate),
    AfterValidator(_rate_for),
]
"""A learning rate; 0, or null in a file, stands for the default of what the field `train` before it trains"""
Seed = Annotated[
    int, Field(ge=0, lt=2**32, description="Number that fixes everything random: the same one gives the same result")
]


class ValidationSettings(Settings):
    """Held-out clips, and when the training stops."""

    model_config = ConfigDict(title="Validation and stopping")

    max_steps: int | None = Field(
        None, ge=1, le=LARGEST_COUNT, description="Stop after this many steps, if that is earlier"
    )
    validation_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of the clips that the adapter does not learn from and is tested on; of 40 clips "
        "or more at least 8, unless it is 0",
    )
    validate_every_steps: int | None = Field(
        None, ge=1, le=LARGEST_COUNT, description="Steps between tests within an epoch; by default only at its end"
    )
    early_stopping: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="Stop after this many tests in a row without a new best; by default never",
    )


class SampleSettings(Settings):
    """Music rendered while training, to listen to."""

    model_config = ConfigDict(title="Samples")

    sample_prompts: list[PromptText] | None = Field(
        None,
        description="Texts to make samples from, before the training and after each epoch; by default "
        "three on a GPU and none on a CPU",
    )
    sample_seconds: float = Field(10.0, gt=0, le=30, description="Length of each sample in seconds")


class DataSettings(Settings):
    """What the model sees of the clips and their texts."""

    model_config = ConfigDict(title="Training data")

    segment_seconds: float = Field(
        30.0, ge=0.2, le=30, description="Seconds that the model hears at once: a random part of each clip"
    )
    cfg_dropout: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the clips trained without their description, as guidance needs it; by default the "
        "model's own",
    )
    word_dropout: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the words left out of the other descriptions; by default the model's own",
    )
    melody_dropout: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the clips with their description that are trained without their melody, if the model "
        "takes one; by default the model's own",
    )
    merge_text_p: float = Field(0.25, ge=0, le=1, description="Share of texts with fields added, such as genre and bpm")
    drop_desc_p: float = Field(0.5, ge=0, le=1, description="Share of these texts without the description itself")
    drop_other_p: float = Field(0.5, ge=0, le=1, description="Share of the fields left out of these texts")
    prior_preservation: float = Field(
        0.0,
        ge=0,
        le=0.99,
        description="Share of an epoch's clips that the base model plays itself, from general prompts, so "
        "that the adapter forgets less of what the base model can play",
    )
    prior_prompts: Annotated[str | None, AfterValidator(_check_prior_prompts)] = Field(
        None, description="Text file of these general prompts, one per line; by default a built-in list"
    )


class SavingSettings(Settings):
    """Checkpoints and models on disk."""

    model_config = ConfigDict(title="Saving")

    save_every_steps: int = Field(500, ge=1, le=LARGEST_COUNT, description="Steps between checkpoints that are kept")
    save_every_minutes: float = Field(
        5.0,
        gt=0,
        le=1e9,
        description="Minutes between saves of the newest state (latest.pt), from which training resumes",
    )
    keep_last: int | None = Field(
        None,
        ge=1,
        le=LARGEST_COUNT,
        description="Checkpoints to keep, the newest ones; by default all, and one with train all",
    )
    full_models: Literal["each_epoch", "best_and_final", "none"] = Field(
        "each_epoch",
        description="When to write a whole model with the adapter merged in: 6.2 GB each for musicgen-large",
    )


class HardwareSettings(Settings):
    """How the GPUs are used for training."""

    model_config = ConfigDict(title="Hardware")

    gpus: int = Field(1, ge=1, le=MOST_WORKERS, description="GPUs of this machine to train on")
    base_precision: Literal["bf16", "fp8"] = Field(
        "bf16", description="Precision of the base model on a GPU; fp8 is faster on an H100 and newer"
    )
    activation_checkpointing: _Switch = Field(
        None,
        description="Compute activations twice to save memory; by default where the GPU needs it",
        json_schema_extra=_AUTO,
    )
    compile_blocks: _Switch = Field(
        None,
        description="Compile the model's blocks, which takes a minute and trains faster; by default on a GPU",
        json_schema_extra=_AUTO,
    )
    deterministic: bool = Field(
        False,
        description="On a GPU, compute the same bits in each run and after each resumption, 7 % slower",
    )


class TrainSettings(
    AdapterSettings,
    OptimizerSettings,
    ValidationSettings,
    SampleSettings,
    DataSettings,
    SavingSettings,
    HardwareSettings,
):
    """How to train."""

    num_epochs: Epochs = 5
    train: Trained = "lora"
    lora_r: LoraRank = DEFAULT_RANK
    learning_rate: LearningRate = 0.0
    seed: Seed = 0

    @property
    def kept(self) -> int | None:
        """Return how many of the newest checkpoints are kept; None for all, by default those of an adapter."""
        return 1 if self.keep_last is None and self.train == "all" else self.keep_last


# Validators are annotations rather than methods, so that flow parameters and the command line use them, too.


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


class DescriptionSettings(Settings):
    """Texts for clips in the place of the metadata's, or made from them."""

    model_config = ConfigDict(title="Descriptions")

    caption: _Text = Field(None, description="One description for all clips, in place of their own")
    caption_prefix: _Text = Field(
        None, description="Words before every description, such as a name for your style that prompts can use later"
    )
    caption_template: Annotated[_Text, AfterValidator(_check_template)] = Field(
        None, description='Pattern that makes descriptions from fields of the metadata, such as "{genre}, {bpm} bpm"'
    )


class ReadingSettings(Settings):
    """What to expect of archives."""

    model_config = ConfigDict(title="Reading archives")

    name_encoding: Annotated[str, AfterValidator(_check_encoding)] = Field(
        "auto", description="Encoding of file names in old zips, such as cp932 for Japanese; auto recognises most"
    )
    max_clip_gib: float = Field(
        2.0, gt=0, le=2**20, description="Clips larger than this are rejected: GiB, unpacked or decoded"
    )
    max_ratio: float = Field(
        200.0,
        gt=1,
        le=1e9,
        description="An archive that unpacks to more than this many times its size is refused as a zip bomb",
    )


class TokenizeSettings(DescriptionSettings, ReadingSettings):
    """How to describe clips, what to leave out of archives and of the audio, and what to expect of archives."""

    exclude: Exclude = ()
    remove_vocals: RemoveVocals = False
    separate_melody: SeparateMelody = False


Duration = Annotated[
    float,
    Field(
        gt=0,
        le=LONGEST_SECONDS,
        description="Length of each sample in seconds; over 30 it is generated in overlapping parts",
    ),
]
MusicSeed = Annotated[
    int, Field(ge=0, lt=2**32, description="Number that fixes everything random: the same one gives the same music")
]


class ChoiceSettings(Settings):
    """How codes are chosen, one after the other."""

    model_config = ConfigDict(title="Sampling")

    overlap: float = Field(
        12.0, gt=0, le=29, description="In samples over 30 seconds: seconds of the previous part that a part continues"
    )
    greedy: bool = Field(False, description="No chance: always take the likeliest sound token")
    top_k: int = Field(250, ge=0, le=LARGEST_COUNT, description="Choose among the k likeliest tokens; 0: among all")
    top_p: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Choose among the likeliest tokens that hold this much probability, instead of top-k; 0: off",
    )
    temperature: float = Field(
        1.0, ge=1e-5, le=1000, description="Above 1 the music is more surprising, below 1 more predictable"
    )
    guidance: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="How closely the music follows the text (classifier-free guidance); by default the model's own",
    )


class SamplingSettings(ChoiceSettings):
    """How to make music from a text."""

    duration: Duration = 10.0
    seed: MusicSeed = 0
