"""`generate-music`: prompts → wavs."""

# No `from __future__ import annotations`: Prefect and the command line read the parameters' annotations as they are.

from typing import TYPE_CHECKING, Annotated

from prefect import flow
from pydantic import Field

from flows.orphans import end_with_worker
from flows.parameters import DEFAULT_MODEL, Device, Model, Output, new_folder, place, run_name, spread
from flows.run_form import explained
from musicgen_core import storage
from musicgen_core.config import DEFAULT_PROMPTS, SamplingSettings
from tasks.generating import render_prompts
from tasks.keys import export_secrets

if TYPE_CHECKING:
    from musicgen_core.generation.render import Rendered


@explained
@flow(name="generate-music", flow_run_name=run_name("generate-music", "output"))
@spread(SamplingSettings)
def generate_music(
    *,
    output: Output = None,
    prompts: Annotated[list[str] | None, Field(description="Texts to make music from, one piece each")] = None,
    prompts_file: Annotated[str | None, Field(description="A text file with a prompt a line")] = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    adapter: Annotated[
        str | None,
        Field(description="A *_lora.pt or a run directory (its best); none: the base model"),
    ] = None,
    compare: Annotated[
        bool, Field(description="Render each prompt with the base model, too, from the same seed")
    ] = False,
    save_codes: Annotated[bool, Field(description="Keep the codes beside each wav, as .npy")] = False,
    copy_to: Annotated[str | None, Field(description="Keep a second copy of the files here")] = None,
    settings: SamplingSettings,
) -> "list[Rendered]":
    """Make music from texts, with the adapter of a training or with the base model."""
    end_with_worker()
    export_secrets()
    texts = _prompts(prompts, prompts_file)
    directory = output or str(storage.as_path(place(None, "musicgen_output")) / new_folder("generate-music"))
    return render_prompts(
        output=directory,
        prompts=texts,
        count=len(texts),
        model=model,
        settings=settings,
        adapter=adapter,
        compare=compare,
        save_codes=save_codes,
        device=device,
        copy_to=copy_to,
    )


def _prompts(given: list[str] | None, file: str | None) -> list[str]:
    texts = list(given or [])
    if file is not None:
        from musicgen_core.generation.render import read_prompts

        texts += read_prompts(file)
    return texts or list(DEFAULT_PROMPTS)
