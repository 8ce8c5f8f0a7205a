"""What a person asks for on the studio's page, and the rendering that this is."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from deployments.studio.adapters import OfferedAdapter
from deployments.studio.folder import MusicFolder
from musicgen_core.config import ChoiceSettings, PromptText, SamplingSettings
from musicgen_core.errors import ConfigError
from musicgen_core.generation.control import ControlSettings
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.request import RenderRequest
from musicgen_core.generation.seam_settings import RedoneStretch, SeamSettings
from musicgen_core.language import message
from musicgen_core.model.weighted_adapters import BASE, Mix, WeightedAdapter, shown_adapters, with_effect
from musicgen_core.settings import Settings

MOST_SECONDS, MOST_VARIATIONS, MOST_PROMPTS = 300, 8, 1000
_Strength = Annotated[float, Field(ge=-1000, le=1000)]


class Wish(ControlSettings):
    """The values of the page's form."""

    prompt: PromptText = Field("", description="text")
    duration: float = Field(10.0, gt=0, le=MOST_SECONDS, description="seconds of new music")
    seed: int | None = Field(None, ge=0, lt=2**32, description="None: a random one")
    variations: int = Field(1, ge=1, le=MOST_VARIATIONS, description="samples")
    compare: bool = Field(False, description="also with the base model, if there is an adapter")
    strengths: dict[str, _Strength] = Field({}, description="strengths of adapters, by their ids")
    guidance: float | None = Field(None, ge=0, le=1000, description="None: the model's own")
    temperature: float = Field(1.0, ge=1e-5, le=1000, description="as in `ChoiceSettings`")
    top_k: int = Field(250, ge=0, le=10**9, description="likewise")
    source: str = Field("", max_length=100, description="a sample or an upload to continue; empty: none")
    until: float | None = Field(None, gt=0, description="seconds of it to keep; None: all")
    redo: RedoneStretch = Field(None, description="the part of the source to make again, in seconds: 8-14")
    loop: bool = Field(False, description="as in `SeamSettings`")

    @property
    def control(self) -> ControlSettings:
        return ControlSettings(**{name: getattr(self, name) for name in ControlSettings.model_fields})

    @property
    def sampling(self) -> ChoiceSettings:
        return ChoiceSettings(guidance=self.guidance, temperature=self.temperature, top_k=self.top_k)

    def mix(self, offered: Mapping[str, OfferedAdapter]) -> Mix:
        """Return the adapters with an effect.

        Raises:
            ConfigError: one isn't offered any more.
        """
        if gone := self.strengths.keys() - offered.keys():
            raise ConfigError(
                message("{number} of the adapters are gone", number=len(gone)), message("Reload the page")
            )
        return with_effect(WeightedAdapter(offered[id].source, value) for id, value in self.strengths.items())

    def request(
        self, folder: MusicFolder, offered: Mapping[str, OfferedAdapter], stereo: bool, device: str = "auto"
    ) -> RenderRequest:
        """Return the rendering; its files are those of `generate`.

        Raises:
            ConfigError: the recording to continue can't be read, or see `mix`.
        """
        path, kept = folder.source(self.source, self.until, stereo) if self.source else (None, 0.0)
        mix = self.mix(offered)
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        duration = kept if self.redo else self.duration + kept
        settings = SamplingSettings(**self.sampling.model_dump(), duration=duration, seed=seed)
        return RenderRequest(
            out=str(folder.path),
            prompts=[Prompt(prompt=self.prompt)],
            settings=settings,
            control=self.control,
            adapters=mix,
            compare=self.compare and bool(mix),
            variations=self.variations,
            continue_from=path,
            seams=SeamSettings(loop=self.loop, redo=self.redo),
            device=device,
        )


class FlowWish(Settings):
    """Many prompts to run as a flow with the settings of the form."""

    prompts: Annotated[tuple[PromptText, ...], Field(min_length=1, max_length=MOST_PROMPTS)]
    wish: Wish

    def parameters(self, folder: MusicFolder, offered: Mapping[str, OfferedAdapter], model: str) -> dict[str, Any]:
        """Return the parameters of `generate-music`. Raises as `Wish.mix`."""
        wish = self.wish
        mix = wish.mix(offered)
        return {
            "prompts": list(self.prompts),
            "output": str(folder.path),
            "adapter": shown_adapters(mix) or BASE,
            "compare": wish.compare and bool(mix),
            "model": model,
            "duration": wish.duration,
            "variations": wish.variations,
            "seed": wish.seed or 0,
            "loop": wish.loop,
            **wish.sampling.model_dump(mode="json", exclude_none=True),
            **wish.control.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
        }
