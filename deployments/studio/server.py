"""The studio's HTTP interface: the page, the queue, sound while it is generated, and the folder's files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import anyio.to_thread
from fastapi import FastAPI, Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from deployments.file_server import page_policy
from deployments.studio import flow_runs
from deployments.studio.access import LOGIN, STATIC, Guard, Sessions
from deployments.studio.adapters import OfferedAdapter
from deployments.studio.folder import MOST_UPLOAD_BYTES, MusicFolder
from deployments.studio.form_request import FlowForm, StudioForm
from deployments.studio.jobs import Job, Studio
from deployments.studio.page import login_page, studio_page
from deployments.studio.settings_of import form_of
from deployments.studio.votes import votes_router
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.errors import ConfigError, MusicgenError, translated_error
from musicgen_core.escaping import one_line
from musicgen_core.generation.page import PAGE
from musicgen_core.language import message
from musicgen_core.settings import validate
from tasks.studio_link import GREETING, HEALTH

MOST_BODY_BYTES = 4 << 20  # of a form with a thousand prompts
MOST_LOGIN_BYTES = 4096
_LISTEN_SECONDS = 0.02
_SCRIPTS = ("compare.js", "form.js", "live.js", "studio.js")
_PLAYER = {"player.css": "text/css"} | dict.fromkeys(("tracks.js", "player.js"), "text/javascript")
_STATIC = {"studio.css": "text/css"} | dict.fromkeys(_SCRIPTS, "text/javascript") | _PLAYER
_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".png": "image/png"}


@dataclass
class Served:
    """The parts of the studio that the server serves.

    Attributes:
        studio: the queue.
        folder: of the music.
        offered: returns the adapters by id, as they are now.
        is_stopping: whether streams end, because the server does.
    """

    studio: Studio
    folder: MusicFolder
    offered: Callable[[], dict[str, OfferedAdapter]]
    is_stopping: Callable[[], bool] = field(default=lambda: False)

    @property
    def is_stereo(self) -> bool:
        model = self.studio.model
        return model is not None and model.codec.shape.channels == 2


def make_app(served: Served, sessions: Sessions, names: set[str]) -> Guard:
    """Return the ASGI application.

    Args:
        sessions: asks for the password, if there is one.
        names: allowed host names, from `names_of_machine`.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    studio, folder = served.studio, served.folder

    @app.exception_handler(MusicgenError)
    async def refused(_: Request, error: MusicgenError) -> Response:
        return JSONResponse({"error": translated_error(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)

    @app.get(HEALTH)
    def health() -> Response:
        return PlainTextResponse(GREETING)

    @app.get("/")
    def page() -> Response:
        return HTMLResponse(studio_page())

    @app.get(LOGIN)
    def login() -> Response:
        return HTMLResponse(login_page(is_wrong=False))

    @app.post(LOGIN)
    async def enter(request: Request) -> Response:
        if sessions.is_busy:
            return PlainTextResponse("many passwords are being tried: try again later", HTTPStatus.TOO_MANY_REQUESTS)
        form = parse_qs((await _body(request, MOST_LOGIN_BYTES)).decode(errors="replace"), keep_blank_values=True)
        if not await sessions.is_right(form.get("password", [""])[0]):
            return HTMLResponse(login_page(is_wrong=True), HTTPStatus.FORBIDDEN)
        cookie = sessions.cookie(is_secure=request.headers.get("x-forwarded-proto") == "https")
        return RedirectResponse("./", HTTPStatus.SEE_OTHER, headers={"set-cookie": cookie})

    @app.get(STATIC + "{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            return Response(status_code=HTTPStatus.NOT_FOUND)
        package = "musicgen_core.generation" if name in _PLAYER else "deployments.studio"
        content = files(package).joinpath(name).read_bytes()
        return Response(content, media_type=_STATIC[name])

    @app.get("/api/state")
    def state() -> Any:
        model = studio.model
        return {
            "is_ready": studio.is_ready.is_set() and not studio.failure,
            "stage": studio.stage,
            "failure": studio.failure,
            "model": model.model.name if model else "",
            "device": str(model.device) if model else "",
            "guidance": model.model.config.inference_coefficient if model else None,
            "music": folder.version,
            "jobs": [_described(studio, job) for job in studio.jobs()],
        }

    @app.get("/api/adapters")
    def adapters() -> Any:
        return [asdict(one) for one in served.offered().values()]

    @app.get("/api/pieces")
    def pieces() -> Any:
        return folder.pieces()

    @app.get("/api/pieces/{stem}/form")
    def form(stem: str, with_source: bool = True) -> Any:
        model = studio.model.model.name if studio.model else ""
        values, kept = form_of(folder, stem, served.offered(), model, with_source)
        return {"values": values.model_dump(mode="json", exclude_defaults=True), "source_seconds": kept}

    @app.get("/files/{name}")
    def file(name: str) -> Response:
        path = folder.file(name)
        if path is None:
            return Response(status_code=HTTPStatus.NOT_FOUND)
        if name == PAGE:  # its scripts are inline
            return FileResponse(path, headers={"content-security-policy": page_policy()})
        return FileResponse(path, media_type=_TYPES.get(Path(name).suffix, "application/octet-stream"))

    @app.post("/api/jobs", status_code=HTTPStatus.ACCEPTED)
    async def submit(request: Request) -> Any:
        form = validate(StudioForm, await _json(request), message("the form"))
        return await anyio.to_thread.run_sync(partial(_submit, served, form))

    @app.delete("/api/jobs/{id}")
    def cancel(id: str) -> Response:
        if (job := studio.job(id)) is None:
            return Response(status_code=HTTPStatus.NOT_FOUND)
        studio.cancel(job)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @app.get("/api/jobs/{id}/sound")
    def sound(id: str) -> Response:
        job, model = studio.job(id), studio.model
        if job is None or model is None:
            return Response(status_code=HTTPStatus.NOT_FOUND)
        headers = {"x-sample-rate": str(SAMPLE_RATE), "x-channels": str(model.codec.shape.channels)}
        return StreamingResponse(
            _chunks(job, served.is_stopping), headers=headers, media_type="application/octet-stream"
        )

    @app.post("/api/uploads", status_code=HTTPStatus.CREATED)
    async def upload(request: Request) -> Any:
        content = await _body(request, MOST_UPLOAD_BYTES)
        name, seconds = await anyio.to_thread.run_sync(partial(folder.upload, content, served.is_stereo))
        return {"source": name, "seconds": seconds}

    @app.get("/api/flow")
    def can_run_flows() -> Any:
        return {"reason": flow_runs.unavailable_reason()}

    @app.post("/api/flow", status_code=HTTPStatus.CREATED)
    async def run_flow(request: Request) -> Any:
        form = validate(FlowForm, await _json(request), message("the form"))
        return await anyio.to_thread.run_sync(partial(_run_flow, served, form))

    app.include_router(votes_router(folder, _json))
    return Guard(app, names, sessions)


def _submit(served: Served, form: StudioForm) -> dict[str, Any]:
    request = form.request(served.folder, served.offered(), served.is_stereo)
    job = served.studio.submit(request, one_line(form.prompt))
    return {"id": job.id, "seed": request.settings.seed}


def _run_flow(served: Served, form: FlowForm) -> dict[str, str]:
    model = served.studio.model
    given = form.parameters(served.folder, served.offered(), model.model if model else None, served.is_stereo)
    return {"url": flow_runs.start(given)}


def _described(studio: Studio, job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "title": job.title,
        "state": job.state,
        "place": studio.position(job),
        "done": job.done,
        "total": job.total,
        "seconds": job.request.settings.duration,
        "pieces": list(job.pieces),
        "error": job.error,
    }


async def _chunks(job: Job, is_stopping: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield the chunks of a job's sound as they are decoded, from the first one on."""
    sent = 0
    while not is_stopping():
        is_last = job.has_all_sound  # read before the chunks: none follows
        for chunk in job.sound[sent:]:
            yield chunk
            sent += 1
        if is_last:
            return
        await asyncio.sleep(_LISTEN_SECONDS)


async def _json(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise ConfigError(message("the form isn't JSON"))
    try:
        value = json.loads(await _body(request, MOST_BODY_BYTES))
    except (ValueError, RecursionError) as error:
        raise ConfigError(message("the form isn't JSON")) from error
    if not isinstance(value, dict):
        raise ConfigError(message("the form isn't JSON"))
    return value


async def _body(request: Request, most: int) -> bytes:
    """Return the body of a request, which is read no further than its largest size.

    Raises:
        ConfigError: it is larger.
    """
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > most:
            raise ConfigError(
                message("what was sent has more than {most} MiB", most=most >> 20), message("Send a shorter recording")
            )
    return b"".join(parts)
