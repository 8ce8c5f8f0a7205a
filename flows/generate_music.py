"""`generate-music`: prompts → wavs, and a page that plays them."""

from __future__ import annotations

from prefect.client.schemas import State
from prefect.states import Completed

from flows.decorator import form_flow
from flows.locations import chosen_device, chosen_model, is_of_deployment, location_of, music_name, new_folder
from flows.parameters import (
    BASE,
    AdapterOrBase,
    AdaptersModel,
    Compare,
    ContinueFrom,
    Device,
    EngineOptions,
    Files,
    MusicPrompts,
    Output,
    PromptsFile,
    Variations,
)
from flows.retraining import last_trained
from musicgen_core import storage
from musicgen_core.config import DEFAULT_PROMPTS, ChoiceSettings, Duration, MusicSeed, SamplingSettings
from musicgen_core.generation.prompts import Prompt, read_prompts
from musicgen_core.generation.request import Rendered, RenderRequest, outcome_of
from musicgen_core.settings import collect
from tasks.generating import render_prompts


@form_flow(name="generate-music", flow_run_name=music_name("generate-music"))
def generate_music(
    prompts: MusicPrompts = (),
    prompts_file: PromptsFile = "",
    adapter: AdapterOrBase = "",
    output: Output = "",
    duration: Duration = 10.0,
    variations: Variations = 1,
    seed: MusicSeed = 0,
    compare: Compare = False,
    continue_from: ContinueFrom = "",
    model: AdaptersModel = "",
    device: Device = "auto",
    sampling: ChoiceSettings = ChoiceSettings(),
    files: Files = Files(),
    engine: EngineOptions = EngineOptions(),
) -> list[Rendered] | State[list[Rendered]]:
    """Generate music from text prompts, with a trained adapter or with the base model alone."""
    wanted = [Prompt(prompt=text) for text in prompts]
    wanted += read_prompts(prompts_file) if prompts_file else []
    wanted = wanted or [Prompt(prompt=text) for text in DEFAULT_PROMPTS]
    request = RenderRequest(
        out=output or str(storage.as_path(location_of(None, "musicgen_output")) / new_folder("generate-music")),
        prompts=wanted,
        model=model or None,
        settings=collect(SamplingSettings, sampling, duration=duration, seed=seed),
        adapter=_chosen_adapter(adapter, model),
        compare=compare,
        variations=variations,
        continue_from=continue_from or None,
        formats=files.formats or (),
        spectrograms=files.spectrograms,
        save_codes=files.save_codes,
        batch_size=engine.batch_size,
        weight_bits=engine.weight_bits,
        cache_bits=engine.cache_bits,
        device=chosen_device(device),
        copy_to=files.copy_to,
        default_model=chosen_model(""),
    )
    pieces = render_prompts(count=len(wanted), request=request)
    if isinstance(pieces, State):
        return pieces  # Cancelled
    return Completed(message=str(outcome_of(pieces)), data=pieces)


def _chosen_adapter(given: str, model: str) -> str | None:
    """Return the given adapter; in runs of deployments, the last training run's by default. None: the base model."""
    if given:
        return None if given == BASE else given
    if not is_of_deployment():
        return None
    return last_trained(model, f"Train first, or give an adapter; {BASE} stands for the base model alone")
