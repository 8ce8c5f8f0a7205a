"""A model that stays in memory: loaded once, it renders many requests, with any strengths of its adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from musicgen_core.codec import Codec
from musicgen_core.devices import compute_dtype, pick_device
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.melody import check_melodies, check_takes_melody
from musicgen_core.generation.plan import check_continued
from musicgen_core.generation.request import RenderRequest
from musicgen_core.language import message
from musicgen_core.model.adapter_mix import LoadedAdapter, load_mix, strengths_of
from musicgen_core.model.adapters import choose_model
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.lora import AdaptedModel
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weighted_adapters import Mix, WeightedAdapter
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from musicgen_core.stages import announce


class ResidentModel:
    """A language model with its codec, text encoder and adapters, for one rendering at a time.

    The language model and the text encoder are loaded when they are first used.

    Args:
        model: the base model.
        device: of all its parts.
        adapters: loaded adapters; `add_adapters` loads more.
        keep_base: whether a copy of the base weights stays on the device, so that strengths change in a fraction of a
            second. Otherwise they are read from the model's file again.

    Raises:
        AdapterError: an adapter is of another base model.
    """

    def __init__(
        self,
        model: BaseModel,
        device: torch.device,
        adapters: Sequence[LoadedAdapter] = (),
        keep_base: bool = False,
    ) -> None:
        for one in adapters:
            one.adapter.check_base(model, str(one.path))
        self.model, self.device, self.adapters = model, device, list(adapters)
        self.codec = Codec(model, device)
        self._keep_base = keep_base
        self._base: Mapping[str, Tensor] | None = None
        self._engine: Engine | None = None
        self._prepared: object = None

    @cached_property
    def text(self) -> TextEncoder:
        return TextEncoder(self.model.text_encoder, self.device)

    @cached_property
    def _adapted(self) -> AdaptedModel:
        lm = load_lm(self.model, self.device, compute_dtype(self.device)).requires_grad_(False)
        if self._keep_base:
            self._base = {name: weight.clone() for name, weight in lm.state_dict().items()}
        return self._with_adapters(lm, self.adapters)

    def _with_adapters(self, lm: MusicgenLM, adapters: Sequence[LoadedAdapter]) -> AdaptedModel:
        return AdaptedModel(lm, self._base_weights, [one.adapter for one in adapters])

    def _base_weights(self) -> Mapping[str, Tensor]:
        return self.model.lm_state() if self._base is None else self._base

    def add_adapters(self, given: Iterable[WeightedAdapter]) -> None:
        """Load the adapters that aren't loaded yet.

        Raises:
            AdapterError: one can't be loaded, or doesn't fit the model. All that were loaded before still are.
        """
        known = {one.source for one in self.adapters}
        missing = [one for one in given if one.source not in known]
        if not missing:
            return
        loaded = load_mix(missing)
        for one in loaded:
            one.adapter.check_base(self.model, str(one.path))
        # In the order of `load_mix`, in which their changes are added.
        adapters = sorted([*self.adapters, *loaded], key=lambda one: (one.sha256, one.source))
        if "_adapted" in vars(self):
            self._engine = self._prepared = None
            self._adapted.set_strengths([0.0] * len(self.adapters))
            self._adapted = self._with_adapters(self._adapted.lm, adapters)
        self.adapters = adapters

    def engine(self, mix: Mix, weight_bits: int = 16, cache_bits: int = 16) -> Engine:
        """Return an engine with a mix of the loaded adapters, ready to generate. It replaces the one returned before.

        Raises:
            AdapterError: a weight would be NaN or infinite.
            DeviceError: 8-bit weights or caches without the decoding kernels.
        """
        wanted = (strengths_of(mix, self.adapters), weight_bits, cache_bits)
        if self._engine is None or self._prepared != wanted:
            self._engine = self._prepared = None  # frees the packed weights for those of this mix
            adapted = self._adapted
            adapted.set_strengths(wanted[0])
            engine = Engine(
                lm=adapted.lm,
                text=self.text,
                guidance=self.model.config.inference_coefficient,
                weight_bits=weight_bits,
                cache_bits=cache_bits,
            )
            announce(message("preparing the model to generate; on a GPU it is compiled the first time"))
            engine.pack()
            self._engine, self._prepared = engine, wanted
        return self._engine


def load_model(request: RenderRequest, keep_base: bool = False) -> ResidentModel:
    """Load the model of a request, with its adapters, onto its device.

    Args:
        request: names model and adapters; recordings that its samples continue or follow are checked first.
        keep_base: see `ResidentModel`.

    Raises:
        MusicgenError: an error that the user can act on.
    """
    device = pick_device(request.device)
    loaded = load_mix(request.all_adapters)
    check_continued(request.prompts, request.continue_from)
    # Adapters of other programs may not name their base model.
    naming = next((one for one in loaded if one.adapter.base_model), loaded[0] if loaded else None)
    adapter, path = (naming.adapter, naming.path) if naming else (None, None)
    name = choose_model(request.model, request.default_model, adapter, path)
    check_melodies(request.melodies, name)
    model = find_model(name)
    if request.melodies:
        check_takes_melody(name, model.chroma_frames > 0)
    return ResidentModel(model, device, loaded, keep_base)
