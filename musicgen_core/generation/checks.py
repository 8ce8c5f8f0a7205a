"""Checks of a request before a model is loaded."""

from __future__ import annotations

from musicgen_core.errors import ConfigError
from musicgen_core.generation.request import RenderRequest
from musicgen_core.generation.seams import check_seams
from musicgen_core.language import message


def check_request(request: RenderRequest) -> None:
    """Raise ConfigError if parts of a request don't fit together."""
    if not request.prompts:
        raise ConfigError(message("there are no prompts"), message("Give --prompt 'some text' or --prompts-file FILE"))
    for option, wanted in (("--compare", request.compare), ("--strengths", request.strengths)):
        if wanted and not request.all_adapters:
            raise ConfigError(
                message("{option} needs an adapter to compare with the base model", option=option),
                message("Give --adapter"),
            )
    if request.keep_candidates and all((one.best_of or request.control.best_of or 1) == 1 for one in request.prompts):
        raise ConfigError(message("--keep-candidates is given without candidates"), message("Give --best-of"))
    if request.separate_melody and not request.melodies:
        raise ConfigError(message("--separate-melody is given without a melody"), message("Give --melody"))
    prompts = [one.with_defaults(request.control) for one in request.prompts]
    check_seams([one.with_seams(request.seams, request.continue_from) for one in prompts], request.melody)
    if request.settings.guidance is not None:
        check_guided(request, request.settings.guidance)


def check_guided(request: RenderRequest, guidance: float) -> None:
    """Raise ConfigError if there is a negative prompt that guidance, whose coefficient is 1, doesn't lead away from."""
    if guidance == 1 and any(prompt.with_defaults(request.control).negative_prompt for prompt in request.prompts):
        raise ConfigError(
            message("a negative prompt has no effect at guidance 1"),
            message("Give another --guidance, such as 3, or leave out the negative prompt"),
        )
