"""Settings of the adapter and of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from musicgen_core.errors import ConfigError
from musicgen_core.language import message
from musicgen_core.layer_ranges import parse_layers, parse_ranks, show_layers, show_ranks
from musicgen_core.settings import LARGEST_COUNT, Settings, names_in

EFFECTIVE_BATCH = 16
"""Clips per optimizer step by default: micro-batch × accumulation steps × GPUs"""

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""Linear layers that get LoRA: self- and cross-attention each have the first four, so ten layers a block."""


DEFAULT_RANK = 8


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value  # YAML reads 24 as a number


def _check_layers(text: str | None) -> str | None:
    if text is None or not text.strip():
        return None
    try:
        return show_layers(parse_layers(text))
    except ValueError as error:
        raise PydanticCustomError("layers", "should be numbers of layers such as 24-47 or 0-11,24") from error


def _check_ranks(text: str | None, info: ValidationInfo) -> str | None:
    if text is None or not text.strip():
        return None
    try:
        ranks = parse_ranks(text)
    except ValueError as error:
        raise PydanticCustomError("ranks", "should be ranks of layers such as 0-23=4,24-47=16") from error
    layers = info.data.get("layers")
    if layers is not None and (without := sorted(set(ranks) - set(parse_layers(layers)))):
        context = {"without": show_layers(without), "layers": layers}
        raise PydanticCustomError(
            "ranks", "should not name layers {without}, which layers {layers} leaves without an adapter", context
        )
    return show_ranks(ranks)


class AdapterSettings(Settings):
    """Shape of the adapter, beside its rank."""

    model_config = ConfigDict(title="LoRA")

    lora_alpha: float = Field(
        32, gt=0, le=1e6, description="How strongly the adapter acts: what it learns is multiplied by alpha / rank"
    )
    lora_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the adapter's inputs left out at random, against learning by heart (dropout)",
    )
    lora_targets: Annotated[list[str], BeforeValidator(names_in)] = Field(
        list(LORA_TARGETS),
        min_length=1,
        description="Layers of the model that get an adapter, such as q_proj, or encoder_attn.q_proj for "
        "cross-attention's alone; by default all",
        json_schema_extra=_without_default,  # six rows of text in a form
    )
    layers: Annotated[str | None, BeforeValidator(_as_text), AfterValidator(_check_layers)] = Field(
        None, description="Numbers of the blocks that get an adapter, from 0, such as 24-47 or 0-11,24; by default all"
    )
    ranks: Annotated[str | None, AfterValidator(_check_ranks)] = Field(
        None,
        description="Ranks of some blocks in place of lora_r, such as 0-23=4,24-47=16; each is scaled by alpha / its "
        "own rank",
    )
    lora_rslora: bool = Field(False, description="Multiply by alpha / √rank (rsLoRA), steadier for large adapters")
    lora_dora: bool = Field(False, description="Learn the weights' magnitudes, too (DoRA); slower")


OptimizerName = Literal["adamw", "prodigy", "schedulefree", "adamw8bit"]
_PACKAGES = {"prodigy": "prodigyopt", "schedulefree": "schedulefree", "adamw8bit": "bitsandbytes"}
"""The modules of optimizers that PyTorch doesn't have; their packages have the same names."""


def check_optimizer(name: str) -> None:
    """Check that the package of an optimizer is installed.

    Raises:
        ConfigError: it isn't.
    """
    package = _PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        raise ConfigError(
            message(
                "optimizer_name {name} needs the package {package}, which is not installed", name=name, package=package
            ),
            message("Install it: uv sync --extra optimizers, or pip install {package}", package=package),
        )


_NOT_WITH_ALL = {"base_precision": "fp8", "full_models": "none"}
"""Values of other settings that don't work with `train all`"""
_NOT_SHARDED = ("prodigy", "adamw8bit")
"""Optimizers whose state can't be shared by several GPUs: of one step size for all weights, or in blocks of 8 bits"""


def check_full_training(given: Mapping[str, Any], processes: int = 1) -> None:
    """Check the settings of a run with `train all`; those that aren't given have their defaults.

    Args:
        given: settings by name.
        processes: processes that share the run.

    Raises:
        ConfigError: settings of an adapter differ from their defaults, or another one doesn't work with `train all`.
    """
    if given.get("train") != "all":
        return
    adapters = {"lora_r": DEFAULT_RANK} | {name: field.default for name, field in AdapterSettings.model_fields.items()}
    if own := [name for name, default in adapters.items() if given.get(name, default) != default]:
        raise ConfigError(
            message("train all trains no adapter, which {names} are settings of", names=", ".join(own)),
            message("Leave them out, or give --train lora"),
        )
    for name, value in _NOT_WITH_ALL.items():
        if given.get(name) == value:
            raise ConfigError(
                message("{name} {value} doesn't work with train all", name=name, value=value),
                message("Leave it out, or give --train lora"),
            )
    optimizer = given.get("optimizer_name", "adamw")
    if processes > 1 and optimizer in _NOT_SHARDED:
        raise ConfigError(
            message("optimizer_name {name} can't share its state among several processes", name=optimizer),
            message("Give --optimizer adamw or schedulefree, or --gpus 1"),
        )


def _check_schedule(schedule: str, info: ValidationInfo) -> str:
    if schedule != "constant" and info.data.get("optimizer_name") == "schedulefree":
        raise PydanticCustomError(
            "schedule", "should be constant with optimizer_name schedulefree, which needs no schedule"
        )
    return schedule


def _check_ema(ema: float | None, info: ValidationInfo) -> float | None:
    if ema is not None and info.data.get("optimizer_name") == "schedulefree":
        raise PydanticCustomError(
            "ema", "should not be given with optimizer_name schedulefree, which averages the weights already"
        )
    return ema


class OptimizerSettings(Settings):
    """Batches, and how the weights follow the gradients."""

    model_config = ConfigDict(title="Optimizer")

    batch_size: Annotated[int, Field(ge=1, le=4096)] | SkipJsonSchema[Literal["auto"]] = Field(
        "auto", description="Clips that the device works on at once (micro-batch); by default as many as fit"
    )
    gradient_accumulation_steps: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description=f"Micro-batches in one step of learning; by default the step sees {EFFECTIVE_BATCH} clips in all",
    )
    optimizer_name: OptimizerName = Field(
        "adamw",
        description="How gradients change the weights: adamw; prodigy, which finds the learning rate itself (give 1 as "
        "learning_rate); schedulefree, with a constant learning rate and averaged weights; adamw8bit, with moments "
        "in 8 bits",
    )
    warmup_steps: int = Field(0, ge=0, le=LARGEST_COUNT, description="Steps in which the learning rate rises from 0")
    schedule: Annotated[Literal["constant", "linear", "cosine"], AfterValidator(_check_schedule)] = Field(
        "constant", description="Learning rate after that: constant, or falling to 0 at the last step"
    )
    weight_decay: float = Field(
        0.01, ge=0, le=1000, description="Pull of the trained weights towards 0 (weight decay of AdamW)"
    )
    ema: Annotated[float | None, AfterValidator(_check_ema)] = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the trained weights, such as 0.999, which is tested and saved "
        "beside them, as ema_lora.pt; by default none",
    )
    max_grad_norm: float = Field(
        1.0, gt=0, le=1e9, description="Limit on how far one step may go (gradients are clipped to this norm)"
    )
