"""LoRA's dropout has the statistics of random masks, and is reproducible."""

from __future__ import annotations

import pytest
import torch

from musicgen_core.training.compute.dropout import clip_seeds, drop, keep, row_seeds

ROWS, WIDTH = 256, 512


def masks(clips: list[int], epoch: int = 1, streams: int = 1, p: float = 0.1) -> torch.Tensor:
    """[streams, B, ROWS, WIDTH], fp64."""
    seeds = row_seeds(clip_seeds(0, epoch, clips), ROWS, streams)
    return keep(seeds.flatten(), WIDTH, p).view(streams, len(clips), ROWS, WIDTH).double()


@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_each_activation_is_dropped_with_the_probability_asked_for(p: float) -> None:
    kept = masks([1, 2, 3, 4], p=p)
    count = kept.numel()
    assert kept.mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / count) ** 0.5 + 1e-12)


def test_no_row_and_no_column_is_dropped_more_than_chance_explains() -> None:
    kept = masks([1], p=0.5)[0, 0]
    for along in (0, 1):
        share = kept.mean(dim=along)
        z = (share - 0.5) * 2 * kept.shape[along] ** 0.5
        assert z.abs().max() < 5
        assert z.std() == pytest.approx(1, abs=0.2)


def test_masks_of_rows_columns_streams_clips_epochs_are_independent() -> None:
    own = masks([1, 2], streams=2, p=0.5) - 0.5
    later = masks([1, 2], epoch=2, streams=2, p=0.5) - 0.5
    one = own[0, 0]
    others = [own[1, 0], own[0, 1], later[0, 0], one.roll(1, 0), one.roll(1, 1), one.roll(ROWS // 2, 0), one.flip(0)]
    for other in others:
        correlation = (one * other).mean() * 4
        assert abs(correlation) < 5 / one.numel() ** 0.5


def test_rows_are_pairwise_uncorrelated() -> None:
    own = (masks([7], p=0.5)[0, 0] - 0.5) * 2
    correlation = own @ own.T / WIDTH - torch.eye(ROWS)
    assert correlation.abs().max() < 6.5 / WIDTH**0.5
    assert correlation.std() == pytest.approx(WIDTH**-0.5, rel=0.1)


def test_a_clip_has_the_same_mask_whatever_it_is_batched_with() -> None:
    assert torch.equal(masks([5])[:, 0], masks([3, 5, 9])[:, 1])


def test_a_longer_clip_has_the_mask_of_a_shorter_one_at_its_start() -> None:
    seeds = clip_seeds(0, 1, [5])
    assert torch.equal(row_seeds(seeds, 10, 3), row_seeds(seeds, 25, 3)[:, :10])


def test_what_stays_is_scaled_so_that_the_mean_is_kept() -> None:
    seeds = row_seeds(clip_seeds(0, 1, [1]), ROWS, 1)[0]
    dropped = drop(torch.ones(ROWS, WIDTH, dtype=torch.float64), seeds, 0.25)
    assert set(dropped.unique().tolist()) == {0.0, 1 / 0.75}
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
