"""The queue: several people, cancelling, failures; nothing is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch

from deployments.studio import jobs
from deployments.studio.jobs import Studio
from musicgen_core.errors import ModelError
from tests.studio_site import Site


def test_clicks_at_the_same_time_are_made_one_after_the_other(site: Site) -> None:
    with ThreadPoolExecutor(5) as people:
        ids = list(people.map(lambda number: site.make(prompt=f"number {number}", seed=number), range(5)))
    ended = [site.wait(id) for id in ids]
    assert [job["state"] for job in ended] == ["done"] * 5
    assert len({stem for job in ended for stem in job["pieces"]}) == 5
    times = sorted((job.begun, job.ended) for job in site.served.studio.jobs() if job.id in ids)
    assert all(one[1] <= other[0] for one, other in pairwise(times))  # type: ignore[operator]


def test_the_place_in_the_queue_is_shown_and_a_waiting_job_is_cancelled(site: Site) -> None:
    first, second, third = (site.make(prompt=name, duration=30) for name in ("first", "second", "third"))
    assert [site.job(id)["place"] for id in (second, third)] == [1, 2]
    assert site.client.delete(f"/api/jobs/{second}").status_code == 204
    assert (site.job(second)["state"], site.job(third)["place"]) == ("cancelled", 1)
    for id in (third, first):
        site.client.delete(f"/api/jobs/{id}")
        assert site.wait(id)["state"] == "cancelled"
    assert site.wait(site.make(prompt="after"))["state"] == "done"
    assert site.client.delete("/api/jobs/0123").status_code == 404


def test_a_listener_that_leaves_loses_no_piece(site: Site) -> None:
    id = site.make(prompt="left", duration=5)
    with site.client.stream("GET", f"/api/jobs/{id}/sound") as answer:
        next(answer.iter_bytes())
    assert site.wait(id)["state"] == "done"


@pytest.mark.parametrize("error", [RuntimeError("a mistake"), torch.OutOfMemoryError("full"), OSError(28, "No space")])
def test_after_a_failure_the_next_one_is_made(site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(jobs, "render_with", fail)
        failed = site.wait(site.make(prompt="failing"))
    assert failed["state"] == "failed" and failed["error"]
    assert site.wait(site.make(prompt="next"))["state"] == "done"


def test_too_many_waiting_jobs_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST_WAITING", 1)
    ids = [site.make(prompt="long", duration=30)]
    site.wait(ids[0], ("waiting",))
    ids.append(site.make(prompt="waiting"))
    answer = site.client.post("/api/jobs", json={"prompt": "one more"})
    assert (answer.status_code, answer.json()["error"]) == (422, "1 requests are waiting already. Try again later")
    for id in reversed(ids):
        site.client.delete(f"/api/jobs/{id}")
        site.wait(id)


def test_only_the_newest_jobs_keep_their_sound_in_memory(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "KEPT_SOUNDS", 1)
    ids = [site.make(prompt=name, seed=1) for name in ("one", "two", "three")]
    assert {site.wait(id)["state"] for id in ids} == {"done"}
    sizes = [len(site.client.get(f"/api/jobs/{id}/sound").content) for id in ids]
    assert sizes[:2] == [0, 0] and sizes[2] == 2 * 16_000
    assert sum(bool(job.sound) for job in site.served.studio.jobs()) == 1


def test_a_model_that_cannot_be_loaded_is_reported() -> None:
    def load() -> Any:
        raise ModelError("there is no model", "Give another")

    studio = Studio(load)
    studio.start()
    assert studio.is_ready.wait(60)
    assert (studio.failure, str(studio.error)) == ("there is no model. Give another",) * 2
    studio.stop()
