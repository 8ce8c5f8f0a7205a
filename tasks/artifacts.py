"""Artifacts of a run in the Prefect UI, published by a background thread.

Callers only hand over the newest content: a slow or unreachable server never blocks them, and receives the latest
state once it answers. Each artifact has a key. A run has one artifact per key, which a retry of the run updates;
consecutive runs are versions of the key on the Artifacts page.
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
"""How long a run waits at its end for its last artifacts, if the server is slow or unreachable"""
PATIENCE_IF_INTERRUPTED_SECONDS = 3.0
"""The same for a run whose process Prefect is about to end"""
RETRY_SECONDS = 10.0


@dataclass(frozen=True)
class _Content:
    """Content of an artifact; `make` returns its data, and may be slow."""

    type: str
    make: Callable[[], Any]
    description: str


class Artifacts:
    """Artifacts of the current run; does nothing outside of runs. Methods return immediately, and are thread-safe."""

    def __init__(self) -> None:
        self._flow_run = UUID(run) if (run := runtime.flow_run.id) else None
        self._ids: dict[str, UUID] = {}
        self._waiting: dict[str, _Content] = {}
        self._changed = threading.Condition()
        self._is_closing = False
        # Prefect keeps the run and the server's address in the context. A daemon: no server keeps a process alive.
        in_context = contextvars.copy_context().run
        self._thread = threading.Thread(target=in_context, args=(self._publish_all,), name="artifacts", daemon=True)
        self._thread.start()

    def progress(self, key: str, done: int, total: int, description: str) -> None:
        percent = round(100 * done / max(1, total), 1)
        self._show(key, _Content("progress", lambda: percent, markdown_text(description)))

    def table(self, key: str, rows: Sequence[Mapping[str, Any]], description: str, link: str = "") -> None:
        """Show a table of plain values; `link`, which is Markdown, is appended to the description."""
        data = partial(_table_data, rows)
        self._show(key, _Content("table", data, " · ".join(filter(None, (markdown_text(description), link)))))

    def markdown(self, key: str, make: Callable[[], str], description: str) -> None:
        """Show a page; the background thread calls `make` for its Markdown."""
        self._show(key, _Content("markdown", make, markdown_text(description)))

    def close(self, patience: float) -> None:
        """Publish pending artifacts for at most `patience` seconds, and stop the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(patience)

    def _show(self, key: str, content: _Content) -> None:
        with self._changed:
            self._waiting[key] = content  # replaces older content that was never published
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
                with self._changed:  # rendered already: rendering again at each attempt would slow training down
                    self._waiting.setdefault(key, replace(content, make=partial(_same, data)))
                    if self._is_closing:
                        return
                self._pause()

    def _take(self) -> tuple[str, _Content] | None:
        """Wait for the next artifact to publish, and return it; None after closing."""
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
        """Publish an artifact; return whether the server accepted it."""
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
        except Exception as error:  # of whatever type: later artifacts must still be published
            logger.debug("the artifact %s could not be shown: %s", key, error)
            return False
        return True

    def _update(self, client: SyncPrefectClient, key: str, kind: str, update: ArtifactUpdate) -> None:
        """Update an artifact as the client does, but without its event, which would keep each picture for a week."""
        if key not in self._ids:
            self._ids[key] = self._find(client, key) or self._create(client, key, kind)
        values = update.model_dump(mode="json", exclude_unset=True)
        client.request("PATCH", "/artifacts/{id}", json=values, path_params={"id": self._ids[key]})

    def _find(self, client: SyncPrefectClient, key: str) -> UUID | None:
        """Return the artifact of this key that an earlier attempt of the run created; None: there is none."""
        if self._flow_run is None:
            return None
        of_run = ArtifactFilterFlowRunId(any_=[self._flow_run])
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key]), flow_run_id=of_run), limit=1
        )
        return found[0].id if found else None

    def _create(self, client: SyncPrefectClient, key: str, kind: str) -> UUID:
        """Create an artifact of the flow run, not of the task run: a retry has new task runs, which would lack it."""
        return client.create_artifact(ArtifactCreate(key=key, type=kind, flow_run_id=self._flow_run)).id


@contextmanager
def artifacts_of_run(patience: float = PATIENCE_SECONDS) -> Iterator[Artifacts]:
    """Yield the artifacts of the current run, and close them at the end, also after an error."""
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
    """Return the rows in Prefect's format. Its UI renders text in cells as Markdown."""
    return json.dumps(
        [{key: markdown_text(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells must be escaped by `markdown_text` or `markdown_code`."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
