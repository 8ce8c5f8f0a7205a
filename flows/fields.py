"""Single parameters of the flows, each with its type, bounds and description.

Imports neither Prefect nor torch, as `flows/parameters.py`, which puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from musicgen_core.config import DEFAULT_MODEL, Prompts
from musicgen_core.model.weighted_adapters import split_adapters
from musicgen_core.settings import LARGEST_COUNT, names_in

_Text = Annotated[str, BeforeValidator(lambda text: "" if text is None else text)]
"""An optional text parameter: empty, or null as forms of earlier versions sent it. Forms show a text box."""

_ZERO_IF_NULL = BeforeValidator(lambda number: 0 if number is None else number)
_MODELS = (
    "MusicGen model: a Hugging Face id, a directory in audiocraft's format or transformers' format, demo (small, "
    "comes with the project) or debug (random weights, for tests)"
)
_DEFAULT = f"{DEFAULT_MODEL} (deployments: the variable musicgen_model)"
Model = Annotated[_Text, Field(description=f"{_MODELS}. Default: {_DEFAULT}")]
AdaptersModel = Annotated[
    _Text, Field(description=f"{_MODELS}. Default: the adapter's base model; without an adapter {_DEFAULT}")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    Field(
        description="Where to compute. auto: the GPU if there is one, else the CPU (deployments: the variable "
        "musicgen_device first)"
    ),
]
Archives = Annotated[
    _Text,
    Field(
        description="Your music: a zip or tar archive, a folder of archives, or a pattern such as "
        "data/*.zip; by default the variable musicgen_archives"
    ),
]
RunDir = Annotated[
    _Text,
    Field(
        description="Folder of this training run: adapter, samples, checkpoints; by default a new one "
        "under the variable musicgen_runs"
    ),
]
Tokens = Annotated[
    _Text,
    Field(
        description="Folder of the tokens, the form in which the model reads your music; by default the "
        "variable musicgen_tokens"
    ),
]
Metadata = Annotated[
    _Text,
    Field(
        description="File with a description of each clip; by default metadata.jsonl beside the archives, "
        "if it is there"
    ),
]
CaptionFile = Annotated[
    _Text,
    Field(
        description="File for the descriptions, one line per clip, which you may correct; by default metadata.jsonl "
        "beside the archives"
    ),
]
Overwrite = Annotated[
    bool, Field(description="Also replace descriptions and measurements that are there already, whoever wrote them")
]
OnlyMissing = Annotated[
    bool, Field(description="Leave out archives in which every clip has a description, even if it is not measured")
]
CaptionMissing = Annotated[
    Literal["auto", "none"],
    Field(
        description="auto: describe clips without a description by their audio first, in metadata.jsonl beside the "
        "archives or the file given; none: train on them without a text"
    ),
]
Limit = Annotated[
    int,
    Field(ge=0, le=LARGEST_COUNT, description="Take only the first so many clips, to try it out; 0: all of them"),
    _ZERO_IF_NULL,
]
Output = Annotated[
    _Text, Field(description="Folder for the music; by default a new one under the variable musicgen_output")
]
OnFailedArchives = Annotated[
    Literal["stop", "continue"], Field(description="If some archives can't be read: stop, or continue with the others")
]
MusicPrompts = Annotated[
    Prompts, Field(description="Texts that say what the music should be like; by default a few examples")
]
_ADAPTER = (
    "What a training run has learned: its run directory (the best), a *_lora.pt, a PEFT directory, or USER/NAME on the "
    "Hub"
)
_LAST = "the best of the training completed last under the variable musicgen_runs"


_MIXED = "; with a strength, such as runs/first:0.7; several are mixed"
_SPLIT = BeforeValidator(lambda given: split_adapters(given) if given is None or isinstance(given, str) else given)
_AS_TEXT = WithJsonSchema({"type": "string"})
"""In the run form one text, as deployments of earlier versions and their parameters have it"""


@dataclass(frozen=True)
class Places:
    """Marks a list of locations, for which shells complete file names."""


Adapters = Annotated[
    tuple[str, ...],
    Places(),
    _SPLIT,
    _AS_TEXT,
    Field(description=f"{_ADAPTER}{_MIXED}. Default: {_LAST}", json_schema_extra={"default": ""}),
]
AdaptersOrBase = Annotated[
    tuple[str, ...],
    Places(),
    _SPLIT,
    _AS_TEXT,
    Field(
        description=f"{_ADAPTER}{_MIXED}; or base, the base model alone. Default: base (deployments: {_LAST})",
        json_schema_extra={"default": ""},
    ),
]
LoadedAdapters = Annotated[
    tuple[str, ...],
    Places(),
    _SPLIT,
    _AS_TEXT,
    Field(description=f"{_ADAPTER}{_MIXED}. Their strengths can be changed", json_schema_extra={"default": ""}),
]
Strengths = Annotated[
    tuple[Annotated[float, Field(ge=-1000, le=1000)], ...],
    BeforeValidator(lambda given: () if given is None else names_in(given)),
    Field(
        description="Also compare strengths: each sample with each of these factors of the adapters' strengths, from "
        "the same seed, side by side on the page, such as 0,0.5,1; 0 is the base model"
    ),
]
Report = Annotated[
    _Text,
    Field(description="Folder for the report; by default evaluation in the adapter's run directory, or beside it"),
]
PromptsFile = Annotated[
    _Text,
    Field(
        description="A text file with a prompt a line; or a .jsonl of objects with prompt and, if wanted, duration, "
        "seed, negative_prompt, tempo, key, instruments, sections, best_of, loop, continue_from, redo, melody "
        "and adapter"
    ),
]
Variations = Annotated[int, Field(ge=1, le=10_000, description="Samples of each prompt, all of them different")]
ContinueFrom = Annotated[_Text, Field(description="A recording that the samples continue; the duration includes it")]
Melody = Annotated[
    _Text,
    Field(description="A recording whose melody the samples follow, with a model such as facebook/musicgen-melody"),
]
SeparateFollowed = Annotated[
    bool,
    Field(
        description="Take the melody without drums and bass, which Demucs separates: as melody models were trained. "
        "Needs the extra vocals"
    ),
]
Compare = Annotated[
    bool, Field(description="Also generate each sample with the base model, from the same seed, to hear the difference")
]
SampledClips = Annotated[int, Field(ge=1, le=LARGEST_COUNT, description="Clips to try, from at most 4 of the archives")]
HourlyPrice = Annotated[
    float,
    Field(ge=0, le=1e12, description="Price of this machine an hour, to show the cost; 0: no cost is shown"),
    _ZERO_IF_NULL,
]
ExportFormat = Annotated[
    Literal["peft", "audiocraft", "huggingface"],
    Field(
        description="peft: the adapter alone, for PeftModel.from_pretrained on Hugging Face's "
        "MusicgenForConditionalGeneration (of melody models: MusicgenMelodyForConditionalGeneration). audiocraft: base "
        "and adapter merged, for MusicGen.get_pretrained. huggingface: the same, for that class's from_pretrained"
    ),
]
ExportOut = Annotated[
    _Text,
    Field(
        description="Folder or URL to write; nothing may be there yet; by default a new one under the "
        "variable musicgen_output"
    ),
]
PushTo = Annotated[
    _Text,
    Field(
        description="USER/NAME on the Hugging Face Hub, where the export is pushed: a new repository, or one with an "
        "earlier export of the same format; needs an HF_TOKEN with write access. Default: it is not pushed"
    ),
]
Public = Annotated[bool, Field(description="Make a new repository public. By default it is private")]
