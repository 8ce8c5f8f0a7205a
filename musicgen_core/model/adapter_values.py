"""Check the content of an adapter's file before anything is computed with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from musicgen_core.errors import AdapterError
from musicgen_core.language import message
from musicgen_core.tensor_files import names_of_non_finite

_KINDS: dict[str, type | tuple[type, ...]] = {
    "lora": dict,
    "config": dict,
    "epoch": int,
    "global_step": int,
    "loss": (int, float),
    "base_model": str,
}


def check_adapter_values(values: Mapping[str, Any]) -> None:
    """Check the values of an adapter, from a `*_lora.pt`, a PEFT directory or a checkpoint.

    Raises:
        ValueError: a value is missing or has the wrong type, a number is NaN or infinite, or the rank differs from
            that of the tensors; the message names the value.
    """
    for name, kind in _KINDS.items():
        if name not in values:
            raise ValueError(f"it has no {name}")
        if not isinstance(values[name], kind):
            raise ValueError(f"its {name} is a {type(values[name]).__name__}")
    check_lora_config(values["config"])
    check_tensors(values["lora"])
    rank = values["config"]["r"]
    for name, tensor in values["lora"].items():
        if name.endswith("lora_A.weight") and tensor.shape[:1] != (rank,):
            raise ValueError(f"its r is {rank}, but the shape of {name} is {list(tensor.shape)}")


def check_lora_config(config: Mapping[str, Any]) -> None:
    """Check the rank and the scaling of an adapter.

    Raises:
        ValueError: one is missing, not a number, NaN or infinite.
    """
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"its r is {rank!r}, not a rank")
    for name in ("lora_alpha", "lora_dropout"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"its {name} is {value!r}, not a finite number")


def check_tensors(tensors: Mapping[str, Any]) -> None:
    """Check that all values are tensors of finite numbers.

    Raises:
        ValueError: one is not a tensor, or holds NaN or an infinity.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"its {name} is a {kind}, not a tensor of floating-point numbers")
    if broken := names_of_non_finite(tensors):
        raise ValueError(
            f"{len(broken)} of its {len(tensors)} tensors hold NaN or infinite values, such as {broken[0]}"
        )


def check_merged(weights: Mapping[str, Tensor], precision: str) -> None:
    """Check a model that an adapter was merged into.

    Raises:
        AdapterError: merging made a weight NaN or infinite.
    """
    if broken := names_of_non_finite(weights):
        raise AdapterError(
            message(
                "merged with the adapter, {number} of the model's {total} tensors hold NaN or "
                "infinite values in {precision}, such as {example}",
                number=len(broken),
                total=len(weights),
                precision=precision,
                example=broken[0],
            ),
            message("Give another adapter, or train it again with a lower --learning-rate"),
        )
