"""`generate-music`: prompts → wavs, and a page that plays them."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.client.schemas import State
from prefect.states import Completed

from flows.decorator import form_flow
from flows.locations import chosen_device, chosen_model, is_of_deployment, music_name, new_location
from flows.parameters import GenerateParameters
from flows.retraining import last_trained
from musicgen_core.config import DEFAULT_PROMPTS, SamplingSettings
from musicgen_core.generation.piece_prompts import with_own_texts
from musicgen_core.generation.prompts import Prompt, read_prompts
from musicgen_core.generation.request import Rendered, RenderRequest, outcome_of
from musicgen_core.model.weighted_adapters import BASE, Mix, WeightedAdapter, parse_adapters
from musicgen_core.settings import collect
from tasks.generating import render_prompts


@form_flow(name="generate-music", form=GenerateParameters, flow_run_name=music_name("generate-music"))
def generate_music(given: GenerateParameters) -> list[Rendered] | State[list[Rendered]]:
    """Generate music from text prompts, with a trained adapter or with the base model alone."""
    wanted = [Prompt(prompt=text) for text in given.prompts]
    wanted += read_prompts(given.prompts_file) if given.prompts_file else []
    settings = collect(SamplingSettings, given)
    if not wanted and given.seams.redo and given.continue_from:
        wanted = [Prompt(prompt="", redo=given.seams.redo, continue_from=given.continue_from)]
    asked = {name for name, value in given.control if value not in (None, ())} | ({"seed"} if settings.seed else set())
    wanted, model_of_piece = with_own_texts(wanted, asked, with_adapters=not given.adapter)
    defaults = ("",) if given.control.sections else DEFAULT_PROMPTS  # sections need no prompt for the whole
    wanted = wanted or [Prompt(prompt=text) for text in defaults]
    request = RenderRequest(
        out=given.output or new_location("musicgen_output", "generate-music"),
        prompts=wanted,
        model=given.model or (None if given.adapter else model_of_piece),
        settings=settings,
        adapters=_chosen_adapters(given.adapter, given.model, wanted),
        strengths=given.strengths,
        control=given.control,
        compare=given.compare,
        variations=given.variations,
        continue_from=given.continue_from or None,
        melody=given.melody or None,
        seams=given.seams,
        separate_melody=given.separate_melody,
        formats=given.files.formats or (),
        spectrograms=given.files.spectrograms,
        save_codes=given.files.save_codes,
        keep_candidates=given.files.keep_candidates,
        batch_size=given.engine.batch_size,
        weight_bits=given.engine.weight_bits,
        cache_bits=given.engine.cache_bits,
        device=chosen_device(given.device),
        copy_to=given.files.copy_to,
        default_model=chosen_model(""),
    )
    pieces = render_prompts(count=len(wanted), request=request)
    if isinstance(pieces, State):
        return pieces  # Cancelled
    return Completed(message=str(outcome_of(pieces)), data=pieces)


def _chosen_adapters(given: Sequence[str], model: str, prompts: Sequence[Prompt]) -> Mix:
    """Return the adapters of prompts without their own: the given ones. None: the base model alone.

    In runs of deployments they are the last training run's by default.
    """
    if given:
        return parse_adapters(given)
    if not is_of_deployment() or all(prompt.adapter for prompt in prompts):
        return ()
    last = last_trained(model, f"Train first, or give an adapter; {BASE} stands for the base model alone")
    return (WeightedAdapter(last),)
