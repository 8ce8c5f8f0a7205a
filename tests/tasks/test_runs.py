"""Names of task runs."""

from __future__ import annotations

import pytest
from prefect import runtime

from tasks.runs import counted_name


@pytest.mark.parametrize(
    ("count", "name"), [(1, "render-1-prompt"), (2, "render-2-prompts"), (1000, "render-1000-prompts")]
)
def test_a_task_that_counts_is_named_in_the_right_number(
    count: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.task_run, "parameters", {"count": count}, raising=False)
    assert counted_name("render", "count", "prompt")() == name
