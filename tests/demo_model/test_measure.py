from __future__ import annotations

import math

import torch

from demo_model.measure import Judge
from musicgen_core.synthesis.composing import compose_many
from musicgen_core.synthesis.rendering import SoundBank

STYLES = ("techno", "folk", "theremin")


def test_music_is_judged_by_its_sound() -> None:
    bank = SoundBank()
    clips = [clip for style in STYLES for clip in compose_many(6, 0, style, frames=400)]
    truths = [clip.truth for clip in clips]
    audio = bank.render(clips, 400)
    judge = Judge(truths, audio)
    assert judge.styles(audio) == [truth.style for truth in truths]
    right = judge.measure(audio, truths)
    assert right["style"] == right["drums"] == 1.0
    assert right["tempo"] > 0.85 > 0.5 > right["tempo by chance"]
    assert right["slides"] == 1 / 3
    wrong = judge.measure(audio.roll(6, dims=0), truths)
    assert wrong["style"] == 0 and wrong["in key"] < right["in key"]


def test_unmeasurable_figures_are_nan() -> None:
    clips = compose_many(3, 0, "drums", frames=200)
    audio = SoundBank().render(clips, 200)
    figures = Judge([clip.truth for clip in clips], audio).measure(audio, [clip.truth for clip in clips])
    assert math.isnan(figures["in key"]) and torch.tensor(figures["fréchet"]).isfinite()
