"""Resuming where nothing can be written: it waits for room and changes nothing until then."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from musicgen_core.errors import Cancelled
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.train import train
from tests.fixture_types import KillAfter, LeftIn, MakeRequest
from tests.musicgen_core.training.failing_writes import failing

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
def test_a_resume_on_a_full_disk_waits_for_room(
    name: str,
    request_for: MakeRequest,
    killed_after: KillAfter,
    left_in: LeftIn,
    uninterrupted: tuple[TrainRequest, TrainResult],
    same_weights: Callable[..., None],
) -> None:
    request, waits = request_for(save_every_steps=2), list[str | None]()
    killed_after(request, 3)
    with failing(lambda target, before: target.name == name and not waits):
        result = train(request, on_wait=waits.append)
    reason, end = waits
    assert end is None and reason is not None and f"{name} could not be written (no space left" in reason
    assert result.resumed_from == 3 and any(text.endswith("nothing is lost") for text in result.warnings)
    left, expected = left_in(request.run_dir), left_in(uninterrupted[0].run_dir)
    assert left.files == expected.files and [row["step"] for row in left.rows] == [1, 2, 3, 4, 5, 6]
    same_weights(left.adapter(), expected.adapter())


def test_a_resume_waits_until_the_rest_of_the_run_fits(
    request_for: MakeRequest, killed_after: KillAfter, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, waits, free = request_for(), list[str | None](), [10]
    killed_after(request, 3)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free[0]))

    def wait(reason: str | None) -> None:
        waits.append(reason)
        free[0] = 10**12

    result = train(request, on_wait=wait)
    reason, end = waits
    assert end is None and reason is not None and "where 10 bytes are free" in reason and "--keep-last 1" in reason
    assert result.steps == 6 and result.resumed_from == 3


def test_a_resume_that_waits_can_be_cancelled_and_changes_nothing(
    request_for: MakeRequest, killed_after: KillAfter, left_in: LeftIn
) -> None:
    request, waits = request_for(), list[str | None]()
    killed_after(request, 4)
    before = left_in(request.run_dir).contents
    with failing(lambda target, before: target.name == "config.json"), pytest.raises(Cancelled, match="after step 4"):
        train(request, cancelled=lambda: bool(waits), on_wait=waits.append)
    after = left_in(request.run_dir).contents
    assert {name: after[name] for name in before if name != "metrics.jsonl"} == {
        name: content for name, content in before.items() if name != "metrics.jsonl"
    }
    assert train(request).resumed_from == 4
