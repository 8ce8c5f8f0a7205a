"""`generate-music`: prompts → wavs, and a page that plays them."""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas import State

from flows.beginning import begin
from flows.endings import ends_with_reason
from flows.parameters import BASE, GenerateParameters
from flows.places import chosen_device, chosen_model, is_of_deployment, music_name, new_folder, place
from flows.retraining import last_trained
from flows.run_form import explained, spread
from musicgen_core import storage
from musicgen_core.config import DEFAULT_PROMPTS, SamplingSettings
from musicgen_core.generation.prompts import Prompt, read_prompts
from musicgen_core.generation.request import Rendered, RenderRequest
from tasks.generating import render_prompts


@explained
@flow(name="generate-music", flow_run_name=music_name("generate-music"))
@ends_with_reason
@spread(GenerateParameters, SamplingSettings)
def generate_music(given: GenerateParameters, settings: SamplingSettings) -> list[Rendered] | State[list[Rendered]]:
    """Make music from texts, with the adapter of a training or with the base model alone."""
    begin()
    wanted = [Prompt(prompt=text) for text in given.prompts or ()]
    wanted += read_prompts(given.prompts_file) if given.prompts_file else []
    wanted = wanted or [Prompt(prompt=text) for text in DEFAULT_PROMPTS]
    request = RenderRequest(
        out=given.output or str(storage.as_path(place(None, "musicgen_output")) / new_folder("generate-music")),
        prompts=wanted,
        model=given.model,
        settings=settings,
        adapter=_adapter(given),
        compare=given.compare,
        variations=given.variations,
        continue_from=given.continue_from,
        formats=given.formats or (),
        spectrograms=given.spectrograms,
        save_codes=given.save_codes,
        batch_size=given.batch_size,
        weight_bits=given.weight_bits,
        cache_bits=given.cache_bits,
        device=chosen_device(given.device),
        copy_to=given.copy_to,
        default_model=chosen_model(None),
    )
    return render_prompts(count=len(wanted), request=request)


def _adapter(given: GenerateParameters) -> str | None:
    """Return the adapter that is given, else that of the last training in runs of deployments; None: the base model."""
    if given.adapter:
        return None if given.adapter == BASE else given.adapter
    if not is_of_deployment():
        return None
    return last_trained(given.model, f"Train first, or give an adapter; {BASE} stands for the base model alone")
