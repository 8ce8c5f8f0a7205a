"""The studio's comparisons of samples, and the votes on them in the folder's `votes.jsonl`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request

from deployments.studio.folder import MusicFolder
from musicgen_core import storage
from musicgen_core.errors import ConfigError
from musicgen_core.generation.page_rows import row_of
from musicgen_core.generation.player import voted_prompt, voted_sample
from musicgen_core.generation.votes import VOTES, Vote, append_vote, described, read_votes
from musicgen_core.language import message
from musicgen_core.settings import validate


def votes_router(folder: MusicFolder, read_json: Callable[[Request], Awaitable[dict[str, Any]]]) -> APIRouter:
    """Return the routes.

    Args:
        read_json: returns a request's body, of limited size.
    """
    router = APIRouter()

    @router.get("/api/comparisons")
    def comparisons() -> Any:
        return folder.comparisons()

    @router.get("/api/votes")
    def votes() -> Any:
        return _tally(folder.path)

    @router.post("/api/votes", status_code=HTTPStatus.CREATED)
    async def vote(request: Request) -> Any:
        line = validate(Vote, await read_json(request), message("the values of the vote"))
        return await anyio.to_thread.run_sync(partial(_record, folder, line))

    return router


def _record(folder: MusicFolder, vote: Vote) -> list[Mapping[str, Any]]:
    """Append a vote on samples of the folder, and return the tally. What the samples were is read from the folder.

    Raises:
        ConfigError: a sample isn't in the folder, or the two differ in more than their adapters.
    """
    names = (vote.a.file, vote.b.file)
    sidecars = folder.sidecars_of(names)
    for name in names:
        if name not in sidecars:
            raise ConfigError(message("there is no sample {name}", name=name))
    a, b = (sidecars[name] for name in names)
    if row_of(a) != row_of(b):
        raise ConfigError(
            message("{a} and {b} differ in more than their adapters", a=names[0], b=names[1]),
            message("Reload the page"),
        )
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    voted = {"a": voted_sample(names[0], a), "b": voted_sample(names[1], b)}
    known = vote.model_copy(update=voted | voted_prompt(a) | {"time": now})
    append_vote(folder.path / VOTES, validate(Vote, known.model_dump(), message("the values of the vote")))
    return _tally(folder.path)


def _tally(folder: Path) -> list[Mapping[str, Any]]:
    found, _ = read_votes(storage.as_path(folder / VOTES))
    return described(found)
