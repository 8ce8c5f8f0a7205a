"""What an evaluation is asked for, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from musicgen_core.config import DEFAULT_MODEL, LARGEST_COUNT, Prompts
from musicgen_core.language import message
from musicgen_core.settings import Settings
from musicgen_core.wording import counted

MOST_CLIPS = 500
ENOUGH_CLIPS = 8
"""Of fewer clips no claim is made without a caveat, and no distribution is drawn"""


class JudgingSettings(Settings):
    """Clips to compute losses on."""

    model_config = ConfigDict(title="Held-out clips")

    max_clips: int = Field(
        MOST_CLIPS,
        ge=1,
        le=LARGEST_COUNT,
        description="Clips to test on at most, always the same ones",
    )
    validation_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the clips to test on; by default as in the adapter's training, or 0.05. "
        "Clips that the adapter has learned from are left out",
    )
    segment_seconds: float | None = Field(
        None, ge=0.2, le=30, description="Seconds of each clip; by default as in the adapter's training, or 30"
    )


class ClapSettings(Settings):
    """CLAP score and Fréchet audio distance, of music that is rendered for them."""

    model_config = ConfigDict(title="CLAP")

    clap_weights: str | None = Field(
        None,
        description="A CLAP model, which judges how well music fits its text: a directory in Hugging "
        "Face's format or an id such as laion/larger_clap_music. Gives the CLAP score and the "
        "Fréchet audio distance",
    )
    clap_clips: int = Field(
        64,
        ge=2,
        le=LARGEST_COUNT,
        description="Clips from whose descriptions both models make music for these two",
    )


ReportPrompts = Annotated[
    Prompts, Field(description="Texts to make music from with both models, to hear in the report")
]
PieceDuration = Annotated[float, Field(gt=0, le=30, description="Length of each of these pieces in seconds")]
PieceSeed = Annotated[
    int, Field(ge=0, lt=2**32, description="Number that fixes everything random: the same one gives the same music")
]


class EvaluateSettings(JudgingSettings, ClapSettings):
    """What to compare, and on how much."""

    prompts: ReportPrompts = ()
    duration: PieceDuration = 10.0
    seed: PieceSeed = 0


@dataclass(frozen=True)
class EvaluateRequest:
    """Which adapter to compare with the base model, on what.

    Attributes:
        tokens: a directory of shards.
        adapter: a `*_lora.pt`, a run directory (its best), a PEFT directory, or `USER/NAME` on the Hugging Face Hub.
        model: `demo`, `debug`, a directory or a Hugging Face id; None: the base model of the adapter.
        output: where the report goes; None: to the run directory that the adapter is of, else beside it.
        device: auto, cpu or cuda.
        default_model: the base model of an adapter that names none.
    """

    tokens: str
    adapter: str
    model: str | None = None
    output: str | None = None
    device: str = "auto"
    settings: EvaluateSettings = field(default_factory=EvaluateSettings)
    default_model: str = DEFAULT_MODEL


@dataclass(frozen=True)
class Comparison:
    """Mean losses of both models over the same clips, in nats per code.

    Attributes:
        base_perplexity, adapter_perplexity: exp of the losses.
        difference: adapter − base; below 0 the adapter is better.
        standard_error: of the difference, over clips; None with a single one.
    """

    base_loss: float
    adapter_loss: float
    base_perplexity: float
    adapter_perplexity: float
    difference: float
    standard_error: float | None


@dataclass(frozen=True)
class MusicScores:
    """What CLAP says of music rendered from the descriptions of validation clips, and of the clips themselves.

    Attributes:
        clap_weights: what computed them.
        clips: of each kind.
        clips_clap_score: mean cosine of a clip's and its description's embedding, about the best to be expected;
        base_clap_score, adapter_clap_score: the same of the music rendered from the descriptions.
        base_frechet_distance, adapter_frechet_distance: of that music to the clips, in CLAP's embeddings.
    """

    clap_weights: str
    clips: int
    seconds: float
    clips_clap_score: float
    base_clap_score: float
    adapter_clap_score: float
    base_frechet_distance: float
    adapter_frechet_distance: float


@dataclass(frozen=True)
class EvaluatedAdapter:
    """Which weights were evaluated."""

    path: str
    sha256: str
    epoch: int
    global_step: int


@dataclass(frozen=True)
class Evaluation:
    """The content of `evaluation.json`.

    Attributes:
        base_model: an id with a hash of the weights.
        validation_fraction: the share of clips that is held out.
        validation_clips: held out of `tokens`.
        is_held_out: whether it is known that the adapter has not learned from the clips.
        clips, codes: of these, the clips that were evaluated, and their codes.
        segment_seconds: from the beginning of each clip.
        loss: over all codebooks.
        codebooks: the same of each.
        interval: within which the difference is with 95 % confidence; None with a single clip.
        verdict: better or worse where the interval leaves out 0; better only on clips that are held out.
        music: with CLAP weights.
        remarks: what to know of the numbers, in sentences.
        report: the page.
    """

    adapter: EvaluatedAdapter
    base_model: str
    tokens: str
    validation_fraction: float
    validation_clips: int
    is_held_out: bool
    clips: int
    codes: int
    segment_seconds: float
    loss: Comparison
    codebooks: list[Comparison]
    interval: tuple[float, float] | None
    verdict: Literal["better", "worse", "undecided"]
    music: MusicScores | None
    remarks: list[str]
    report: str

    def sentence(self) -> str:
        """Return the result in words."""
        if self.is_held_out:
            clips = counted(self.clips, "validation clip")
        else:
            clips = message("{clips} that the adapter may have learned from", clips=counted(self.clips, "clip"))
        loss = self.loss
        counts = message(
            "loss {base:.4f} → {adapter:.4f} on {clips}", base=loss.base_loss, adapter=loss.adapter_loss, clips=clips
        )
        if self.interval is None:
            return message("One clip can't tell whether the adapter is better: {counts}.", counts=counts)
        low, high = self.interval
        claim = {
            "better": message("The adapter is better than the base model"),
            "worse": message("The adapter is worse than the base model"),
            "undecided": message("No difference between adapter and base model can be told"),
        }[self.verdict]
        if self.clips < ENOUGH_CLIPS:
            claim = message("{claim} on these clips, but so few prove little", claim=claim)
        if not self.is_held_out and high < 0:
            claim = message("Whether the adapter is better is not known")
        return message(
            "{claim}: {counts}, a change of {difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f}).",
            claim=claim,
            counts=counts,
            difference=loss.difference,
            low=low,
            high=high,
        )
