"""Adapters in peft's own format, with the module names of Hugging Face's `MusicgenForConditionalGeneration`.

A directory with `adapter_config.json` and `adapter_model.safetensors` (or `adapter_model.bin`, read without running its
code). Names of modules are the same as here, except that the language model is called `decoder`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from upath import UPath

from musicgen_core import storage, tensor_files
from musicgen_core.errors import AdapterError
from musicgen_core.language import message
from musicgen_core.model.adapted_layers import LINEARS, MODULES, transformers_class
from musicgen_core.model.adapter_values import pattern_of

logger = logging.getLogger(__name__)
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLED_FILE = "adapter_model.bin"
FILES = (CONFIG_FILE, WEIGHTS_FILE, _PICKLED_FILE)
_PREFIX, _LM = "base_model.model.", "decoder."
_TENSOR = re.compile(
    rf"base_model\.model\.(?P<layer>(?:decoder\.)?model\.decoder\.layers\.\d+\.(?:{'|'.join(map(re.escape, LINEARS))}))"
    r"\.(?P<kind>lora_[AB]\.weight|lora_magnitude_vector)(?:\.weight)?"
)
_NAME_OF_MODULE = re.compile(r"\.(?:lora_|modules_to_save|base_layer|weight$|bias$)")
_WITHOUT_EFFECT = {  # on the result of a trained adapter, or implied by the names of its tensors
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "fan_in_fan_out", "bias", "megatron_core", "megatron_config", "runtime_config"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "ensure_weight_tying"),
    *("layers_pattern", "exclude_modules", "layers_to_transform", "qalora_group_size"),
}
_UNDERSTOOD = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "init_lora_weights"),
    *("rank_pattern", "alpha_pattern"),
}
_KEPT = ("base_model", "epoch", "global_step", "loss")
"""Values of a `*_lora.pt` that peft's format lacks, stored in the metadata of the safetensors file."""
_DIGEST = "sha256_of_tensors_and_metadata"
"""A key of the metadata: a checksum, without which flipped bits would change weights silently."""
_SCALING = ("r", "lora_alpha", "use_rslora", "use_dora")
"""Settings of adapter_config.json that the metadata repeats, to detect changes."""
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Initializations that don't change the base's weights."""


def find_weights(directory: UPath) -> UPath | None:
    """Return the weights' file of a PEFT directory, or None if the directory isn't one.

    Raises:
        AdapterError: one of its files is missing.
    """
    config, weights, pickled = (directory / name for name in FILES)
    found = next((path for path in (weights, pickled) if path.exists()), None)
    if config.exists() and found is None:
        raise AdapterError(
            message(
                "the PEFT directory {directory} has {config_file} but no {weights_file}",
                directory=directory,
                config_file=CONFIG_FILE,
                weights_file=WEIGHTS_FILE,
            ),
            message("Copy it there, or save it again"),
        )
    if found is not None and not config.exists():
        raise AdapterError(
            message(
                "{directory} has {name} but no {config_file}, which says how strong the adapter is",
                directory=directory,
                name=found.name,
                config_file=CONFIG_FILE,
            ),
            message("Copy the adapter_config.json that peft wrote with it there"),
        )
    return found


def read(weights: UPath) -> dict[str, Any]:
    """Return the adapter of a PEFT directory as the content of a `*_lora.pt`.

    Values that peft's format lacks (epoch, step, loss, hash of the base model) are there if `write` wrote them.

    Raises:
        AdapterError: it isn't LoRA, is damaged, or adapts layers that can't be adapted here.
    """
    directory = weights.parent
    config = _read_config(directory / CONFIG_FILE)
    _check_config(config, directory)
    state, metadata = _read_tensors(weights)
    if changed := [name for name in _SCALING if metadata.get(name, str(config.get(name))) != str(config.get(name))]:
        logger.warning(
            "%s was changed after it was exported: %s",
            directory / CONFIG_FILE,
            ", ".join(f"{name} was {metadata[name]} and is {config.get(name)}" for name in changed),
        )
    foreign = {_NAME_OF_MODULE.split(name.removeprefix(_PREFIX))[0] for name in state if not _TENSOR.fullmatch(name)}
    if foreign:
        raise _adapts_others(directory, sorted(foreign))
    layers = _layers(state)
    if not layers or not all({"lora_A.weight", "lora_B.weight"} <= tensors.keys() for tensors in layers.values()):
        raise AdapterError(
            message("{weights} lacks LoRA weights", weights=weights),
            message("Save the adapter again with save_pretrained"),
        )
    names = {name: _ours(name) for name in layers}
    own_ranks = _ranks_by_block({names[name]: tensors for name, tensors in layers.items()}, config)
    rank = _make_uniform(layers, config) if own_ranks is None else int(config["r"])
    blocks, targets = _blocks_and_targets(config, set(names.values()))
    if not metadata.keys() >= set(_KEPT):  # written by another program
        metadata = {"base_model": config.get("base_model_name_or_path") or ""}
    return {
        "lora": {
            f"{_PREFIX}{names[name]}.{kind}": one for name, kinds in layers.items() for kind, one in kinds.items()
        },
        "config": {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": config["lora_alpha"],
            "lora_dropout": config.get("lora_dropout") or 0.0,
            "target_modules": targets,
            "bias": "none",
            "use_rslora": bool(config.get("use_rslora")),
            "use_dora": bool(config.get("use_dora")),
            **({"layers_to_transform": blocks, "layers_pattern": "layers"} if blocks else {}),
            **({"rank_pattern": pattern_of(own_ranks)} if own_ranks else {}),
        },
        "epoch": int(metadata.get("epoch", 0)),
        "global_step": int(metadata.get("global_step", 0)),
        "loss": float(metadata.get("loss", "nan")),
        "base_model": metadata["base_model"],
    }


def _read_config(path: UPath) -> dict[str, Any]:
    try:
        config = json.loads(storage.read_text(path))
    except (OSError, ValueError) as error:
        raise AdapterError(
            message("{path} can't be read ({error})", path=path, error=error),
            message("Save the adapter again with save_pretrained"),
        ) from error
    if not isinstance(config, dict) or str(config.get("peft_type")).upper() != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise AdapterError(
            message(
                "the PEFT directory {parent} holds no LoRA adapter (its peft_type is {kind})",
                parent=path.parent,
                kind=kind,
            ),
            message("Give one that was trained with peft's LoraConfig"),
        )
    return config


def _check_config(config: Mapping[str, Any], directory: UPath) -> None:
    for name, kinds in (("r", int), ("lora_alpha", (int, float)), ("target_modules", (str, list))):
        if not isinstance(value := config.get(name), kinds) or not value:
            raise AdapterError(
                message(
                    "{path} has no usable {name} ({value!r})", path=directory / CONFIG_FILE, name=name, value=value
                ),
                message("Save the adapter again with peft"),
            )
    if config.get("modules_to_save"):
        raise AdapterError(
            message(
                "the adapter {directory} replaces whole modules (modules_to_save {example})",
                directory=directory,
                example=config["modules_to_save"],
            ),
            message("Train it without modules_to_save: only LoRA on the decoder's blocks can be loaded here"),
        )
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise AdapterError(
            message(
                "the adapter {directory} stands on base weights that init_lora_weights {start!r} changed",
                directory=directory,
                start=start,
            ),
            message("Save it with peft's path_initial_model_for_weight_conversion, which makes plain LoRA of it"),
        )
    others = sorted(
        name for name, value in config.items() if value and name not in _WITHOUT_EFFECT and name not in _UNDERSTOOD
    )
    if others:
        raise AdapterError(
            message(
                "the adapter {directory} uses {names}, which can't be loaded here",
                directory=directory,
                names=", ".join(others),
            ),
            message("Train it with plain LoRA, rsLoRA or DoRA"),
        )


def _read_tensors(weights: UPath) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata."""
    from safetensors import safe_open

    with storage.staged(weights) as local:
        try:
            storage.require_file(weights)
            if weights.name == _PICKLED_FILE:
                state = tensor_files.load(local)
                if not all(isinstance(tensor, Tensor) for tensor in state.values()):
                    raise ValueError("it holds other things than tensors")
                return state, {}
            with safe_open(local, "pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
            if _DIGEST in metadata and metadata[_DIGEST] != _digest(state, metadata):
                raise ValueError("its content does not match its checksum")
            return state, metadata
        except Exception as error:  # damaged files raise many kinds
            reason = " ".join(str(error).split())[:300]
            raise AdapterError(
                message(
                    "{weights} can't be read as an adapter's weights ({kind}: {reason})",
                    weights=weights,
                    kind=type(error).__name__,
                    reason=reason,
                ),
                message("Save the adapter again with save_pretrained, as safetensors"),
            ) from error


def _digest(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return a hash of the content of a weights' file, without the hash itself."""
    digest = hashlib.sha256(json.dumps({**metadata, _DIGEST: ""}, sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _layers(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors by adapted layer, named as in the file, and by kind."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if (match := _TENSOR.fullmatch(name)) is not None:
            layers.setdefault(match["layer"], {})[match["kind"]] = tensor.float()  # the precision of merging
    return layers


def _ours(layer: str) -> str:
    return layer.removeprefix(_LM) if layer.startswith(f"{_LM}model.") else layer


def _ranks_by_block(layers: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]) -> dict[int, int] | None:
    """Return the rank of each block where it isn't the config's r; None if ranks or scales differ within blocks.

    Args:
        layers: the tensors by adapted layer, such as `model.decoder.layers.0.fc1`, and by kind.
    """
    if not config.get("rank_pattern") and not config.get("alpha_pattern"):
        return {}
    if config.get("alpha_pattern"):
        return None
    found: dict[int, set[int]] = {}
    for name, tensors in layers.items():
        found.setdefault(int(name.split(".")[3]), set()).add(tensors["lora_A.weight"].shape[0])
    if any(len(ranks) > 1 for ranks in found.values()):
        return None
    by_block = {block: ranks.pop() for block, ranks in sorted(found.items())}
    return {block: rank for block, rank in by_block.items() if rank != config["r"]}


def _make_uniform(layers: dict[str, dict[str, Tensor]], config: Mapping[str, Any]) -> int:
    """Pad layers of different ranks and scales to the largest rank and one scale, and return that rank.

    The product of each layer's matrices, times the scale, stays the same.
    """
    from peft.utils.other import get_pattern_key

    root = 0.5 if config.get("use_rslora") else 1.0
    alphas = config.get("alpha_pattern") or {}
    rank = max(tensors["lora_A.weight"].shape[0] for tensors in layers.values())
    for name, tensors in layers.items():
        down, up = tensors["lora_A.weight"], tensors["lora_B.weight"]  # [r, in], [out, r]
        own = down.shape[0]
        alpha = alphas.get(get_pattern_key(alphas.keys(), name), config["lora_alpha"])
        scale = (alpha / own**root) / (config["lora_alpha"] / rank**root)
        tensors["lora_A.weight"] = F.pad(down, (0, 0, 0, rank - own))
        tensors["lora_B.weight"] = F.pad(up * scale, (0, rank - own))
    return rank


def _adapts_others(directory: UPath, modules: list[str]) -> AdapterError:
    others = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    return AdapterError(
        message(
            "the adapter {directory} changes {names}{others}, which can't be adapted here",
            directory=directory,
            names=", ".join(modules[:3]),
            others=others,
        ),
        message(
            "Train it with target_modules among {names} of decoder.model.decoder.layers alone", names=", ".join(LINEARS)
        ),
    )


def _blocks_and_targets(config: Mapping[str, Any], layers: set[str]) -> tuple[list[int], list[str]]:
    """Return the adapted blocks if `layers_to_transform` selects them, and `target_modules`; see `_targets`."""
    given, selected = config["target_modules"], config.get("layers_to_transform")
    by_block: dict[int, set[str]] = {}
    for layer in layers:
        block, name = layer.split(".", 4)[3:]
        by_block.setdefault(int(block), set()).add(name)
    names = set().union(*by_block.values())
    if isinstance(given, list) and selected and all(own == names for own in by_block.values()):
        ends = [_ours(one) for one in given]
        if names == {name for name in LINEARS if any(f".{name}".endswith(f".{end}") for end in ends)}:
            return sorted(by_block), sorted(ends)
    return [], _targets(config, layers)


def _targets(config: Mapping[str, Any], layers: set[str]) -> list[str]:
    """Return the shortest `target_modules` that select the same layers here.

    Args:
        config: the content of adapter_config.json.
        layers: names of the adapted layers, such as `model.decoder.layers.0.fc1`.
    """
    given = config["target_modules"]
    some_layers = config.get("layers_to_transform") is not None or config.get("exclude_modules")
    if isinstance(given, list) and not some_layers:
        ends = [_ours(one) for one in given]
        return sorted(end for end in ends if any(f".{layer}".endswith(f".{end}") for layer in layers))
    if some_layers or re.search(r"\d", str(given)):
        return sorted(layers)
    # A pattern without numbers selects the same layers in every block.
    inner = {layer.split(".", 4)[4] for layer in layers}
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    both = {name for name in projections if {f"self_attn.{name}", f"encoder_attn.{name}"} <= inner}
    return sorted(both | {name for name in inner if name.rpartition(".")[2] not in both})


def write(adapter: Mapping[str, Any], base_model: str | None, folder: Path) -> None:
    """Write an adapter in peft's format, for Hugging Face's `transformers_class`.

    Args:
        adapter: the content of a `*_lora.pt`.
        base_model: the base model's id on the Hub, or None.
    """
    from peft import LoraConfig
    from safetensors.torch import save

    base_class = transformers_class(adapter)
    settings = {name: value for name, value in adapter["config"].items() if name != "peft_type"}
    if float(settings["lora_alpha"]).is_integer():
        settings["lora_alpha"] = int(settings["lora_alpha"])  # as peft declares it
    LoraConfig(
        **settings,
        base_model_name_or_path=base_model,
        inference_mode=True,
        # As peft itself writes it for a model without task type, so that AutoPeftModel finds the class.
        auto_mapping={"base_model_class": base_class, "parent_library": MODULES[base_class]},
    ).save_pretrained(str(folder))
    tensors = {
        f"{_PREFIX}{_LM}{name.removeprefix(_PREFIX)}": tensor.contiguous() for name, tensor in adapter["lora"].items()
    }
    kept = {name: adapter[name] for name in _KEPT} | {name: settings[name] for name in _SCALING}
    metadata = {"format": "pt", **{name: str(value) for name, value in kept.items()}}
    metadata[_DIGEST] = _digest(tensors, metadata)
    # save_file would make a file that nobody but its owner may read, whatever the umask.
    (folder / WEIGHTS_FILE).write_bytes(save(tensors, metadata=metadata))
