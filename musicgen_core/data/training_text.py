"""The text of a clip in an epoch: its description, sometimes with fields such as genre and tempo, or these alone.

MusicGen was trained with such texts (audiocraft, `augment_music_info_description` in data/music_dataset.py), which
teaches it short and long prompts, in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from musicgen_core.data.caption_fields import PREFIX
from musicgen_core.texts import shorten


@dataclass(frozen=True)
class TextVariation:
    """Probabilities by which texts vary.

    Attributes:
        merge_text_p: of adding fields to the description.
        drop_desc_p: of leaving out the description where fields are added.
        drop_other_p: of leaving out each of the fields.
    """

    merge_text_p: float = 0.0
    drop_desc_p: float = 0.0
    drop_other_p: float = 0.0

    def apply(self, description: str | None, fields: Mapping[str, str], rng: np.random.Generator) -> str | None:
        """Return the text of a clip in one epoch.

        Unlike audiocraft's, it is only empty if the clip has no texts at all: `cfg_dropout` decides how often the model
        is trained without a text.

        Args:
            description: the clip's description, which begins with the prefix, if any.
            fields: texts by name, among them the prefix (`texts_for_training`).
            rng: the clip's random numbers in this epoch.
        """
        prefix = fields.get(PREFIX)
        others = [f"{name}: {value}" for name, value in fields.items() if name != PREFIX]
        if not others or rng.random() >= self.merge_text_p:
            return description
        chosen = [text for text in others if rng.random() >= self.drop_other_p]
        is_dropped = rng.random() < self.drop_desc_p
        if not chosen:
            return description
        rng.shuffle(chosen)
        merged = ". ".join(chosen)
        if description and not is_dropped:
            return shorten(f"{description.rstrip('.')}. {merged}")
        return shorten(f"{prefix}, {merged}" if prefix else merged)
