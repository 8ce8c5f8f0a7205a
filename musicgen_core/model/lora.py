"""LoRA through peft: adapters on the linear layers of each block, merged exactly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from musicgen_core.errors import AdapterError, ConfigError
from musicgen_core.language import message
from musicgen_core.layer_ranges import check_numbers
from musicgen_core.model.adapters import Adapter, AdapterConfig
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.merging import Update, merged_weight, update_dtype, weight_updates
from musicgen_core.model.trained_model import Learned, TrainedModel
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.tensor_files import names_of_non_finite

# peft imports it where it is installed, and it warns that kernels are missing which nothing here uses.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def add_lora(lm: MusicgenLM, settings: AdapterConfig, seed: int = 0) -> Any:
    """Freeze `lm`, add an untrained adapter, which has no effect yet, and return peft's model.

    Raises:
        ConfigError: a target is not a linear layer of the adapted blocks, or there is no block of a given number.
    """
    from peft import get_peft_model

    check_numbers(settings.layers or (), settings.ranks, lm.config.layers)  # peft would leave others out silently
    _check_targets(lm, settings.targets, settings.layers)
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


def _check_targets(lm: MusicgenLM, targets: Sequence[str], layers: Sequence[int] | None) -> None:
    """Check that every target matches: peft itself raises only if none does, and else adapts fewer layers."""
    layer = lm.model.decoder.layers[0]
    linears = [name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)]
    numbers = range(lm.config.layers) if layers is None else layers
    blocks = [f"model.decoder.layers.{i}.{name}" for i in numbers for name in linears]
    missing = [one for one in targets if not any(f".{name}".endswith(f".{one}") for name in blocks)]
    if missing or not targets:
        raise ConfigError(
            message(
                "lora_targets {names}: no linear layer of the model's blocks is called so", names=", ".join(missing)
            )
            if missing
            else message("lora_targets is empty"),
            message("Give names or ends of names of {names}, separated by commas", names=", ".join(linears)),
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


def _check_fit(lm: MusicgenLM, adapter: Learned) -> None:
    """Check that an adapter's tensors are those of peft's model of its config; or a trained model's those of `lm`.

    Raises:
        AdapterError: `lm` lacks an adapted layer, or names or shapes differ.
    """
    from peft import get_peft_model

    if isinstance(adapter, TrainedModel):
        own = {name: tensor.shape for name, tensor in lm.state_dict().items()}
        if own != {name: tensor.shape for name, tensor in adapter.weights.items()}:
            raise AdapterError(
                message("the weights of the trained model don't fit those of the base model"),
                message("Use the model that it was trained from"),
            )
        return
    linears = {name for name, module in lm.named_modules() if isinstance(module, torch.nn.Linear)}
    adapted = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in adapter.lora}
    if missing := sorted(adapted - linears):  # peft's error would name the targets
        raise AdapterError(
            message("the adapter given doesn't fit the model, which has no {missing}", missing=missing[0]),
            message("Use the model that it was trained on"),
        )
    with torch.device("meta"):  # no memory and no random numbers are used
        shapes = MusicgenLM(lm.config)
    _check_shapes(get_peft_model(shapes, _peft_config(adapter.config), low_cpu_mem_usage=True), adapter.lora, "given")


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))


class AdaptedModel:
    """A language model with adapters, whose strengths can be changed.

    Args:
        lm: the model with its base weights, which are replaced in place; packed copies of them are not.
        base: returns the base weights by name, `BaseModel.lm_state` or copies on the model's device. Called for layers
            that were changed before.
        adapters: the adapters.

    Raises:
        AdapterError: an adapter doesn't fit the model.
    """

    def __init__(self, lm: MusicgenLM, base: Callable[[], Mapping[str, Tensor]], adapters: Sequence[Learned]) -> None:
        self.lm, self._base = lm, base
        for adapter in adapters:
            _check_fit(lm, adapter)
        device, dtype = lm.enc_to_dec_proj.weight.device, update_dtype(lm.enc_to_dec_proj.weight.dtype)
        self._updates = [
            {name: update.to(device, dtype) for name, update in weight_updates(adapter).items()} for adapter in adapters
        ]
        self._changed: set[str] = set()

    @torch.no_grad()
    def set_strengths(self, strengths: Sequence[float]) -> None:
        """Set the weights to the base's plus the sum of strength × change, in the order of the adapters.

        With all strengths 0 they are the base's exactly; with one of them 1, those of that adapter merged by peft.

        Raises:
            AdapterError: a weight would be NaN or infinite.
        """
        parts: dict[str, list[tuple[Update, float]]] = {name: [] for name in sorted(self._changed)}
        for updates, strength in zip(self._updates, strengths, strict=True):
            if strength:
                for name, update in updates.items():
                    parts.setdefault(name, []).append((update, strength))
        base = self._base() if self._changed else {}
        before, self._changed = self._changed, self._changed | parts.keys()  # also if memory runs out in between
        for name, found in parts.items():
            weight = self.lm.get_parameter(name)
            original = base[name].to(weight) if name in before else weight
            weight.copy_(merged_weight(original, found))
        self._changed = {name for name, found in parts.items() if found}
        if self._changed:
            check_merged(self.lm.state_dict(), str(self.lm.enc_to_dec_proj.weight.dtype))


def load_merged(
    model: BaseModel, adapter: Learned | None, device: torch.device | str, dtype: torch.dtype
) -> MusicgenLM:
    """Load a language model and merge an adapter into it, if one is given."""
    lm = load_lm(model, device, dtype)
    if adapter is not None:
        AdaptedModel(lm, model.lm_state, [adapter]).set_strengths([1.0])
    return lm.eval().requires_grad_(False)


def merged_checkpoint(model: BaseModel, adapter: Adapter) -> dict[str, Any]:
    """Return base and adapter, merged as by `merged_state`, as a checkpoint that stock audiocraft loads.

    Raises:
        AdapterError: the adapter doesn't fit the model.
    """
    return model.checkpoint_with(merged_state(model, [(adapter, 1.0)]))


def merged_state(model: BaseModel, adapters: Sequence[tuple[Learned, float]]) -> dict[str, Tensor]:
    """Return the weights of base and adapters with strengths, merged, by this project's names.

    Changes are added in fp32 to the original weights, rather than the ones rounded for training, and the sum has
    the original precision. Layers are merged one at a time: memory holds the adapted weights in that precision, and the
    rest is a view of the base model's file. No random numbers are drawn, so that training may continue meanwhile.

    Raises:
        AdapterError: an adapter doesn't fit the model.
    """
    state = model.lm_state()
    lm = load_lm(model, "meta")
    parts: dict[str, list[tuple[Update, float]]] = {}
    for adapter, strength in adapters:
        _check_fit(lm, adapter)
        for name, update in weight_updates(adapter).items():
            parts.setdefault(name, []).append((update.to("cpu", torch.float32), strength))
    for name, found in parts.items():
        state[name] = merged_weight(state[name].to(torch.float32), found).to(state[name].dtype)
    return state


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
