"""A toy HTDemucs in the format that Demucs's author publishes on the Hub."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from musicgen_core.separation.weights import BAG_FILE, SIGNATURE, WEIGHTS_FILE

TOY: dict[str, Any] = {
    "sources": ["drums", "bass", "other", "vocals"], "samplerate": 44_100, "segment": Fraction(1, 2), "channels": 4,
    "dconv_mode": 3, "dconv_depth": 1, "dconv_comp": 2, "bottom_channels": 16, "t_layers": 1, "t_heads": 2,
    "t_hidden_scale": 1.0,
}  # fmt: skip
"""Arguments of the model; the real one's have the same names"""


def make_demucs(folder: Path, arguments: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """Write an HTDemucs with random weights, in half precision as the real ones.

    Args:
        folder: an empty directory.
        arguments: of the model, by default `TOY`.
        seed: of the weights.

    Returns:
        The directory.
    """
    import torch
    from demucs.htdemucs import HTDemucs
    from safetensors.torch import save_file

    arguments = TOY if arguments is None else arguments
    torch.manual_seed(seed)
    model = HTDemucs(**arguments)
    # As initialized, the residual branches hardly count (LayerScale).
    state = {
        name: (value if value.dim() != 1 else value + 0.1 * torch.randn_like(value)).half().contiguous()
        for name, value in model.state_dict().items()
    }
    described = {"klass": "demucs.htdemucs.HTDemucs", "args": "[]", "kwargs": json.dumps(arguments, default=_fraction)}
    save_file(state, folder / WEIGHTS_FILE, described)
    (folder / BAG_FILE).write_text(f"models: ['{SIGNATURE}']\n")
    return folder


def _fraction(value: Fraction) -> dict[str, Any]:
    return {"_type": "fraction", "numerator": value.numerator, "denominator": value.denominator}
