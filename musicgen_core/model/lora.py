"""LoRA through peft: adapters on all ten linear layers of each block, saved as plain tensors, merged exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import AdapterError
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.weights import BaseModel, load_lm, read_checkpoint, to_audiocraft

# Self- and cross-attention each have the first four: ten layers a block.
TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@dataclass(frozen=True)
class LoraSettings:
    """The shape of an adapter: rank, scale (alpha / r multiplies the update), dropout before the down-projection."""

    r: int
    alpha: float
    dropout: float = 0.0

    def plain(self) -> dict[str, Any]:
        """peft's `LoraConfig` names with plain JSON values."""
        return {
            "peft_type": "LORA",
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": list(TARGETS),
            "bias": "none",
        }

    @classmethod
    def from_plain(cls, config: Mapping[str, Any]) -> LoraSettings:
        return cls(int(config["r"]), float(config["lora_alpha"]), float(config["lora_dropout"]))


@dataclass(frozen=True)
class Adapter:
    """The content of a `*_lora.pt`."""

    lora: dict[str, Tensor]
    config: dict[str, Any]
    epoch: int
    global_step: int
    loss: float
    base_model: str

    def check_base(self, model: BaseModel, where: str) -> None:
        """Raises AdapterError if the adapter was trained on other weights than `model`'s."""
        if self.base_model.rpartition("@")[2] != model.identity.rpartition("@")[2]:
            name = self.base_model.rpartition("@")[0]
            raise AdapterError(
                f"the adapter {where} was trained on {self.base_model}, but the model is {model.identity}",
                "Give --model the directory that it was trained with" if name == "local" else f"Give --model {name}",
            )

    def check_scale(self, settings: LoraSettings, where: str) -> None:
        """Raises AdapterError if the adapter's rank or scale are not those of `settings`: it would act differently."""
        own = LoraSettings.from_plain(self.config)
        if (own.r, own.alpha) != (settings.r, settings.alpha):
            raise AdapterError(
                f"the adapter {where} has lora_r {own.r} and lora_alpha {own.alpha:g}, "
                f"but the settings say {settings.r} and {settings.alpha:g}",
                f"Give --lora-r {own.r} --lora-alpha {own.alpha:g}",
            )


def add_lora(lm: MusicgenLM, settings: LoraSettings, seed: int = 0) -> Any:
    """Freeze `lm` and put an untrained adapter on it (it changes nothing yet) → peft's model."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(TARGETS),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(lm, config)


def adapter_state(peft_model: Any) -> dict[str, Tensor]:
    """The adapter's tensors on the CPU, named as peft names them."""
    from peft import get_peft_model_state_dict

    return {name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(peft_model).items()}


def set_adapter_state(peft_model: Any, state: Mapping[str, Tensor], where: str) -> None:
    """Load an adapter's tensors.

    Raises:
        AdapterError: names or shapes that don't fit the model: peft would only warn and leave the adapter untrained.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wanted = {name: tensor.shape for name, tensor in get_peft_model_state_dict(peft_model).items()}
    given = {name: tensor.shape for name, tensor in state.items()}
    if wanted != given:
        differing = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
        raise AdapterError(
            f"the adapter {where} doesn't fit the model: {len(differing)} tensors differ, such as {differing[0]} "
            f"(the adapter has {_shape(given.get(differing[0]))}, the model needs {_shape(wanted.get(differing[0]))})",
            "Use the model that it was trained on",
        )
    set_peft_model_state_dict(peft_model, dict(state))


def _shape(shape: torch.Size | None) -> str:
    return "none" if shape is None else str(list(shape))


def save_adapter(adapter: Adapter, target: UPath) -> None:
    with storage.publish(target) as path:
        torch.save(vars(adapter), path)


def find_adapter(location: storage.Location) -> UPath:
    """A `*_lora.pt`, or a run directory's best.

    Raises:
        AdapterError: neither is there.
    """
    path = storage.as_path(location)
    if path.suffix != ".pt":
        path = path / "lora_weights" / "best_lora.pt"
    if not path.exists():
        raise AdapterError(f"there is no adapter at {path}", "Give a *_lora.pt file or the run directory of a training")
    return path


def load_adapter(path: UPath) -> Adapter:
    """Read a `*_lora.pt`.

    Raises:
        AdapterError: the file is something else or damaged.
    """
    with storage.staged(path) as local:
        try:
            values = torch.load(local, map_location="cpu", weights_only=True)
            return Adapter(**{name: values[name] for name in Adapter.__dataclass_fields__})
        except Exception as error:  # torch.load raises many kinds on a damaged file
            raise AdapterError(
                f"{path} can't be read as an adapter ({type(error).__name__}: {error})",
                "Give a *_lora.pt that a training wrote",
            ) from error


def load_merged(
    model: BaseModel, adapter: Adapter | None, device: torch.device | str, dtype: torch.dtype
) -> MusicgenLM:
    """A language model with an adapter, if there is one, merged into it."""
    lm = load_lm(model, device, dtype)
    if adapter is not None:
        peft_model = add_lora(lm, LoraSettings.from_plain(adapter.config))
        set_adapter_state(peft_model, adapter.lora, "given")
        lm = peft_model.merge_and_unload()
    return lm.eval().requires_grad_(False)


def merged_checkpoint(model: BaseModel, adapter: Adapter) -> dict[str, Any]:
    """Base + adapter as a checkpoint that stock audiocraft loads.

    The adapter is merged in fp32 into the original weights, not into what they were rounded to for training, and
    the sum is kept in the original precision.
    """
    checkpoint = read_checkpoint(model.lm_path)
    merged = load_merged(model, adapter, "cpu", torch.float32)
    original = checkpoint["best_state"]
    state = {name: tensor.to(original[name].dtype) for name, tensor in to_audiocraft(merged.state_dict()).items()}
    return {**checkpoint, "best_state": state}


def save_full_model(checkpoint: Mapping[str, Any], target: UPath) -> None:
    with storage.publish(target) as path:
        torch.save(dict(checkpoint), path)
