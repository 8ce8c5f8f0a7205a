"""Adapters: their content, its checks, their files, and the base model that they record."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from upath import UPath

from musicgen_core import storage, tensor_files
from musicgen_core.errors import AdapterError, ModelError
from musicgen_core.language import message
from musicgen_core.layer_ranges import parse_layers, parse_ranks, show_layers, show_ranks
from musicgen_core.learning_settings import LORA_TARGETS, AdapterSettings
from musicgen_core.model import hub, peft_directory
from musicgen_core.model.adapter_values import check_adapter_values, pattern_of, ranks_in
from musicgen_core.model.weights import BUILT_IN, PUBLISHED, BaseModel
from musicgen_core.run_layout import BEST_ADAPTER, BEST_MODEL, RunLayout, find_config, run_of

logger = logging.getLogger(__name__)

_LOCATION = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<inside>\w[\w./-]*))?")
_CACHED = re.compile(r"models--(?P<user>.+?)--(?P<name>.+?)/snapshots/(?P<commit>[0-9a-f]{40})/(?P<file>.+)")
_BY_PREFERENCE = tuple(
    f"{folder}{name}_lora.pt" for name in ("best", "final", "latest") for folder in ("", "lora_weights/")
)


@dataclass(frozen=True)
class AdapterConfig:
    """The shape of an adapter.

    Attributes:
        alpha: the update is multiplied by alpha / r.
        dropout: probability of dropout before the down-projection.
        targets: names of linear layers of the blocks, or suffixes of their paths, such as `encoder_attn.q_proj`.
        rslora: multiply by alpha / √r instead (Kalajdzievski 2023).
        dora: learn magnitude and direction of the weights separately (Liu et al. 2024).
        layers: numbers of the adapted blocks, from 0, ascending; None for all.
        ranks: rank by block, where it isn't r; the update of such a block is scaled by its own rank.
    """

    r: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = LORA_TARGETS
    rslora: bool = False
    dora: bool = False
    layers: tuple[int, ...] | None = None
    ranks: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: AdapterSettings, rank: int) -> AdapterConfig:
        return cls(
            r=rank,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
            targets=tuple(settings.lora_targets),
            rslora=settings.lora_rslora,
            dora=settings.lora_dora,
            layers=parse_layers(settings.layers) if settings.layers else None,
            ranks=parse_ranks(settings.ranks) if settings.ranks else {},
        )

    def plain(self) -> dict[str, Any]:
        """Return the values under the names of peft's `LoraConfig`, as plain JSON."""
        layers = {"layers_to_transform": list(self.layers), "layers_pattern": "layers"} if self.layers else {}
        ranks = {"rank_pattern": pattern_of(self.ranks)} if self.ranks else {}
        return {
            "peft_type": "LORA",
            "r": self.r,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": list(self.targets),
            "bias": "none",
            "use_rslora": self.rslora,
            "use_dora": self.dora,
            **layers,
            **ranks,
        }

    @classmethod
    def from_plain(cls, config: Mapping[str, Any]) -> AdapterConfig:
        """Return the config that `plain` was called on; early adapters have no values for the last four."""
        layers = config.get("layers_to_transform")
        return cls(
            r=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            dropout=float(config["lora_dropout"]),
            targets=tuple(config["target_modules"]),
            rslora=bool(config.get("use_rslora", False)),
            dora=bool(config.get("use_dora", False)),
            layers=tuple(layers) if layers else None,
            ranks=ranks_in(config),
        )

    def scale(self, rank: int) -> float:
        """Return the factor of the update of a layer whose matrices have this rank."""
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)

    def fixed(self) -> dict[str, Any]:
        """Return the settings under which equal tensors give a different model, by their names in `TrainSettings`."""
        return {
            "lora_r": self.r,
            "lora_alpha": self.alpha,
            "lora_targets": sorted(set(self.targets)),
            "lora_rslora": self.rslora,
            "lora_dora": self.dora,
            "layers": show_layers(self.layers) if self.layers else None,
            "ranks": show_ranks(self.ranks) or None,
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
        name, hashed, _ = self.base_model.partition("@sha256:")
        if are_of_different_bases(self.base_model, model.identity if hashed else model.name):
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
            without = "".join(f", without {_flag(name)}" for name in names if own[name] in (False, None))
            raise AdapterError(
                message(
                    "the adapter {where} has {has}, but the settings say {names}",
                    where=where,
                    has=has,
                    names=" and ".join(_value(given[name]) for name in names),
                ),
                message("Give {options}{without}", options=options, without=without),
            )


class HasBase(Protocol):
    """What records its base model: an adapter, or a model that was trained whole."""

    @property
    def base_model(self) -> str: ...


def are_of_different_bases(one: str, other: str) -> bool:
    """Return whether two values of `Adapter.base_model` are known to mean different models."""
    (name, _, content), (other_name, _, other_content) = one.partition("@sha256:"), other.partition("@sha256:")
    if content and other_content:
        return content != other_content
    # An adapter from another program has only a name, which is conclusive only for published models.
    return name.startswith(PUBLISHED) and other_name.startswith(PUBLISHED) and name != other_name


def _value(value: Any) -> str:
    if value is None:
        return "unset"
    return ", ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _option(name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return _flag(name) if value else ""
    return " ".join(f"{_flag(name)} {_value(one)}" for one in (value if isinstance(value, list) else [value]))


def save_adapter(adapter: Adapter, target: UPath) -> None:
    with storage.publish(target) as path:
        tensor_files.save(vars(adapter), path)


def find_adapter(location: storage.Location) -> UPath:
    """Return the path of an adapter's weights.

    Args:
        location: a `*_lora.pt`, a run directory (its best adapter or, with `train all`, its best full model), a full
            model of such a run, a PEFT directory, or, if there is no such path, `USER/NAME` on the Hugging Face Hub.

    Raises:
        AdapterError: there is no adapter.
    """
    path = storage.as_path(location)
    if is_on_hub(location):
        try:
            path = storage.as_path(fetch_adapter(str(location)))
        except ModelError as error:
            raise AdapterError(
                message("there is no adapter at {path}, and {found}", path=path, found=error.found), error.next_step
            ) from error
    if path.name in peft_directory.FILES:
        path = path.parent
    best = RunLayout(path).learned(BEST_ADAPTER, BEST_MODEL)
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


def may_be_on_hub(location: str) -> bool:
    """Return whether `location` has the form of `USER/NAME`, or of a file or a directory in it."""
    return _LOCATION.fullmatch(location) is not None


def is_on_hub(location: storage.Location) -> bool:
    """Return whether an adapter has to be downloaded: `location` may be on the Hub, and no such path exists."""
    return may_be_on_hub(str(location)) and not storage.as_path(location).exists()


def fetch_adapter(location: str) -> Path:
    """Return the directory or file of an adapter, after downloading its newest revision from the Hub.

    Args:
        location: `USER/NAME`, `USER/NAME/DIRECTORY` with a PEFT adapter, or `USER/NAME/PATH_lora.pt`.

    Raises:
        ModelError: it can't be downloaded, or the repository has none.
    """
    match = _LOCATION.fullmatch(location)
    assert match is not None, "asked before"
    repo, inside = match["repo"], (match["inside"] or "").rstrip("/")
    if inside.endswith(".pt"):
        return hub.fetch(repo, hub.Wanted((inside,)), newest=True) / inside
    config, weights, pickled = (f"{inside}/{name}".lstrip("/") for name in peft_directory.FILES)
    wanted = [hub.Wanted((config, (weights, pickled)))]
    if not inside:
        wanted += [hub.Wanted((_BY_PREFERENCE,)), hub.Wanted(("*_lora.pt",))]
    folder = hub.fetch(repo, *wanted, newest=True)
    if (folder / config).is_file():
        return folder / inside
    found = [folder / name for name in _BY_PREFERENCE if (folder / name).is_file()]
    return found[0] if found else next(folder.glob("*_lora.pt"))


def hub_name(path: UPath) -> str | None:
    """Return what a file in the cache is called on the Hub, `USER/NAME@COMMIT/FILE`; None for other files."""
    match = _CACHED.search(str(path))
    return match and "{user}/{name}@{commit}/{file}".format(**match.groupdict())


def displayed_path(path: UPath) -> str:
    """Return a path as shown to users: for a file in the Hub's cache, its name on the Hub."""
    return hub_name(path) or str(path)


def base_model_of(adapter: HasBase, weights: UPath) -> str | None:
    """Return the argument of `find_model` for an adapter's base model; None if the adapter doesn't record it.

    Args:
        weights: its file; in a run directory, config.json records the directory of a local model.

    Raises:
        AdapterError: it was trained on a local model whose directory is unknown or no longer exists.
    """
    name, hashed, _ = adapter.base_model.partition("@sha256:")
    is_directory = not hashed and name and BaseModel(name, Path(name).expanduser()).has_language_model
    if name in BUILT_IN or is_directory or hub_id(name):
        return name
    if not hashed:
        return None
    run_dir = run_of(weights)
    config = find_config(run_dir) if run_dir is not None else None
    directory = config.model_dir if config is not None else ""
    if not directory or not Path(directory).is_dir():
        gone = message(
            "the base model of the adapter {weights} is not at {path} any more", weights=weights, path=directory
        )
        unknown = message(
            "the adapter {weights} doesn't say where its base model is, a local directory", weights=weights
        )
        raise AdapterError(
            gone if directory else unknown,
            message("Give --model the directory or the Hugging Face id of the model that it was trained on"),
        )
    return directory


def choose_model(given: str | None, default: str, adapter: HasBase | None, weights: UPath | None) -> str:
    """Return the given model, or else the base model of the adapter, or else the default.

    Raises:
        AdapterError: see `base_model_of`.
    """
    if given or adapter is None or weights is None:
        return given or default
    found = base_model_of(adapter, weights)
    if found is None:
        logger.warning(
            "the adapter %s doesn't name its base model: %s is used; for another one, set model", weights, default
        )
        return default
    logger.info("the base model is that of the adapter: %s", found)
    return found


def hub_id(base_model: str) -> str | None:
    """Return the base model's id on the Hub, from an adapter's `base_model`; None for a local one."""
    name = base_model.partition("@sha256:")[0]
    return name if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) else None
