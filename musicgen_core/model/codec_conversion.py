"""Convert EnCodec between audiocraft's checkpoint format and transformers' EncodecModel.

Both are the same network; names differ, and two things that transformers' class has no setting for are expressed by
weights. A convolution without weight norm is one whose magnitude is its own norm. Without an LSTM, one with zero
weights adds zero to its input. Where encoder and decoder differ in width, as in `demo`, the narrower gets channels
of zeros.

Source of names: transformers, `models/encodec/convert_encodec_checkpoint_to_pytorch.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from torch import Tensor

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model.audiocraft_format import checkpoint_of
from musicgen_core.model.configuration import XpConfig, shown

# Settings of audiocraft's SEANet by their names in transformers, with audiocraft's defaults.
_SEANET: dict[str, tuple[str, Any]] = {
    "dimension": ("hidden_size", 128),
    "n_filters": ("num_filters", 32),
    "n_residual_layers": ("num_residual_layers", 3),
    "ratios": ("upsampling_ratios", [8, 5, 4, 2]),
    "kernel_size": ("kernel_size", 7),
    "last_kernel_size": ("last_kernel_size", 7),
    "residual_kernel_size": ("residual_kernel_size", 3),
    "dilation_base": ("dilation_growth_rate", 2),
    "causal": ("use_causal_conv", False),
    "pad_mode": ("pad_mode", "reflect"),
    "compress": ("compress", 2),
    "lstm": ("num_lstm_layers", 0),
    "trim_right_ratio": ("trim_right_ratio", 1.0),
}
# Settings that transformers' class lacks: audiocraft's default, and the values that it computes.
_FIXED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "channels": (1, (1,)),
    "activation": ("ELU", ("ELU",)),
    "activation_params": ({"alpha": 1.0}, ({"alpha": 1.0},)),
    "norm": ("none", ("none", "weight_norm")),
    "norm_params": ({}, ({},)),
    "true_skip": (True, (True, False)),
    "disable_norm_outer_blocks": (0, (0,)),
    "final_activation": (None, (None,)),
}
_MAGNITUDE, _DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"


def to_transformers(checkpoint: Mapping[str, Any], name: str) -> Any:
    """Return audiocraft's codec as transformers' EncodecModel.

    Args:
        checkpoint: content of `compression_state_dict.bin`.
        name: the codec's name in errors.

    Raises:
        ModelError: transformers' class can't compute the same.
    """
    from transformers import EncodecConfig, EncodecModel

    config = XpConfig(checkpoint["xp.cfg"], name)
    encoder, decoder = (_side(config, side, name) for side in ("encoder", "decoder"))
    layers, bins = int(encoder["lstm"]), int(config.get("rvq.bins", 1024))
    has_one_width = encoder["n_filters"] == decoder["n_filters"]
    differing = [key for key in encoder if encoder[key] != decoder[key] and (key != "n_filters" or layers)]
    if differing:
        raise _unsupported(name, {f"seanet.decoder.{key}": decoder[key] for key in differing})
    widest = max(encoder["n_filters"], decoder["n_filters"])
    converted = EncodecConfig(
        **{theirs: encoder[ours] for ours, (theirs, _) in _SEANET.items()}
        | _quantizer(config, bins, encoder["ratios"]),
        use_conv_shortcut=not encoder["true_skip"],
        norm_type="weight_norm",
    )
    converted.num_filters, converted.num_lstm_layers = widest, max(1, layers)
    model = EncodecModel(converted).eval()
    wanted = model.state_dict()
    state = _named(checkpoint["best_state"], None if layers else _lstm_positions(encoder))
    state = {key: state.get(key, torch.zeros_like(one)) for key, one in wanted.items() if key in state or not layers}
    if not has_one_width:
        state = {key: _padded(state[key], one) for key, one in wanted.items() if key in state}
    for key in [key for key in state if key.endswith(_DIRECTION)]:
        _norm_rows_of_zeros(state, key)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            message("{name} lacks weights, such as {example}", name=name, example=str(error).partition("\n")[2][:200]),
            message("Fetch the file again"),
        ) from error
    return model


def to_audiocraft(encodec: Any, name: str) -> dict[str, Any]:
    """Return transformers' EncodecModel as the content of `compression_state_dict.bin`.

    Raises:
        ModelError: audiocraft's class can't compute the same.
    """
    config = encodec.config
    if config.norm_type != "weight_norm" or config.codebook_dim != config.hidden_size:
        raise _unsupported(name, {"norm_type": config.norm_type, "codebook_dim": config.codebook_dim})
    seanet = {ours: getattr(config, theirs) for ours, (theirs, _) in _SEANET.items()}
    trim = seanet.pop("trim_right_ratio")
    seanet |= {"ratios": list(seanet["ratios"]), "channels": 1, "norm": "weight_norm", "norm_params": {}}
    seanet |= {"activation": "ELU", "activation_params": {"alpha": 1.0}, "disable_norm_outer_blocks": 0}
    seanet |= {"true_skip": not config.use_conv_shortcut, "encoder": {}}
    seanet |= {"decoder": {"trim_right_ratio": trim, "final_activation": None}}
    one = {"sample_rate": config.sampling_rate, "channels": 1}
    settings = {
        "compression_model": "encodec",
        "device": "cpu",
        **one,
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "causal": seanet["causal"],
            "renormalize": False,
            **one,
        },
        "seanet": seanet,
        "rvq": {
            **{"n_q": config.num_quantizers, "bins": config.codebook_size, "q_dropout": False, "decay": 0.99},
            **{"kmeans_init": False, "threshold_ema_dead_code": 0},
        },
    }
    modules = encodec.named_modules()
    transposed = {key for key, module in modules if isinstance(module, torch.nn.ConvTranspose1d)}
    state = {_audiocraft_name(key, transposed): one for key, one in encodec.state_dict().items()}
    return checkpoint_of(yaml.safe_dump(settings, sort_keys=False), state)


def _side(config: XpConfig, side: str, name: str) -> dict[str, Any]:
    """Return the settings of encoder or decoder, with defaults."""
    given = {key: value for key, value in config.section("seanet").items() if key not in ("encoder", "decoder")}
    given |= config.section(f"seanet.{side}")
    refused = {key: given[key] for key in given if key not in _SEANET and key not in _FIXED}
    values = {key: given.get(key, default) for key, (default, _) in _FIXED.items()}
    refused |= {key: value for key, value in values.items() if value not in _FIXED[key][1]}
    if refused:
        raise _unsupported(name, {f"seanet.{key}": value for key, value in refused.items()})
    values |= {key: given.get(key, default) for key, (_, default) in _SEANET.items()}
    if side == "encoder":  # which trims nothing
        values["trim_right_ratio"] = config.get("seanet.decoder.trim_right_ratio", 1.0)
    return values


def _quantizer(config: XpConfig, bins: int, ratios: list[int]) -> dict[str, Any]:
    """Return the settings from which transformers computes the number of codebooks, besides their size."""
    rate, codebooks = int(config.get("encodec.sample_rate")), int(config.get("rvq.n_q", 8))
    bits_per_codebook = math.ceil(math.log2(bins)) * math.ceil(rate / math.prod(ratios))  # a second
    bandwidth = codebooks * bits_per_codebook / 1000
    if int(1000 * bandwidth // bits_per_codebook) != codebooks:
        bandwidth += bits_per_codebook / 2000
    return {"sampling_rate": rate, "codebook_size": bins, "target_bandwidths": [bandwidth]}


def _unsupported(name: str, values: Mapping[str, Any]) -> ModelError:
    names = "; ".join(f"{key} is {shown(value)}" for key, value in values.items())
    return ModelError(
        message("{name} can't be written in the other format: {names}", name=name, names=names),
        message("Give another --format"),
    )


def _lstm_positions(seanet: Mapping[str, Any]) -> dict[str, int]:
    """Return where transformers' class has its LSTM, in encoder and decoder."""
    return {"encoder": 1 + len(seanet["ratios"]) * (seanet["n_residual_layers"] + 2), "decoder": 1}


def _named(state: Mapping[str, Tensor], inserted: Mapping[str, int] | None) -> dict[str, Tensor]:
    """Return audiocraft's weights by transformers' names.

    Args:
        inserted: index of a layer of encoder and decoder that audiocraft's codec doesn't have.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if match := re.fullmatch(r"model\.(\d+)\.(.+)", rest):
            index = int(match[1]) + (inserted is not None and int(match[1]) >= inserted[part])
            module = re.sub(r"(^|\.)(conv|convtr)\.\2\.", r"\1conv.", match[2])
            base, _, kind = f"{part}.layers.{index}.{module}".rpartition(".")
            if kind == "weight":  # a convolution without weight norm
                found[f"{base}.{_MAGNITUDE}"] = tensor.float().flatten(1).norm(dim=1)[:, None, None]
                found[f"{base}.{_DIRECTION}"] = tensor
            else:
                found[f"{base}.{ {'weight_g': _MAGNITUDE, 'weight_v': _DIRECTION}.get(kind, kind) }"] = tensor
        else:
            found[name.replace("quantizer.vq.layers.", "quantizer.layers.").replace("._codebook.", ".codebook.")] = (
                tensor
            )
    return found


def _audiocraft_name(name: str, transposed: set[str]) -> str:
    """Return audiocraft's name of a weight.

    Args:
        transposed: the names of the transposed convolutions.
    """
    if name.startswith("quantizer."):
        return name.replace("quantizer.layers.", "quantizer.vq.layers.").replace(".codebook.", "._codebook.")
    name = name.replace(_MAGNITUDE, "weight_g").replace(_DIRECTION, "weight_v")
    kind = "convtr" if name.rpartition(".")[0] in transposed else "conv"
    return name.replace(".layers.", ".model.", 1).replace(".conv.", f".{kind}.{kind}.", 1)


def _norm_rows_of_zeros(state: dict[str, Tensor], direction: str) -> None:
    """Give rows of zeros a direction, which weight norm divides by; their magnitude is zero."""
    tensor = state[direction]
    zeros = tensor.flatten(1).abs().amax(dim=1) == 0
    state[direction] = torch.where(zeros[:, None, None], torch.ones_like(tensor), tensor)


def _padded(tensor: Tensor, wanted: Tensor) -> Tensor:
    padded = torch.zeros_like(wanted)
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded
