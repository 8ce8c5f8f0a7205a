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
from musicgen_core.generation.votes import VOTES, Vote, VotedSample, append_vote, described, read_votes
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
        ConfigError: a sample isn't in the folder.
    """
    voted = folder.voted([vote.a.file, vote.b.file])
    sides: list[VotedSample] = []
    for given in (vote.a, vote.b):
        if given.file not in voted:
            raise ConfigError(message("there is no sample {name}", name=given.file))
        sides.append(voted[given.file])
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    known = vote.model_copy(update={"a": sides[0], "b": sides[1], "time": now})
    append_vote(folder.path / VOTES, validate(Vote, known.model_dump(), message("the values of the vote")))
    return _tally(folder.path)


def _tally(folder: Path) -> list[Mapping[str, Any]]:
    found, _ = read_votes(storage.as_path(folder / VOTES))
    return described(found)
