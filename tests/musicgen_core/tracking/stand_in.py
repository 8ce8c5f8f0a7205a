"""Minimal stand-in for WandB's server: the GraphQL, file stream and uploads that wandb 0.31 requires."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p", "name": "musicgen-flows", "entity": {"id": "e", "name": "someone"}}


class StandIn:
    """Stores received data: one run's history, in order of its steps, and everything else by name.

    Attributes:
        status: what every request is answered with; 401 is for a rejected key.
        delay_s: how long each answer takes.
    """

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self._server = server
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.status, self.delay_s = 200, 0.0
        self.history: dict[int, dict[str, Any]] = {}
        self.system_metrics: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.runs: list[str] = []
        self.artifacts: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.is_complete = self.is_stopped = False

    def stop(self) -> None:
        """Refuse new connections, and break open ones."""
        self.is_stopped = True
        self._server.shutdown()
        self._server.server_close()

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a GraphQL query or mutation."""
        if operation == "Viewer":
            teams: dict[str, Any] = {"edges": []}
            return {"viewer": {"id": "u", "entity": "someone", "username": "s", "flags": "{}", "teams": teams}}
        if operation == "UpsertBucket":
            self.config |= {name: item["value"] for name, item in json.loads(given["config"] or "{}").items()}
            is_new = given["name"] not in self.runs
            self.runs += [given["name"]] * is_new
            return {"upsertBucket": {"bucket": self._bucket(given["name"]), "inserted": is_new}}
        if operation == "RunResumeStatus":
            known = self._bucket(given["name"]) if given["name"] in self.runs else None
            return {"model": {**PROJECT, "bucket": known}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return self._answer_of_artifacts(operation, given)

    def _bucket(self, name: str) -> dict[str, Any]:
        tail = [json.dumps({"_step": max(self.history), "_runtime": 1})] if self.history else []
        texts = {"historyTail": json.dumps(tail), "eventsTail": "[]", "summaryMetrics": "{}", "config": "{}"}
        counts = {"historyLineCount": len(self.history), "eventsLineCount": 0, "logLineCount": 0}
        return {"id": "r", "name": name, "project": PROJECT, "tags": [], "wandbConfig": None, **texts, **counts}

    def _answer_of_artifacts(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        file = {"id": "f", "uploadUrl": f"{self.url}/put/manifest", "uploadHeaders": []}
        if operation == "ArtifactType":
            return {"project": None}
        if operation == "CreateArtifact":
            self.artifacts.append(given["input"])
            number = len(self.artifacts)
            sequence = {"id": "s", "latestArtifact": None}
            return {
                "createArtifact": {"artifact": {"id": f"a{number}", "state": "PENDING", "artifactSequence": sequence}}
            }
        if operation == "CreateArtifactManifest":
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if operation == "UpdateArtifactManifest":
            return {"updateArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if operation == "CreateArtifactFiles":
            nodes = [
                {"storagePath": one["name"], "uploadUrl": f"{self.url}/put/{one['artifactID']}/{one['name']}"}
                | {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": one["artifactID"]}}
                for one in given["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}
        return {}  # what wandb asks and can do without

    def stream(self, content: dict[str, Any]) -> None:
        """Receive the new lines of a run's files."""
        for name, part in content.get("files", {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                self.history |= {part["offset"] + i: line for i, line in enumerate(lines)}
            elif name == "wandb-events.jsonl":
                self.system_metrics += lines
        self.is_complete = content.get("complete") or self.is_complete


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class WandbHandler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            time.sleep(stand_in.delay_s)
            if stand_in.is_stopped:
                self.close_connection = True
                return
            answer: dict[str, Any] = {}
            if stand_in.status == 401:
                answer = {"errors": [{"message": "permission denied"}]}
            elif self.path == "/graphql":
                asked = json.loads(body)
                operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
                answer = {"data": stand_in.answer(operation[1] if operation else "", asked.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                stand_in.stream(json.loads(body))
            elif self.path.startswith("/put/"):
                stand_in.files[self.path.removeprefix("/put/")] = body
            content = json.dumps(answer).encode()
            self.send_response(stand_in.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST

    return WandbHandler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Ignore errors, as wandb closes its connections at any time."""


@contextmanager
def running_stand_in() -> Iterator[StandIn]:
    server = _Server(("127.0.0.1", 0), BaseHTTPRequestHandler)
    stand_in = StandIn(server)
    server.RequestHandlerClass = _handler(stand_in)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield stand_in
    finally:
        stand_in.stop()
