"""Checks of an adapter's values, and its ranks by block in the form that peft uses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from musicgen_core.tensor_files import names_of_non_finite

_FACTS: dict[str, type | tuple[type, ...]] = {
    "epoch": int,
    "global_step": int,
    "loss": (int, float),
    "base_model": str,
}
_IN_LAYER = re.compile(r"\.layers\.(\d+)\.")
_PATTERN = re.compile(r"layers\\\.(\d+)\\\.\.\*")


def pattern_of(ranks: Mapping[int, int]) -> dict[str, int]:
    """Return ranks by block as peft's `rank_pattern`, whose keys are regular expressions of layers' names."""
    return {rf"layers\.{number}\..*": rank for number, rank in ranks.items()}


def ranks_in(config: Mapping[str, Any]) -> dict[int, int]:
    """Return the ranks by block that `pattern_of` wrote into an adapter's config; empty if it has none."""
    patterns = config.get("rank_pattern") or {}
    found = ((_PATTERN.fullmatch(pattern), rank) for pattern, rank in patterns.items())
    return {int(match[1]): rank for match, rank in found if match is not None}


def check_adapter_values(values: Mapping[str, Any]) -> None:
    """Check the values of an adapter, from a `*_lora.pt`, a PEFT directory or a checkpoint.

    Raises:
        ValueError: a value is missing, has the wrong type, is not finite, or doesn't fit the others; it is named.
    """
    _check_kinds(values, {"lora": dict, "config": dict, **_FACTS})
    config = values["config"]
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"its r is {rank!r}, not a rank")
    for name in ("lora_alpha", "lora_dropout"):
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"its {name} is {value!r}, not a finite number")
    ranks = _checked_ranks(config)
    check_tensors(values["lora"])
    for name, tensor in values["lora"].items():
        own = ranks.get(_layer_of(name), rank)
        if name.endswith("lora_A.weight") and tensor.shape[:1] != (own,):
            raise ValueError(f"its r is {own}, but the shape of {name} is {list(tensor.shape)}")


def check_facts(values: Mapping[str, Any]) -> None:
    """Check the values that an adapter and a model that was trained whole have in common.

    Raises:
        ValueError: one is missing or has the wrong type; it is named.
    """
    _check_kinds(values, _FACTS)


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    for name, kind in kinds.items():
        if name not in values:
            raise ValueError(f"it has no {name}")
        if not isinstance(values[name], kind):
            raise ValueError(f"its {name} is a {type(values[name]).__name__}")


def _checked_ranks(config: Mapping[str, Any]) -> dict[int, int]:
    """Return `ranks_in`, after checking the values about single layers.

    Raises:
        ValueError: one is not usable; it is named.
    """
    layers = config.get("layers_to_transform")
    if layers is not None and not (isinstance(layers, list) and all(type(one) is int and one >= 0 for one in layers)):
        raise ValueError(f"its layers_to_transform is {layers!r}, not a list of numbers")
    patterns = config.get("rank_pattern") or {}
    ranks = ranks_in(config) if isinstance(patterns, dict) else {}
    if len(ranks) != len(patterns) or not all(type(one) is int and one >= 1 for one in ranks.values()):
        raise ValueError(f"its rank_pattern is {patterns!r}, not ranks by layer")
    return ranks


def _layer_of(name: str) -> int:
    """Return the number of the block that a tensor or a layer is in; -1 outside the blocks."""
    match = _IN_LAYER.search(name)
    return int(match[1]) if match else -1


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
