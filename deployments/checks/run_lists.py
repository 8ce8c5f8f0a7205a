"""Check for runs that make the Prefect server answer every list of runs with status 500, as its UI requests them.

An integer of more than 64 bits among a run's parameters does that. This project refuses such numbers; Prefect doesn't.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx

from deployments.checks.finding import Finding
from musicgen_core.language import message
from musicgen_core.wording import named

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

NEWEST = {"sort": "EXPECTED_START_TIME_DESC", "limit": 200}
"""The runs that are looked at, as many as the server lists in one answer"""
SHOWN = 5
RUNS = message("runs")


def check_run_lists(client: SyncPrefectClient) -> list[Finding]:
    """Name the newest runs that can't be listed, with the commands that delete them. No finding if all can be."""
    if _can_list(client, NEWEST):
        return []
    newest = client.request("POST", "/ui/flow_runs/history", json=NEWEST).json()  # without their parameters
    broken = _unlistable(client, [str(run["id"]) for run in newest])
    if not broken:
        found = message("the server can't list its runs (HTTP 500)")
        return [Finding(RUNS, "problem", found, message("Its log names the error"))]
    deleting = [f"uv run prefect flow-run delete {run}" for run in broken[:SHOWN]]
    return [
        Finding(
            RUNS,
            "problem",
            message(
                "the server can't list runs, in the UI either (HTTP 500), because of {runs}: a parameter may be an "
                "integer over 64 bits",
                runs=named(broken),
            ),
            " && ".join([f"export PREFECT_API_URL={client.api_url}", *deleting]),
        )
    ]


def _unlistable(client: SyncPrefectClient, ids: Sequence[str]) -> list[str]:
    """Return the runs that break a list, found by bisection."""
    if not ids or _can_list(client, {"flow_runs": {"id": {"any_": list(ids)}}}):
        return []
    if len(ids) == 1:
        return list(ids)
    middle = len(ids) // 2
    return _unlistable(client, ids[:middle]) + _unlistable(client, ids[middle:])


def _can_list(client: SyncPrefectClient, chosen: Mapping[str, Any]) -> bool:
    try:
        # The server closes a connection after status 500, so each request opens a new one.
        client.request("POST", "/flow_runs/filter", json=chosen, headers={"Connection": "close"})
    except httpx.HTTPStatusError as error:
        if error.response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
            return False
        raise
    return True
