"""Request, settings and result of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from musicgen_core.config import DEFAULT_MODEL, Prompts
from musicgen_core.evaluation.originality import Originality
from musicgen_core.language import message
from musicgen_core.settings import LARGEST_COUNT, Settings
from musicgen_core.wording import counted

MOST_CLIPS = 500
ENOUGH_CLIPS = 8
"""With fewer clips, results carry a caveat and no distribution is drawn"""


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


class OriginalitySettings(Settings):
    """Comparison of generated samples with training clips and held-out clips."""

    model_config = ConfigDict(title="Copying and repetition")

    samples: int | None = Field(
        None,
        ge=0,
        le=LARGEST_COUNT,
        description="Held-out clips from whose descriptions both models make a sample each, to compare these with "
        "training clips: 0 turns the comparison off; by default 32 on a GPU and 8 on a CPU",
    )


ReportPrompts = Annotated[
    Prompts, Field(description="Texts to make music from with both models, to hear in the report")
]
PieceDuration = Annotated[float, Field(gt=0, le=30, description="Length of each of these samples in seconds")]
PieceSeed = Annotated[
    int, Field(ge=0, lt=2**32, description="Number that fixes everything random: the same one gives the same music")
]


class EvaluateSettings(JudgingSettings, OriginalitySettings, ClapSettings):
    """What to compare, and on how much."""

    prompts: ReportPrompts = ()
    duration: PieceDuration = 10.0
    seed: PieceSeed = 0


@dataclass(frozen=True)
class EvaluateRequest:
    """Request for an evaluation.

    Attributes:
        tokens: a directory of shards.
        adapter: a `*_lora.pt`, a run directory (its best), a PEFT directory, or `USER/NAME` on the Hugging Face Hub.
        model: `demo`, `debug`, a directory or a Hugging Face id; None: the adapter's base model.
        output: directory of the report; None: the adapter's run directory, or else beside the adapter.
        device: auto, cpu or cuda.
        default_model: base model for adapters that name none.
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
        base_perplexity: exp of the base model's loss.
        adapter_perplexity: exp of the adapter's loss.
        difference: adapter − base; below 0 the adapter is better.
        standard_error: standard error of the difference over clips; None with a single clip.
    """

    base_loss: float
    adapter_loss: float
    base_perplexity: float
    adapter_perplexity: float
    difference: float
    standard_error: float | None


@dataclass(frozen=True)
class MusicScores:
    """CLAP scores of validation clips and of music rendered from their descriptions.

    Attributes:
        clap_weights: the CLAP weights.
        clips: number of clips of each kind.
        clips_clap_score: mean cosine of a clip's and its description's embedding, about the best to be expected.
        base_clap_score: the same for music of the base model.
        adapter_clap_score: the same for music of the adapter.
        base_frechet_distance: Fréchet distance of the base model's music to the clips, in CLAP's embeddings.
        adapter_frechet_distance: the same for music of the adapter.
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
    """Identification of the evaluated weights."""

    path: str
    sha256: str
    epoch: int
    global_step: int


@dataclass(frozen=True)
class Evaluation:
    """Content of `evaluation.json`.

    Attributes:
        base_model: id with a hash of the weights.
        validation_fraction: share of clips that is held out.
        validation_clips: number of held-out clips in `tokens`.
        is_held_out: whether it is known that the adapter wasn't trained on the clips.
        clips: number of these clips that were evaluated.
        codes: number of their codes.
        segment_seconds: seconds used from the beginning of each clip.
        loss: comparison over all codebooks.
        codebooks: comparison for each codebook.
        interval: 95 % confidence interval of the difference; None with a single clip.
        verdict: better or worse if the interval excludes 0; better only on held-out clips.
        music: scores of music, if CLAP weights were given.
        remarks: remarks on the numbers, in sentences.
        report: path of the report.
        originality: samples beside training clips; None if there are none, and in files of earlier versions.
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
    originality: Originality | None = None

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
            "undecided": message("No significant difference between adapter and base model"),
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
