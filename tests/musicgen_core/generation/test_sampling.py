from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from musicgen_core.config import SamplingSettings
from musicgen_core.generation.sampling import guide, sample

CODES = 16
seeds = st.integers(0, 2**31)
LAST = 1 - 2**-24  # the largest draw there is


def logits_of(seed: int, spread: float = 2.0) -> Tensor:
    """[2, 4, 16]; rounded, so that there are ties."""
    return (spread * torch.randn(2, 4, CODES, generator=torch.Generator().manual_seed(seed))).round(decimals=1)


def draws_of(seed: int, count: int) -> Tensor:
    """[count] draws on [0, 1), both ends among them."""
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return torch.cat([draws[2:], torch.tensor([0.0, LAST])])


def chosen_from(logits: Tensor, settings: SamplingSettings, draws: Tensor) -> Tensor:
    """One choice a draw from the same logits [..., codes] → [draws, ...]."""
    return sample(
        logits.expand(len(draws), *logits.shape), settings, draws.view(-1, 1, 1).expand(-1, *logits.shape[:-1])
    )


@given(seeds, seeds, st.integers(1, CODES + 5), st.floats(0.1, 10))
def test_top_k_picks_among_the_k_likeliest(seed: int, noise: int, k: int, temperature: float) -> None:
    logits = logits_of(seed)
    chosen = chosen_from(logits, SamplingSettings(top_k=k, temperature=temperature), draws_of(noise, 64))
    kth_best = logits.sort(dim=-1, descending=True).values[..., min(k, CODES) - 1]
    assert (logits.expand(64, -1, -1, -1).gather(-1, chosen[..., None])[..., 0] >= kth_best).all()


@given(seeds, seeds, st.floats(0.01, 1))
def test_top_p_picks_a_code_only_while_likelier_ones_hold_less_than_p(seed: int, noise: int, p: float) -> None:
    logits = logits_of(seed)
    probabilities = logits.softmax(dim=-1)
    chosen = chosen_from(logits, SamplingSettings(top_p=p, top_k=1), draws_of(noise, 64))
    own = probabilities.expand(64, -1, -1, -1).gather(-1, chosen[..., None])
    mass_of_likelier = (probabilities * (probabilities > own)).sum(dim=-1)
    assert (mass_of_likelier <= p + 1e-5).all()


@given(seeds, st.sampled_from([{"top_k": 0}, {"top_k": 5}, {"top_k": 0, "top_p": 0.6}]))
def test_the_likeliest_code_comes_first_and_any_kept_code_can_come(seed: int, how: dict[str, float]) -> None:
    logits, settings = logits_of(seed), SamplingSettings(**how)
    evenly = torch.linspace(0, LAST, 4001)
    chosen = chosen_from(logits, settings, evenly)
    probability = logits.softmax(dim=-1).expand(len(evenly), -1, -1, -1).gather(-1, chosen[..., None])[..., 0]
    assert (probability.diff(dim=0) <= 1e-7).all()  # draws go from the likeliest code to the least likely
    assert torch.equal(probability[0], logits.softmax(dim=-1).amax(dim=-1))


@given(seeds, seeds)
def test_a_draw_is_independent_of_the_batch(seed: int, noise: int) -> None:
    logits, draws = logits_of(seed), torch.rand(2, 4, generator=torch.Generator().manual_seed(noise))
    for settings in (SamplingSettings(top_k=5), SamplingSettings(top_p=0.7), SamplingSettings(top_k=0)):
        together = sample(logits, settings, draws)
        assert torch.equal(sample(logits[1:], settings, draws[1:]), together[1:])
        assert torch.equal(sample(logits.flip(0), settings, draws.flip(0)), together.flip(0))


@given(seeds, seeds)
def test_greedy_takes_the_likeliest_whatever_the_draw(seed: int, noise: int) -> None:
    logits = logits_of(seed)
    chosen = chosen_from(logits, SamplingSettings(greedy=True), draws_of(noise, 8))
    assert torch.equal(chosen, logits.argmax(dim=-1).expand(8, -1, -1))


@given(seeds, seeds)
def test_a_temperature_near_zero_is_greedy(seed: int, noise: int) -> None:
    logits = logits_of(seed) + torch.linspace(0, 1e-2, CODES)  # no ties
    chosen = chosen_from(logits, SamplingSettings(temperature=1e-5, top_k=0), draws_of(noise, 8))
    assert torch.equal(chosen, logits.argmax(dim=-1).expand(8, -1, -1))


@pytest.mark.parametrize(
    ("how", "kept"), [({"top_k": 0}, 6), ({"top_k": 3}, 3), ({"top_k": 9}, 6), ({"top_k": 0, "top_p": 0.7}, 2)]
)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_codes_come_as_often_as_their_probability_says(how: dict[str, float], kept: int, temperature: float) -> None:
    weights = np.array([0.05, 0.3, 0.02, 0.45, 0.08, 0.1]) ** temperature  # temperature then gives these back
    draws = 40_000
    noise = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor(weights).log().float().expand(draws, -1)
    found = np.bincount(sample(logits, SamplingSettings(temperature=temperature, **how), noise), minlength=6)

    expected = np.array([0.05, 0.3, 0.02, 0.45, 0.08, 0.1])
    expected[np.argsort(-expected)[kept:]] = 0
    assert (found[expected == 0] == 0).all()
    expected *= draws / expected.sum()
    chi_square = ((found - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    assert chi_square < 20.5  # 0.999 quantile for 5 degrees of freedom; fewer have less


@given(seeds, st.floats(0, 10))
def test_guidance_goes_from_no_text_through_the_text_and_beyond(seed: int, coefficient: float) -> None:
    conditional, unconditional = logits_of(seed).double(), logits_of(seed + 1).double()
    guided = guide(conditional, unconditional, coefficient)
    torch.testing.assert_close(guided, coefficient * conditional + (1 - coefficient) * unconditional)
    assert torch.equal(guide(conditional, unconditional, 0), unconditional)
