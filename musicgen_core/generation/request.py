"""The request of a rendering, and the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from musicgen_core.config import DEFAULT_MODEL, Format, SamplingSettings
from musicgen_core.escaping import one_line
from musicgen_core.generation.control import ControlSettings
from musicgen_core.generation.page import PAGE
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.seam_settings import SeamSettings
from musicgen_core.language import message
from musicgen_core.model.weighted_adapters import (
    Mix,
    WeightedAdapter,
    parse_adapters,
    shown_strength,
    times,
    with_effect,
)
from musicgen_core.wording import counted


@dataclass(frozen=True)
class RenderRequest:
    """A rendering of prompts.

    Attributes:
        out: the directory for the files.
        prompts: the prompts to render.
        model: `demo`, `debug`, a directory or a Hugging Face id; None: the base model of the adapter.
        settings: sampling settings.
        adapters: adapters with strengths, mixed for every prompt that names none; empty for the base model.
        strengths: factors of all strengths, with each of which every prompt is rendered; empty: once, as they are.
        control: what the music should have and avoid, unless its prompt says otherwise.
        keep_candidates: write all candidates of `--best-of`.
        compare: render each prompt with the base model as well, from the same seed.
        variations: samples per prompt, each from a random stream of its own.
        continue_from: a sound file that every sample continues, unless its prompt names another; or None.
        melody: a sound file whose melody every sample follows, unless its prompt names another; or None.
        seams: loops and stretches to make again, unless a prompt has its own.
        separate_melody: whether melodies are taken without drums and bass, with Demucs.
        formats: formats beside wav.
        spectrograms: whether to draw spectrograms.
        save_codes: whether to save the codes as `.npy`.
        batch_size: samples in a batch; None: one on a CPU, and on a GPU the engine's batch size that fits.
        weight_bits: bits of the weights, 16, or 8 where the decoding kernels work.
        cache_bits: bits of keys and values in batches of several samples, 16 or 8 likewise.
        device: auto, cpu or cuda.
        copy_to: a second directory for the files, or None.
        default_model: the model without an adapter, or with one that names no base model.
    """

    out: str
    prompts: Sequence[Prompt]
    model: str | None = None
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    adapters: Sequence[WeightedAdapter] = ()
    strengths: Sequence[float] = ()
    control: ControlSettings = field(default_factory=ControlSettings)
    keep_candidates: bool = False
    compare: bool = False
    variations: int = 1
    continue_from: str | None = None
    melody: str | None = None
    separate_melody: bool = False
    seams: SeamSettings = field(default_factory=SeamSettings)
    formats: Sequence[Format] = ()
    spectrograms: bool = True
    save_codes: bool = False
    batch_size: int | None = None
    weight_bits: int = 16
    cache_bits: int = 16
    device: str = "auto"
    copy_to: str | None = None
    default_model: str = DEFAULT_MODEL

    def adapters_for(self, prompt: Prompt) -> Mix:
        """Return the prompt's own adapters, or else those of the request.

        Raises:
            ConfigError: the prompt's adapters can't be parsed.
        """
        return _parsed(tuple(prompt.adapter)) if prompt.adapter else tuple(self.adapters)

    @property
    def all_adapters(self) -> Mix:
        """The adapters of all prompts. Raises as `adapters_for`."""
        return tuple(one for prompt in self.prompts for one in self.adapters_for(prompt))

    def mixes(self, prompt: Prompt) -> list[Mix]:
        """Return what each variation of a prompt is rendered with; an empty mix is the base model.

        Strength 0 is the base model, which is rendered once. Raises as `adapters_for`.
        """
        own = self.adapters_for(prompt)
        found = [times(own, factor) for factor in self.strengths] or [own]
        return list(dict.fromkeys([*([()] if self.compare else []), *map(with_effect, found)]))

    @property
    def melodies(self) -> list[str]:
        """The sound files of all melodies."""
        given = (prompt.melody or self.melody for prompt in self.prompts)
        return list(dict.fromkeys(file for file in given if file))

    @property
    def sample_count(self) -> int:
        return self.variations * sum(len(self.mixes(prompt)) * self._kept(prompt) for prompt in self.prompts)

    def _kept(self, prompt: Prompt) -> int:
        return (prompt.best_of or self.control.best_of or 1) if self.keep_candidates else 1


@lru_cache(maxsize=1024)
def _parsed(adapters: tuple[str, ...]) -> Mix:
    """Parse adapters once, whatever number of prompts names them: each with a strength is looked for as a file."""
    return parse_adapters(adapters)


@dataclass(frozen=True)
class Rendered:
    """One rendered sample.

    Attributes:
        wav: its path.
        prompt: its text.
        prompt_number: its prompt's number, from 0.
        variation: its number among the samples of its prompt and seed, from 0.
        seconds: its duration.
        with_adapter: whether it was rendered with adapters rather than the base model alone.
        adapters: paths of their files, or their names on the Hub.
        strengths: the strengths of these adapters.
    """

    wav: str
    prompt: str
    prompt_number: int
    variation: int
    seconds: float
    with_adapter: bool
    adapters: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()

    @property
    def title(self) -> str:
        """The prompt as a label, shortened."""
        return one_line(self.prompt)

    @property
    def voice(self) -> str:
        """The model and variation that it was rendered with: `base model`, or `with the adapter, variation 2`."""
        voice = message("with the adapter") if self.with_adapter else message("base model")
        if self.strengths not in ((), (1,)):
            numbers = " + ".join(map(shown_strength, self.strengths))
            voice = message("with the adapter, strength {numbers}", numbers=numbers)
            if len(self.strengths) > 1:
                voice = message("with adapters, strengths {numbers}", numbers=numbers)
        if not self.variation:
            return voice
        return message("{voice}, variation {number}", voice=voice, number=self.variation + 1)


def adapters_of(pieces: Sequence[Rendered]) -> list[str]:
    """Return the adapters that these samples were rendered with, at whatever strengths; none: the base model alone."""
    return list(dict.fromkeys(adapter for piece in pieces for adapter in piece.adapters))


def outcome_of(pieces: Sequence[Rendered]) -> str:
    """Return the result of a rendering as one line: `2 samples made with runs/jazz/…/best_lora.pt, in music`."""
    adapters = adapters_of(pieces)
    player: str = ", ".join(adapters) or message("the base model")
    if adapters and not all(piece.with_adapter for piece in pieces):
        player = message("{adapter} and the base model", adapter=player)
    count = counted(len(pieces), "sample")
    return message("{pieces} made with {player}, in {folder}", pieces=count, player=player, folder=folder_of(pieces))


def folder_of(pieces: Sequence[Rendered]) -> str:
    """Return the path of the folder of these samples."""
    return pieces[0].wav.rpartition("/")[0]


def page_of(pieces: Sequence[Rendered]) -> str:
    """Return the path of the page that plays these samples."""
    return f"{folder_of(pieces)}/{PAGE}"
