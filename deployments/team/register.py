"""`python -m deployments.team.register [STORAGE]`: register the flows and the shared storage on a team's server.

Needs PREFECT_API_URL and PREFECT_API_AUTH_STRING. Idempotent: registering again updates what differs.
"""

from __future__ import annotations

import os
import sys
import time
from typing import cast
from uuid import UUID

from deployments.environment import is_healthy, prepare
from deployments.registering import PLACES, register, set_places
from musicgen_core.errors import MusicgenError
from musicgen_core.language import message

RESULTS_BLOCK = "musicgen-results"
START_SECONDS = 180  # the first start creates the database's tables


def register_team(storage: str | None) -> None:
    """Register the pool, deployments and automations. With a storage, also results storage and the places not set yet.

    Args:
        storage: fsspec URL or absolute path that every worker can read and write.

    Raises:
        MusicgenError: no server answers, it refuses the login, or the storage is neither.
    """
    _wait_for_server(os.environ["PREFECT_API_URL"])
    register()
    if storage is not None:
        _keep_results_in(storage.rstrip("/"))
        _set_new_places(storage.rstrip("/"))


def _wait_for_server(api: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_healthy(api):
        if time.monotonic() > deadline:
            raise MusicgenError(
                message("no Prefect server answers at {api}", api=api),
                message("On the server, see why with journalctl -u musicgen-server"),
            )
        time.sleep(1)


def _keep_results_in(storage: str) -> None:
    """Make the storage the server's default for results, so that workers need no setting for it."""
    from prefect.client.orchestration import get_client
    from prefect.filesystems import LocalFileSystem, RemoteFileSystem

    block: RemoteFileSystem | LocalFileSystem
    if "://" in storage:
        block = RemoteFileSystem(basepath=f"{storage}/results")
    elif storage.startswith("/"):
        block = LocalFileSystem(basepath=f"{storage}/results")
    else:
        raise MusicgenError(
            message("{storage!r} is no location that all machines share", storage=storage),
            message("Give gs://BUCKET/FOLDER, or a mounted folder's path"),
        )
    with get_client(sync_client=True) as client:
        client.update_server_default_result_storage(cast(UUID, block.save(RESULTS_BLOCK, overwrite=True)))


def _set_new_places(storage: str) -> None:
    from prefect.variables import Variable

    unset = [name for name in PLACES if Variable.get(f"musicgen_{name}") is None]
    if unset:
        set_places({name: f"{storage}/{PLACES[name]}" for name in unset})


def main() -> int:
    prepare()
    try:
        register_team(sys.argv[1] if len(sys.argv) > 1 else None)
    except MusicgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Registered with {os.environ['PREFECT_API_URL']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
