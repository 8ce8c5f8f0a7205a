"""LoRA through peft: adapters on the linear layers of each block, saved as plain tensors, merged exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from upath import UPath

from musicgen_core import storage, tensor_files
from musicgen_core.config import LORA_TARGETS
from musicgen_core.errors import AdapterError, ConfigError, ModelError
from musicgen_core.language import message
from musicgen_core.model import hub_adapter, peft_directory
from musicgen_core.model.adapter_values import check_adapter_values, check_merged
from musicgen_core.model.audiocraft_format import from_audiocraft, read_checkpoint, to_audiocraft
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.run_layout import BEST_ADAPTER, RunLayout

PUBLISHED = "facebook/musicgen-"
"""The prefix of the published models' ids."""


@dataclass(frozen=True)
class AdapterConfig:
    """The shape of an adapter.

    Attributes:
        r: rank.
        alpha: the update is multiplied by alpha / r.
        dropout: probability of dropout before the down-projection.
        targets: names of linear layers of the blocks, or suffixes of their paths, such as `encoder_attn.q_proj`.
        rslora: multiply by alpha / √r instead (Kalajdzievski 2023).
        dora: learn magnitude and direction of the weights separately (Liu et al. 2024).
    """

    r: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = LORA_TARGETS
    rslora: bool = False
    dora: bool = False

    def plain(self) -> dict[str, Any]:
        """Return the values under the names of peft's `LoraConfig`, as plain JSON."""
        return {
            "peft_type": "LORA",
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": list(self.targets),
            "bias": "none",
            "use_rslora": self.rslora,
            "use_dora": self.dora,
        }

    @classmethod
    def from_plain(cls, config: Mapping[str, Any]) -> AdapterConfig:
        """Return the config that `plain` was called on; early adapters have no values for rsLoRA and DoRA."""
        return cls(
            r=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            dropout=float(config["lora_dropout"]),
            targets=tuple(config["target_modules"]),
            rslora=bool(config.get("use_rslora", False)),
            dora=bool(config.get("use_dora", False)),
        )

    def fixed(self) -> dict[str, Any]:
        """Return the settings under which equal tensors give a different model, by their names in `TrainSettings`."""
        return {
            "lora_r": self.r,
            "lora_alpha": self.alpha,
            "lora_targets": sorted(set(self.targets)),
            "lora_rslora": self.rslora,
            "lora_dora": self.dora,
        }


@dataclass(frozen=True)
class Adapter:
    """The content of a `*_lora.pt`.

    An adapter of another program has step 0, a loss of NaN, and as `base_model` a name or nothing.

    Attributes:
        lora: tensors by peft's names.
        config: `AdapterConfig.plain`.
        epoch: epoch of its last step, from 1.
        global_step: optimizer steps that it was trained for.
        loss: training loss of the last step, in nats.
        base_model: identity of the base model, see `BaseModel.identity`.
    """

    lora: dict[str, Tensor]
    config: dict[str, Any]
    epoch: int
    global_step: int
    loss: float
    base_model: str

    def check_base(self, model: BaseModel, where: str) -> None:
        """Check that the adapter was trained on the weights of `model`, as far as it records that.

        Raises:
            AdapterError: it was trained on others.
        """
        name, hashed, content = self.base_model.rpartition("@sha256:")
        if not hashed:  # from another program: it has only a name, which is conclusive only for published models
            published = {name for name in (self.base_model, model.name) if name.startswith(PUBLISHED)}
            differs, name = len(published) == 2, self.base_model
        else:
            differs = content != model.identity.rpartition("@sha256:")[2]
        if differs:
            raise AdapterError(
                message(
                    "the adapter {where} was trained on {base_model}, but the model is {identity}",
                    where=where,
                    base_model=self.base_model,
                    identity=model.identity,
                ),
                message("Give --model the directory that it was trained with")
                if name == "local"
                else message("Give --model {name}", name=name),
            )

    def check_scale(self, settings: AdapterConfig, where: str) -> None:
        """Check that training can continue with `settings` from the adapter.

        Raises:
            AdapterError: its tensors would not fit, or would give a different model.
        """
        own, given = AdapterConfig.from_plain(self.config).fixed(), settings.fixed()
        if own != given:
            names = [name for name in own if name in ("lora_r", "lora_alpha") or own[name] != given[name]]
            has = " and ".join(f"{name} {_value(own[name])}" for name in names)
            options = " ".join(filter(None, (_option(name, own[name]) for name in names)))
            without = "".join(f", without {_flag(name)}" for name in names if own[name] is False)
            raise AdapterError(
                message(
                    "the adapter {where} has {has}, but the settings say {names}",
                    where=where,
                    has=has,
                    names=" and ".join(_value(given[name]) for name in names),
                ),
                message("Give {options}{without}", options=options, without=without),
            )


def _value(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return _flag(name) if value else ""
    return " ".join(f"{_flag(name)} {_value(one)}" for one in (value if isinstance(value, list) else [value]))


def add_lora(lm: MusicgenLM, settings: AdapterConfig, seed: int = 0) -> Any:
    """Freeze `lm`, add an untrained adapter, which has no effect yet, and return peft's model.

    Raises:
        ConfigError: a target is not a linear layer of the blocks.
    """
    from peft import get_peft_model

    _check_targets(lm, settings.targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft_model = get_peft_model(lm, _peft_config(settings.plain()))
    for layer in _adapted(peft_model).values():
        for magnitude in layer.lora_magnitude_vector.values():
            # peft computes it in the base's precision: rounded to 16 bits it would change the model by up to 0.4 %.
            magnitude.weight.data = layer.get_base_layer().weight.data.to(magnitude.weight.dtype).norm(dim=1)
    return peft_model


def _peft_config(plain: Mapping[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{name: value for name, value in plain.items() if name != "peft_type"})


def _adapted(peft_model: Any) -> dict[str, Any]:
    """Return peft's layers by the names of the layers that they replace."""
    from peft.tuners.lora import LoraLayer

    modules = peft_model.base_model.model.named_modules()
    return {name: module for name, module in modules if isinstance(module, LoraLayer)}


def _check_targets(lm: MusicgenLM, targets: Sequence[str]) -> None:
    """Check that every target matches: peft itself raises only if none does, and else adapts fewer layers."""
    layer = lm.model.decoder.layers[0]
    linears = [name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]
    blocks = [f"model.decoder.layers.{i}.{name}" for i in range(lm.config.layers) for name in linears]
    missing = [one for one in targets if not any(f".{name}".endswith(f".{one}") for name in blocks)]
    if missing or not targets:
        raise ConfigError(
            message(
                "lora_targets {names}: no linear layer of the model's blocks is called so", names=", ".join(missing)
            )
            if missing
            else message("lora_targets is empty"),
            message("Give names or ends of names of {names}, each in an option of its own", names=", ".join(linears)),
        )


def adapter_state(peft_model: Any) -> dict[str, Tensor]:
    """Return the adapter's tensors on the CPU, by peft's names."""
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(peft_model).items()}


def set_adapter_state(peft_model: Any, state: Mapping[str, Tensor], where: str) -> None:
    """Load an adapter's tensors.

    Raises:
        AdapterError: names or shapes don't fit the model; peft would only warn and leave the adapter untrained.
    """
    from peft import set_peft_model_state_dict

    _check_shapes(peft_model, state, where)
    set_peft_model_state_dict(peft_model, dict(state))


def _check_shapes(peft_model: Any, state: Mapping[str, Tensor], where: str) -> None:
    from peft import get_peft_model_state_dict

    wanted = {name: tensor.shape for name, tensor in get_peft_model_state_dict(peft_model).items()}
    given = {name: tensor.shape for name, tensor in state.items()}
    if wanted != given:
        differing = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise AdapterError(
            message(
                "the adapter {where} doesn't fit the model: {number} tensors differ, such as {differing} (the "
                "adapter has {shape}, the model needs {needed})",
                where=where,
                number=len(differing),
                differing=differing[0],
                shape=_shape(given.get(differing[0])),
                needed=_shape(wanted.get(differing[0])),
            ),
            message("Use the model that it was trained on"),
        )


def _check_layers(lm: MusicgenLM, adapter: Adapter) -> None:
    """Check that `lm` has the adapted layers; otherwise an error would name the targets.

    Raises:
        AdapterError: it doesn't have them.
    """
    linears = {name for name, module in lm.named_modules() if isinstance(module, torch.nn.Linear)}
    adapted = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in adapter.lora}
    if missing := sorted(adapted - linears):
        raise AdapterError(
            message("the adapter given doesn't fit the model, which has no {missing}", missing=missing[0]),
            message("Use the model that it was trained on"),
        )


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))


def save_adapter(adapter: Adapter, target: UPath) -> None:
    with storage.publish(target) as path:
        tensor_files.save(vars(adapter), path)


def find_adapter(location: storage.Location) -> UPath:
    """Return the path of an adapter's weights.

    Args:
        location: a `*_lora.pt`, a run directory (its best adapter), a PEFT directory, or, if there is no such path,
            `USER/NAME` on the Hugging Face Hub.

    Raises:
        AdapterError: there is no adapter.
    """
    path = storage.as_path(location)
    if hub_adapter.is_on_hub(location):
        try:
            path = storage.as_path(hub_adapter.fetch_adapter(str(location)))
        except ModelError as error:
            raise AdapterError(
                message("there is no adapter at {path}, and {found}", path=path, found=error.found), error.next_step
            ) from error
    if path.name in peft_directory.FILES:
        path = path.parent
    best = RunLayout(path).adapter(BEST_ADAPTER)
    found = path if path.suffix == ".pt" else best if best.exists() else peft_directory.find_weights(path)
    if found is None or not found.exists():
        raise AdapterError(
            message("there is no adapter at {path}", path=path),
            message(
                "Give a *_lora.pt file, a run directory, a directory with peft's adapter_config.json, or "
                "USER/NAME on the Hugging Face Hub"
            ),
        )
    return found


def load_adapter(path: UPath) -> Adapter:
    """Load the adapter whose path `find_adapter` returned.

    Raises:
        AdapterError: the file is not an adapter, is damaged, or holds NaN or infinite numbers.
    """
    values: Mapping[str, Any]
    if path.name in peft_directory.FILES:
        values = peft_directory.read(path)
    else:
        with storage.staged(path) as local:
            try:
                storage.require_file(path)
                loaded = tensor_files.load(local)
                values = {name: loaded[name] for name in Adapter.__dataclass_fields__}
            except Exception as error:  # torch.load raises many kinds on a damaged file
                raise AdapterError(
                    message(
                        "{path} can't be read as an adapter ({name}: {error})",
                        path=path,
                        name=type(error).__name__,
                        error=error,
                    ),
                    message("Give a *_lora.pt that a training run wrote"),
                ) from error
    try:
        check_adapter_values(values)
    except ValueError as error:
        raise AdapterError(
            message("the adapter {path} can't be used: {error}", path=path, error=error),
            message("Give another one, or train it again"),
        ) from error
    return Adapter(**values)


def load_merged(
    model: BaseModel, adapter: Adapter | None, device: torch.device | str, dtype: torch.dtype
) -> MusicgenLM:
    """Load a language model and merge an adapter into it, if one is given."""
    lm = load_lm(model, device, dtype)
    if adapter is not None:
        _check_layers(lm, adapter)
        peft_model = add_lora(lm, AdapterConfig.from_plain(adapter.config))
        set_adapter_state(peft_model, adapter.lora, "given")
        lm = peft_model.merge_and_unload()
        check_merged(lm.state_dict(), str(dtype))
    return lm.eval().requires_grad_(False)


def merged_checkpoint(model: BaseModel, adapter: Adapter) -> dict[str, Any]:
    """Return base and adapter, merged, as a checkpoint that stock audiocraft loads.

    The adapter is merged in fp32 into the original weights, rather than the ones rounded for training, and the sum has
    the original precision. Layers are merged one at a time: memory holds the adapted weights in that precision, and the
    rest is a view of the base model's file. No random numbers are drawn, so that training may continue meanwhile.

    Raises:
        AdapterError: the adapter doesn't fit the model.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    checkpoint = read_checkpoint(model.lm_path)
    state = from_audiocraft(checkpoint["best_state"])
    lm = load_lm(model, "meta")
    # Expanded zeros take no memory, and give peft the device and precision of the adapter.
    lm.load_state_dict({name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}, assign=True)
    _check_layers(lm, adapter)
    peft_model = get_peft_model(lm, _peft_config(adapter.config), low_cpu_mem_usage=True)
    _check_shapes(peft_model, adapter.lora, "given")
    set_peft_model_state_dict(peft_model, adapter.lora, low_cpu_mem_usage=True)
    for name, layer in _adapted(peft_model).items():
        base = layer.get_base_layer()
        original, no_room = state[f"{name}.weight"], base.weight
        base.weight = torch.nn.Parameter(original.to(torch.float32, copy=True), requires_grad=False)
        layer.merge()
        state[f"{name}.weight"] = base.weight.detach().to(original.dtype)
        base.weight = no_room
    return {**checkpoint, "best_state": to_audiocraft(state)}
