"""Artifacts of a run in the Prefect UI, kept up to date from a thread of their own.

The work only ever says what to show: a server that is slow or away costs it nothing, and is told the newest state
once it answers. Each artifact has a key. A run shows one artifact a key, which a retry of the run goes on with; runs
after one another are its versions on the Artifacts page.
"""

from __future__ import annotations

import contextvars
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

import httpx
from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

from musicgen_core.escaping import markdown_text

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 10.0
"""How long the end of the work waits for its last artifacts, where the server is slow or away."""
PATIENCE_IF_INTERRUPTED_SECONDS = 3.0
"""The same where Prefect ends the process soon."""
RETRY_SECONDS = 10.0


@dataclass(frozen=True)
class _Content:
    """What to show under a key; `make` gives the data, and may take its time."""

    type: str
    make: Callable[[], Any]
    description: str


class Artifacts:
    """The artifacts of the current run; outside of runs, of none. Its methods return at once, in any thread."""

    def __init__(self) -> None:
        self._flow_run = UUID(run) if (run := runtime.flow_run.id) else None
        self._ids: dict[str, UUID] = {}
        self._waiting: dict[str, _Content] = {}
        self._changed = threading.Condition()
        self._is_closing = False
        # Prefect keeps which run and which server it is in the context. A daemon: no server keeps a process alive.
        in_context = contextvars.copy_context().run
        self._thread = threading.Thread(target=in_context, args=(self._publish_all,), name="artifacts", daemon=True)
        self._thread.start()

    def progress(self, key: str, done: int, total: int, description: str) -> None:
        percent = round(100 * done / max(1, total), 1)
        self._show(key, _Content("progress", lambda: percent, markdown_text(description)))

    def table(self, key: str, rows: Sequence[Mapping[str, Any]], description: str, link: str = "") -> None:
        """A table of plain values; `link`, which is Markdown, ends the description."""
        data = partial(_table_data, rows)
        self._show(key, _Content("table", data, " · ".join(filter(None, (markdown_text(description), link)))))

    def markdown(self, key: str, make: Callable[[], str], description: str) -> None:
        """A page, of Markdown that `make` writes when its turn comes, in another thread."""
        self._show(key, _Content("markdown", make, markdown_text(description)))

    def close(self, patience: float) -> None:
        """Show what waits to be shown, for so many seconds at most."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(patience)

    def _show(self, key: str, content: _Content) -> None:
        with self._changed:
            self._waiting[key] = content  # in the place of an older one that nobody saw
            self._changed.notify()

    def _publish_all(self) -> None:
        while (taken := self._take()) is not None:
            key, content = taken
            try:
                data = content.make()
            except Exception:
                logger.warning("the artifact %s could not be made", key, exc_info=True)
                continue
            if not self._publish(key, content, data):
                with self._changed:  # made already: drawing it again at each try would cost the training
                    self._waiting.setdefault(key, replace(content, make=partial(_same, data)))
                    if self._is_closing:
                        return
                self._pause()

    def _take(self) -> tuple[str, _Content] | None:
        """The next to publish, once there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            if not self._waiting:
                return None
            key = next(iter(self._waiting))
            return key, self._waiting.pop(key)

    def _pause(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, RETRY_SECONDS)

    def _publish(self, key: str, content: _Content, data: Any) -> bool:
        """→ whether the server took it."""
        update = ArtifactUpdate(data=data, description=content.description)
        try:
            with get_client(sync_client=True) as client:
                try:
                    self._update(client, key, content.type, update)
                except httpx.HTTPStatusError as error:
                    if error.response.status_code != httpx.codes.NOT_FOUND:
                        raise
                    self._ids.pop(key, None)  # a person has deleted it
                    self._update(client, key, content.type, update)
        except Exception as error:  # whatever it is, it is not worth the artifacts after this one
            logger.debug("the artifact %s could not be shown: %s", key, error)
            return False
        return True

    def _update(self, client: SyncPrefectClient, key: str, kind: str, update: ArtifactUpdate) -> None:
        """As the client's own update_artifact, but without its event: the server would keep each picture for a week."""
        if key not in self._ids:
            self._ids[key] = self._find(client, key) or self._create(client, key, kind)
        values = update.model_dump(mode="json", exclude_unset=True)
        client.request("PATCH", "/artifacts/{id}", json=values, path_params={"id": self._ids[key]})

    def _find(self, client: SyncPrefectClient, key: str) -> UUID | None:
        """What an earlier attempt of this run showed."""
        if self._flow_run is None:
            return None
        of_run = ArtifactFilterFlowRunId(any_=[self._flow_run])
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key]), flow_run_id=of_run), limit=1
        )
        return found[0].id if found else None

    def _create(self, client: SyncPrefectClient, key: str, kind: str) -> UUID:
        """Of the flow run alone: a retry has new task runs, which would be shown without it."""
        return client.create_artifact(ArtifactCreate(key=key, type=kind, flow_run_id=self._flow_run)).id


@contextmanager
def artifacts_of_run(patience: float = PATIENCE_SECONDS) -> Iterator[Artifacts]:
    """The current run's artifacts, closed at the end however it comes."""
    artifacts = Artifacts()
    try:
        yield artifacts
    except BaseException:
        artifacts.close(PATIENCE_IF_INTERRUPTED_SECONDS)
        raise
    artifacts.close(patience)


def _same(data: Any) -> Any:
    return data


def _table_data(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as Prefect keeps them. Its UI takes texts in cells for Markdown."""
    return json.dumps(
        [{key: markdown_text(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells as `markdown_text` and `markdown_code` make them."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
