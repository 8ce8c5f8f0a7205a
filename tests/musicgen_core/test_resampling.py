"""The GPU's resampler, on the CPU."""

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.codec import MAX_TAPS, Resampler, resampler_of

RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 88_200, 96_000, 192_000]
RESAMPLERS = {rate: Resampler(rate) for rate in RATES}
TORCHAUDIO = {
    rate: torchaudio.transforms.Resample(
        rate,
        32_000,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        beta=14.769656459379492,
    )
    for rate in RATES
}


@settings(max_examples=60)
@given(rate=st.sampled_from(RATES), samples=st.integers(1, 5_000), seed=st.integers(0, 99))
def test_the_output_equals_torchaudios(rate: int, samples: int, seed: int) -> None:
    wav = torch.randn(2, samples, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(RESAMPLERS[rate](wav), TORCHAUDIO[rate](wav), atol=2e-5, rtol=0)


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_its_pitch_and_its_loudness(rate: int) -> None:
    seconds = torch.arange(rate) / rate
    resampled = RESAMPLERS[rate](torch.sin(2 * torch.pi * 440 * seconds)[None])[0]
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(32_000) / 32_000)
    assert (resampled - expected)[1_000:-1_000].abs().max() < 1e-3


def test_the_cpu_and_rates_with_huge_filters_do_without_it() -> None:
    assert resampler_of(44_100, torch.device("cpu")) is None
    assert 44_101 * 32_000 > MAX_TAPS
    assert resampler_of(44_101, torch.device("cuda")) is None
    assert resampler_of(32_000, torch.device("cuda")) is None
