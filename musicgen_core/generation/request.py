"""What a rendering is asked for, and what it came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from musicgen_core.config import DEFAULT_MODEL, Format, SamplingSettings
from musicgen_core.escaping import one_line
from musicgen_core.generation.prompts import Prompt
from musicgen_core.language import message


@dataclass(frozen=True)
class RenderRequest:
    """What to render, with what, and where to.

    Attributes:
        out: the directory for the files.
        model: `demo`, `debug`, a directory or a Hugging Face id; None: the base model of the adapter.
        adapter: a `*_lora.pt` or a run directory; None for the base model.
        compare: render each prompt with the base model, too, from the same seed.
        variations: pieces a prompt, each from a random stream of its own.
        continue_from: a sound file that every piece goes on from, unless its prompt says another; or None.
        formats: beside the wav.
        save_codes: keep the codes as `.npy`, too.
        batch_size: pieces side by side; None: one on a CPU, and of the engine's few sizes what fits a GPU.
        weight_bits: 16 or, on a GPU with the kernels, 8.
        cache_bits: of keys and values where several pieces are side by side, likewise.
        copy_to: a place for a second copy, or None.
        default_model: the model without an adapter, or with one that names no base model.
    """

    out: str
    prompts: Sequence[Prompt]
    model: str | None = None
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    adapter: str | None = None
    compare: bool = False
    variations: int = 1
    continue_from: str | None = None
    formats: Sequence[Format] = ()
    spectrograms: bool = True
    save_codes: bool = False
    batch_size: int | None = None
    weight_bits: int = 16
    cache_bits: int = 16
    device: str = "auto"
    copy_to: str | None = None
    default_model: str = DEFAULT_MODEL

    @property
    def pieces_a_prompt(self) -> int:
        return self.variations * (2 if self.compare else 1)


@dataclass(frozen=True)
class Rendered:
    """One piece of music.

    Attributes:
        wav: its path.
        prompt_number, variation: from 0.
        with_adapter: whether the adapter played, not the base model alone.
    """

    wav: str
    prompt: str
    prompt_number: int
    variation: int
    seconds: float
    with_adapter: bool

    @property
    def title(self) -> str:
        """The prompt as a label, shortened."""
        return one_line(self.prompt)

    @property
    def voice(self) -> str:
        """Return what played: `base model`, or `with the adapter, variation 2`."""
        voice = message("with the adapter") if self.with_adapter else message("base model")
        if not self.variation:
            return voice
        return message("{voice}, variation {number}", voice=voice, number=self.variation + 1)


def page_of(pieces: Sequence[Rendered]) -> str:
    """The page that plays them all."""
    folder, _, _ = pieces[0].wav.rpartition("/")
    return f"{folder}/index.html"
