"""The values of the studio's form, and the requests that they are."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from deployments.studio.adapters import OfferedAdapter
from deployments.studio.folder import MusicFolder
from musicgen_core import storage
from musicgen_core.config import ChoiceSettings, PromptText, SamplingSettings
from musicgen_core.errors import ConfigError
from musicgen_core.generation.checks import check_request
from musicgen_core.generation.control import ControlSettings
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.request import RenderRequest
from musicgen_core.generation.seam_settings import SeamSettings
from musicgen_core.language import message
from musicgen_core.model.weighted_adapters import BASE, Mix, WeightedAdapter, shown_adapters, with_effect
from musicgen_core.model.weights import BaseModel
from musicgen_core.settings import Settings, collect, validate

MOST_SECONDS, MOST_VARIATIONS, MOST_PROMPTS = 300, 8, 1000
_Strength = Annotated[float, Field(ge=-1000, le=1000)]


class StudioForm(ControlSettings, ChoiceSettings, SeamSettings):
    """The values of the page's form. Those without a field on the page are of a sample whose settings are used."""

    prompt: PromptText = Field("", description="text")
    duration: float = Field(10.0, gt=0, le=MOST_SECONDS, description="seconds of new music")
    seed: int | None = Field(None, ge=0, lt=2**32, description="None: a random one")
    variations: int = Field(1, ge=1, le=MOST_VARIATIONS, description="samples")
    compare: bool = Field(False, description="also with the base model, if there is an adapter")
    strengths: dict[str, _Strength] = Field({}, description="strengths of adapters, by their ids")
    source: str = Field("", max_length=100, description="a sample or an upload to continue; empty: none")
    until: float | None = Field(None, gt=0, description="seconds of it to keep; None: all")

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

    def request(self, folder: MusicFolder, offered: Mapping[str, OfferedAdapter], stereo: bool) -> RenderRequest:
        """Return the rendering; its files are those of `generate`.

        Raises:
            ConfigError: values don't fit together, the recording to continue can't be read, or see `mix`.
        """
        if self.loop and self.source:
            raise ConfigError(
                message("a loop can't continue a recording"),
                message("Switch off the loop, or remove the recording that it continues"),
            )
        path, kept = folder.source(self.source, self.until, stereo) if self.source else (None, 0.0)
        mix = self.mix(offered)
        request = RenderRequest(
            out=str(folder.path),
            prompts=[Prompt(prompt=self.prompt)],
            settings=self._sampling(kept),
            control=collect(ControlSettings, self),
            adapters=mix,
            compare=self.compare and bool(mix),
            variations=self.variations,
            continue_from=path,
            seams=collect(SeamSettings, self),
        )
        try:
            check_request(request)
        except ConfigError as error:  # whose advice is for the command line
            raise ConfigError(error.found, message("Change the form")) from error
        return request

    def _sampling(self, kept: float) -> SamplingSettings:
        """Return the settings of a sample that continues a recording of `kept` seconds.

        Raises:
            ConfigError: it would be too long.
        """
        duration = kept if self.redo else self.duration + kept
        seed = secrets.randbelow(2**32) if self.seed is None else self.seed
        chosen = collect(ChoiceSettings, self).model_dump()
        return validate(SamplingSettings, {**chosen, "duration": duration, "seed": seed}, message("the form"))


class FlowForm(Settings):
    """Many prompts to run as a flow with the settings of the form."""

    prompts: Annotated[tuple[PromptText, ...], Field(min_length=1, max_length=MOST_PROMPTS)]
    form: StudioForm

    def parameters(
        self, folder: MusicFolder, offered: Mapping[str, OfferedAdapter], model: BaseModel | None, stereo: bool
    ) -> dict[str, Any]:
        """Return the parameters of `generate-music`, whose worker may have another working directory.

        Args:
            model: the studio's; None for the deployment's own.
            stereo: whether it has two channels.

        Raises:
            ConfigError: as `StudioForm.request`.
        """
        request = self.form.request(folder, offered, stereo)
        mix = [WeightedAdapter(_absolute(one.source), one.strength) for one in request.adapters]
        return {
            "prompts": list(self.prompts),
            "output": request.out,
            "adapter": shown_adapters(mix) or BASE,
            "compare": request.compare,
            "model": "" if model is None else _absolute(model.name),
            "variations": request.variations,
            "continue_from": request.continue_from or "",
            **request.seams.model_dump(mode="json", exclude_none=True),
            **request.settings.model_dump(mode="json", exclude_none=True),
            **request.control.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
        }


def _absolute(location: str) -> str:
    """Return the absolute path of what is on this machine; other names, such as on the Hub, stay."""
    path = storage.as_path(location)
    return str(Path(str(path)).expanduser().resolve()) if storage.is_local(path) and path.exists() else location
