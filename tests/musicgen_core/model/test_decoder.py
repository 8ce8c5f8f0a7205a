"""The decoder against stock audiocraft's LMModel, the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.model.audiocraft_format import from_audiocraft
from musicgen_core.model.configuration import read_lm_config
from musicgen_core.model.decoder import MusicgenLM, delay, teacher_forcing
from musicgen_core.model.text import TextEncoder
from musicgen_core.training.compute.losses import clip_losses

FRAMES = 12
PROMPTS = ["slow piano", "a fast breakbeat with a distorted bass line, 174 bpm", "bells"]


def random_codes(batch: int) -> Tensor:
    return torch.randint(2048, (batch, 4, FRAMES), generator=torch.Generator().manual_seed(batch))


@torch.inference_mode()
def audiocraft_predictions(audiocraft_lm: Any, codes: Tensor, prompts: list[str | None]) -> tuple[Tensor, Tensor]:
    """Each clip alone, as audiocraft's prompts change with the texts beside them → logits and mask, by frames."""
    conditioners = import_audiocraft("audiocraft.modules.conditioners")
    outputs = [
        audiocraft_lm.compute_predictions(
            codes[i : i + 1], [conditioners.ConditioningAttributes(text={"description": prompt})]
        )
        for i, prompt in enumerate(prompts)
    ]
    return torch.cat([output.logits for output in outputs]), torch.cat([output.mask for output in outputs])


@torch.inference_mode()
def our_predictions(lm: MusicgenLM, text_encoder: TextEncoder, codes: Tensor, prompts: list[str | None]) -> Tensor:
    """All clips in one batch → logits, by steps."""
    inputs, _, _ = teacher_forcing(codes, torch.full((len(codes),), FRAMES), lm.config.codes)
    return lm(inputs, text_encoder.encode(prompts))


def by_frames(logits: Tensor) -> Tensor:
    """Logits by steps → by frames: codebook k's frame t is predicted in step t + k. The ends are garbage."""
    return torch.stack([logits[:, k].roll(-k, dims=1) for k in range(logits.shape[1])], dim=1)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], [None], PROMPTS], ids=["one prompt", "null", "three lengths"])
def test_logits_are_audiocrafts(
    lm: MusicgenLM, text_encoder: TextEncoder, audiocraft_lm: Any, prompts: list[str | None]
) -> None:
    codes = random_codes(len(prompts))
    expected, mask = audiocraft_predictions(audiocraft_lm, codes, prompts)
    logits = by_frames(our_predictions(lm, text_encoder, codes, prompts))
    torch.testing.assert_close(logits[mask], expected[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompts", [PROMPTS[:1], [None], PROMPTS], ids=["one prompt", "null", "three lengths"])
def test_the_loss_is_audiocrafts(
    lm: MusicgenLM, text_encoder: TextEncoder, audiocraft_lm: Any, prompts: list[str | None]
) -> None:
    solver = import_audiocraft("audiocraft.solvers.musicgen").MusicGenSolver
    codes = random_codes(len(prompts))
    logits, mask = audiocraft_predictions(audiocraft_lm, codes, prompts)
    expected, expected_per_codebook = solver._compute_cross_entropy(None, logits, codes, mask)

    _, targets, valid = teacher_forcing(codes, torch.full((len(codes),), FRAMES), lm.config.codes)
    losses = clip_losses(our_predictions(lm, text_encoder, codes, prompts), targets, valid)  # [B, K]
    torch.testing.assert_close(losses.mean(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(losses.mean(dim=0), torch.stack(expected_per_codebook), atol=1e-5, rtol=0)


def test_logits_are_audiocrafts_at_another_shape_too(text_encoder: TextEncoder, other_audiocraft_lm: Any) -> None:
    lm = MusicgenLM(read_lm_config(OmegaConf.to_yaml(other_audiocraft_lm.cfg), "audiocraft").decoder).eval()
    lm.load_state_dict(from_audiocraft(other_audiocraft_lm.state_dict()))
    codes, prompts = random_codes(4), [*PROMPTS, None]
    expected, mask = audiocraft_predictions(other_audiocraft_lm, codes, prompts)
    logits = by_frames(our_predictions(lm, text_encoder, codes, prompts))
    torch.testing.assert_close(logits[mask], expected[mask], atol=1e-5, rtol=0)


def test_the_text_matters(lm: MusicgenLM, text_encoder: TextEncoder) -> None:
    logits = our_predictions(lm, text_encoder, random_codes(1).expand(2, -1, -1), ["slow piano", None])
    assert (logits[0] - logits[1]).abs().max() > 0.01


@torch.inference_mode()
def test_steps_with_a_cache_give_what_the_whole_sequence_gives(lm: MusicgenLM, text_encoder: TextEncoder) -> None:
    text = text_encoder.encode([*PROMPTS, None])
    sequence = delay(random_codes(4), lm.config.codes)
    length = sequence.shape[-1]
    caches, text_mask = lm.new_cache(text, length)
    steps = [lm.step(sequence[..., s : s + 1], caches, text_mask, s) for s in range(length)]
    torch.testing.assert_close(torch.stack(steps, dim=2), lm(sequence, text), atol=1e-5, rtol=0)
