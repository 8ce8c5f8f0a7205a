"""The layers of a block that an adapter may change, and which model of transformers has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LINEARS = (
    *(f"{attention}.{name}_proj" for attention in ("self_attn", "encoder_attn") for name in ("q", "k", "v", "out")),
    "fc1",
    "fc2",
)

_TEXT, _MELODY = "MusicgenForConditionalGeneration", "MusicgenMelodyForConditionalGeneration"
MODULES = {
    _TEXT: "transformers.models.musicgen.modeling_musicgen",
    _MELODY: "transformers.models.musicgen_melody.modeling_musicgen_melody",
}


def class_of_weights(weights: Mapping[str, Any]) -> str:
    """Return the name of transformers' class for a language model's weights: one that takes a melody or not."""
    return _TEXT if any(".encoder_attn." in name for name in weights) else _MELODY


_PUBLISHED_MELODY = re.compile(r"facebook/musicgen-(?:stereo-)?melody\b")


def transformers_class(adapter: Mapping[str, Any]) -> str:
    """Return the name of transformers' class for an adapter's base model: one that takes a melody or not.

    A model that takes a melody lacks the cross-attention that the targets would select. Targets that select none say
    nothing, and then it is the text's class unless the base model is one of Meta's that take a melody.

    Args:
        adapter: the content of a `*_lora.pt`.
    """
    cross = [f".{name}" for name in LINEARS if name.startswith("encoder_attn.")]
    targets = adapter["config"]["target_modules"]
    if not any(name.endswith(f".{target}") or target.endswith(name) for name in cross for target in targets):
        return _MELODY if _PUBLISHED_MELODY.match(str(adapter["base_model"])) else _TEXT
    return _TEXT if any(".encoder_attn." in name for name in adapter["lora"]) else _MELODY
