"""End-to-end proof that fine-tuning teaches a new style and keeps the old ones, judged from the generated audio.

The real flows tokenize archives of a style that is new to the base model, train an adapter, and generate with and
without it from the same seeds. A classifier of spectra and rhythms recognizes the pieces. It is fitted to synthesized
clips, independent of the models, and shares no clips with the training data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from demo_model.measure import PROMPT_SEED, compose_each, fit_judge
from flows.finetune import finetune
from flows.generate_music import generate_music
from musicgen_core.codec import Codec
from musicgen_core.demo_data import NEW_STYLE, make_demo_archives
from musicgen_core.generation.request import Rendered
from musicgen_core.model.weights import find_model
from musicgen_core.synthesis.composing import compose_many
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.synthesis.styles import STYLES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(3600)]

ON: dict[str, Any] = {"model": "demo", "device": "cpu"}
RECOMMENDED: dict[str, Any] = {
    "learning_rate": 1e-4,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "segment_seconds": 6.0,
    "prior_preservation": 0.5,
}
"""The default learning rate, and the prior preservation of the README's best practices."""
STEPS = 125
PRIOR_SEED = 110_000_000
CLIPS_OF_NEW_STYLE, CLIPS_OF_EACH_OLD_STYLE = 12, 2
SECONDS = 8.0
REFERENCES_OF_EACH_STYLE = 30


@dataclass(frozen=True)
class Heard:
    """Shares of clips recognized as the style that their prompt asks for."""

    new_style: float
    old_styles: float


@pytest.fixture(scope="module")
def heard(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Heard]:
    """Return the shares for the base model's music (False) and the adapter's (True)."""
    folder = tmp_path_factory.mktemp("heard")
    make_demo_archives(folder / "archives")
    general = folder / "general.txt"
    captions = [clip.caption for clip in compose_each(STYLES, 6, PRIOR_SEED)]
    general.write_text("\n".join(captions) + "\n", encoding="utf-8")
    new = compose_many(CLIPS_OF_NEW_STYLE, PROMPT_SEED, NEW_STYLE)
    old = compose_each(STYLES, CLIPS_OF_EACH_OLD_STYLE, PROMPT_SEED)
    prompts = [clip.caption for clip in [*new, *old]]
    finetune(
        archives=str(folder / "archives"),
        tokens=str(folder / "tokens"),
        run_dir=str(folder / "run"),
        output=str(folder / "one"),
        prompts=prompts[:1],
        duration=1.0,
        evaluate=False,
        full_models="none",
        num_epochs=100,
        max_steps=STEPS,
        prior_prompts=str(general),
        **(RECOMMENDED | ON),
    )
    pieces = generate_music(
        output=str(folder / "music"),
        prompts=prompts,
        adapter=str(folder / "run" / "lora_weights" / "final_lora.pt"),
        compare=True,
        duration=SECONDS,
        batch_size=len(prompts),
        spectrograms=False,
        **ON,
    )
    judge = fit_judge(SoundBank(), Codec(find_model("demo"), torch.device("cpu")), REFERENCES_OF_EACH_STYLE)
    asked = [clip.truth.style for clip in [*new, *old]]
    of_voice = {}
    for with_adapter in (False, True):
        sounds_like = judge.styles(_audio(pieces, with_adapter))
        right = [style == wanted for style, wanted in zip(sounds_like, asked, strict=True)]
        of_voice[with_adapter] = Heard(_share(right[: len(new)]), _share(right[len(new) :]))
    return of_voice


def _audio(pieces: list[Rendered], with_adapter: bool) -> torch.Tensor:
    """Return the pieces of one voice in the order of their prompts, [B, samples]."""
    chosen = sorted((piece for piece in pieces if piece.with_adapter == with_adapter), key=lambda p: p.prompt_number)
    return torch.stack([torch.from_numpy(soundfile.read(Path(piece.wav), dtype="float32")[0]) for piece in chosen])


def _share(right: list[bool]) -> float:
    return sum(right) / len(right)


def test_the_base_model_does_not_play_an_unknown_style(heard: dict[bool, Heard]) -> None:
    assert heard[False].new_style <= 0.1


def test_with_the_adapter_the_trigger_word_calls_the_new_style(heard: dict[bool, Heard]) -> None:
    assert heard[True].new_style >= 0.9


def test_with_the_adapter_old_styles_still_follow_their_prompts(heard: dict[bool, Heard]) -> None:
    assert heard[False].old_styles >= 0.9  # of the base model, else nothing could be kept
    assert heard[True].old_styles >= 0.8
