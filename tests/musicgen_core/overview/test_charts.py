"""Histograms of any values fit their picture."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.overview.charts import HEIGHT, MOST_BINS, WIDTH, histogram


def test_bins_count_the_values() -> None:
    found = histogram([60.0, 61.0, 64.9, 65.0, 118.0], 5.0)
    assert found is not None
    assert [(bar.label, bar.count) for bar in found.bars] == [("60–65", 3), ("65–70", 1), ("115–120", 1)]
    assert (found.most, found.count, found.lowest, found.highest, found.middle) == (3, 5, 60.0, 118.0, 64.9)
    assert [text for _, text in found.ticks] == ["60", "70", "80", "90", "100", "110", "120"]
    assert histogram([], 5.0) is None


@given(st.lists(st.floats(-200, 1e6), min_size=1, max_size=50), st.sampled_from([0.5, 1.0, 5.0]))
def test_any_values_fit_the_picture(values: list[float], step: float) -> None:
    found = histogram(values, step)
    assert found is not None
    assert sum(bar.count for bar in found.bars) == len(values) and len(found.bars) <= MOST_BINS
    assert all(0 <= bar.x and bar.x + bar.width <= WIDTH + 0.1 and 0 < bar.height <= HEIGHT for bar in found.bars)
    assert 1 <= len(found.ticks) <= 10 and all(-0.1 <= x <= WIDTH + 0.1 for x, _ in found.ticks)
