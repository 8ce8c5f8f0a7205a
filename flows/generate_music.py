"""`generate-music`: prompts → wavs, and a page that plays them."""

# No `from __future__ import annotations`: Prefect and the command line read the parameters' annotations as they are.

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas import State
from pydantic import Field

from flows.beginning import begin
from flows.endings import ends_with_reason
from flows.parameters import DEFAULT_MODEL, Device, Model, Output, new_folder, place, run_name, spread
from flows.run_form import explained
from musicgen_core import storage
from musicgen_core.config import DEFAULT_PROMPTS, Format, PromptText, SamplingSettings
from musicgen_core.generation.prompts import Prompt, read_prompts
from musicgen_core.generation.request import MOST_SIDE_BY_SIDE, Rendered, RenderRequest
from tasks.generating import render_prompts


def _bits(description: str) -> Any:
    """Of a parameter that is 8 or 16."""
    return Field(ge=8, le=16, multiple_of=8, description=description)


@explained
@flow(name="generate-music", flow_run_name=run_name("generate-music", "output"))
@ends_with_reason
@spread(SamplingSettings)
def generate_music(
    *,
    output: Output = None,
    prompts: Annotated[
        list[PromptText] | None, Field(description="Texts to make music from; by default a few examples")
    ] = None,
    prompts_file: Annotated[
        str | None,
        Field(
            description="A text file with a prompt a line; or a .jsonl of objects with prompt and, if wanted, "
            "duration, seed and continue_from"
        ),
    ] = None,
    variations: Annotated[
        int, Field(ge=1, le=10_000, description="Samples a prompt, each from its own random stream")
    ] = 1,
    continue_from: Annotated[
        str | None, Field(description="A sound file that the pieces go on from; the duration is that of the whole")
    ] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    adapter: Annotated[
        str | None,
        Field(
            description="A *_lora.pt, a run directory (its best), a PEFT directory, or USER/NAME on the Hub; "
            "none: the base model"
        ),
    ] = None,
    compare: Annotated[
        bool, Field(description="Render each prompt with the base model, too, from the same seed")
    ] = False,
    formats: Annotated[list[Format] | None, Field(description="Write these beside each wav, too: flac, mp3")] = None,
    spectrograms: Annotated[bool, Field(description="Draw each piece's spectrogram")] = True,
    save_codes: Annotated[bool, Field(description="Keep the codes beside each wav, as .npy")] = False,
    batch_size: Annotated[
        int | None,
        Field(
            ge=1,
            le=MOST_SIDE_BY_SIDE,
            description="Pieces side by side; by default 1 on a CPU, and 1, 8 or 32 on a GPU as they fit",
        ),
    ] = None,
    weight_bits: Annotated[int, _bits("Bits of weights on a GPU, 16 or 8; 8: quicker for single pieces")] = 16,
    cache_bits: Annotated[
        int, _bits("Bits of what is kept of earlier frames, on a GPU, 16 or 8; 8: quicker for many side by side")
    ] = 16,
    copy_to: Annotated[str | None, Field(description="Keep a second copy of the files here")] = None,
    settings: SamplingSettings,
) -> list[Rendered] | State[list[Rendered]]:
    """Make music from texts, with the adapter of a training or with the base model."""
    begin()
    wanted = [Prompt(prompt=text) for text in prompts or ()] + (read_prompts(prompts_file) if prompts_file else [])
    wanted = wanted or [Prompt(prompt=text) for text in DEFAULT_PROMPTS]
    request = RenderRequest(
        out=output or str(storage.as_path(place(None, "musicgen_output")) / new_folder("generate-music")),
        prompts=wanted,
        model=model,
        settings=settings,
        adapter=adapter,
        compare=compare,
        variations=variations,
        continue_from=continue_from,
        formats=formats or (),
        spectrograms=spectrograms,
        save_codes=save_codes,
        batch_size=batch_size,
        weight_bits=weight_bits,
        cache_bits=cache_bits,
        device=device,
        copy_to=copy_to,
    )
    return render_prompts(count=len(wanted), request=request)
