"""The queue of the studio: requests of several people, which one worker makes with the model in memory.

Imports no Prefect.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from queue import SimpleQueue
from typing import Literal

import torch
from torch import Tensor

from musicgen_core.config import SamplingSettings
from musicgen_core.errors import Cancelled, MusicgenError, reason_of, translated_error
from musicgen_core.generation.plan import PlannedSample
from musicgen_core.generation.render import render_with
from musicgen_core.generation.request import Rendered, RenderRequest
from musicgen_core.generation.resident import ResidentModel
from musicgen_core.generation.streaming import stream_sound
from musicgen_core.language import message, say, translated
from musicgen_core.stages import Stage, heard_by

logger = logging.getLogger(__name__)

MOST_WAITING = 100
"""Jobs in the queue; more are refused."""
KEPT = 50
"""Ended jobs that are remembered; their music is in the folder for good."""
KEPT_SOUNDS = 3
"""Ended jobs, the newest, whose sound stays in memory for those who are still listening"""
WARM_UP_FRAMES = 30
_STOP_SECONDS = 30.0

State = Literal["waiting", "making", "done", "failed", "cancelled"]


@dataclass
class Job:
    """A request in the queue, and what has become of it. Written by the worker, read by the server's threads.

    Attributes:
        request: what to render.
        title: its prompt.
        id: names it in URLs.
        state: its state.
        done, total: frames of music.
        sound: chunks of its first sample, 16 bits, interleaved, in the order of time; none of a loop or a redone part,
            nor of earlier jobs than the `KEPT_SOUNDS` that ended last.
        has_all_sound: whether no more chunks follow.
        pieces: stems of its finished samples.
        error: why it failed, in the user's language.
        queued, begun, first_sound, ended: times of `time.monotonic`; None if that hasn't happened.
    """

    request: RenderRequest
    title: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: State = "waiting"
    done: int = 0
    total: int = 0
    sound: list[bytes] = field(default_factory=list)
    has_all_sound: bool = False
    pieces: list[str] = field(default_factory=list)
    error: str = ""
    is_cancelled: bool = False
    queued: float = field(default_factory=time.monotonic)
    begun: float | None = None
    first_sound: float | None = None
    ended: float | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


class QueueFull(MusicgenError):
    """Too many jobs are waiting."""


class Studio:
    """A model in memory, one worker that uses it, and the queue of jobs.

    Args:
        load: loads the model, in the worker: the page is there meanwhile.
    """

    def __init__(self, load: Callable[[], ResidentModel]) -> None:
        self._load = load
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._is_stopping = False
        self._worker = threading.Thread(target=self._work, name="making music", daemon=True)
        self.model: ResidentModel | None = None
        self.stage = say("starting")
        self.failure = ""
        self.error: Exception | None = None
        self.is_ready = threading.Event()

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> None:
        """Cancel all jobs, and wait for the worker to end."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._worker.is_alive():
            self._worker.join(_STOP_SECONDS)

    def submit(self, request: RenderRequest, title: str) -> Job:
        """Add a job to the queue.

        Raises:
            QueueFull: too many are waiting.
        """
        job = Job(request, title)
        with self._changed:
            if len(self._waiting()) >= MOST_WAITING:
                raise QueueFull(
                    message("{number} requests are waiting already", number=MOST_WAITING), message("Try again later")
                )
            self._jobs[job.id] = job
            for ended in [one.id for one in self._jobs.values() if one.has_ended][:-KEPT]:
                del self._jobs[ended]
            self._changed.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or stop it before its next step."""
        with self._changed:
            job.is_cancelled = True
            if job.state == "waiting":
                self._end(job, "cancelled")

    def job(self, id: str) -> Job | None:
        with self._changed:
            return self._jobs.get(id)

    def jobs(self) -> list[Job]:
        """Return all jobs that are remembered, the oldest first."""
        with self._changed:
            return list(self._jobs.values())

    def position(self, job: Job) -> int:
        """Return how many jobs are made before a waiting one; 0 for others."""
        with self._changed:
            if job.state != "waiting":
                return 0
            is_busy = any(one.state == "making" for one in self._jobs.values())
            return self._waiting().index(job) + is_busy

    def _waiting(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.state == "waiting"]

    def _end(self, job: Job, state: State) -> None:
        with self._changed:
            job.state, job.ended, job.has_all_sound = state, time.monotonic(), True
            for old in [one for one in self._jobs.values() if one.has_ended and one.sound][:-KEPT_SOUNDS]:
                old.sound = []

    def _work(self) -> None:
        try:
            with heard_by(self._hear):
                model = self._load()
                warm_up(model)
            self.model = model
        except Exception as error:  # the page shows it, and the command raises it
            self.failure, self.error = _reason(error), error
        self.stage = ""
        self.is_ready.set()
        while (job := self._next()) is not None:
            if self.model is None:
                job.error = self.failure
                self._end(job, "failed")
            else:
                self._make(job, self.model)

    def _hear(self, stage: Stage) -> None:
        self.stage = translated(stage.words)

    def _next(self) -> Job | None:
        """Return the next job once there is one; None if the worker is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopping or self._waiting())
            if self._is_stopping:
                for job in self._waiting():
                    self._end(job, "cancelled")
                return None
            job = self._waiting()[0]
            job.state, job.begun = "making", time.monotonic()
            return job

    def _make(self, job: Job, model: ResidentModel) -> None:
        """Make the music of a job. Whatever happens, the next one is made."""
        frames: SimpleQueue[tuple[PlannedSample, Tensor] | None] = SimpleQueue()
        sounding = threading.Thread(target=_decode_first, args=(job, model, frames), name="sound", daemon=True)
        sounding.start()
        state: State = "failed"
        try:
            render_with(
                model,
                job.request,
                on_progress=lambda done, total, text: _progress(job, done, total),
                on_piece=lambda piece: job.pieces.append(stem_in(piece)),
                cancelled=lambda: job.is_cancelled or self._is_stopping,
                on_frames=lambda piece, codes: frames.put((piece, codes)),
            )
            state = "done"
        except Cancelled:
            state = "cancelled"
        except torch.OutOfMemoryError:
            job.error = say("The GPU has too little free memory for this. Give a shorter duration or fewer variations")
        except Exception as error:  # also a mistake of this project: the studio continues
            if not isinstance(error, MusicgenError):
                logger.exception("a request failed")
            job.error = _reason(error)
        finally:
            frames.put(None)
            sounding.join()
        self._end(job, state)


def stem_in(piece: Rendered) -> str:
    """Return the stem of a sample's files."""
    return PurePosixPath(piece.wav).stem


def warm_up(model: ResidentModel) -> None:
    """Generate and decode a moment of music: kernels are compiled, and memory is allocated, before the first click."""
    engine = model.engine(())
    made = engine.generate(["music"], SamplingSettings(), [0], frames=[WARM_UP_FRAMES], on_frames=lambda codes: None)
    for _ in stream_sound(model.codec, made):
        pass


def _progress(job: Job, done: int, total: int) -> None:
    job.done, job.total = done, total


def _decode_first(job: Job, model: ResidentModel, frames: SimpleQueue[tuple[PlannedSample, Tensor] | None]) -> None:
    """Decode the first sample of a job while it is generated."""
    try:
        heard = frames.get()
        if heard is None:
            return
        first, codes = heard

        def own() -> Iterator[Tensor]:
            yield codes
            while (heard := frames.get()) is not None:
                if heard[0].number == first.number:
                    yield heard[1]
                else:
                    return

        for chunk in stream_sound(model.codec, own(), first.continuation.codes):
            if len(chunk):
                job.first_sound = job.first_sound or time.monotonic()
                job.sound.append(chunk.tobytes())
    except Exception:  # the files are made all the same
        logger.exception("a sample can't be heard while it is generated")
    finally:
        job.has_all_sound = True


def _reason(error: Exception) -> str:
    return translated_error(error) if isinstance(error, MusicgenError) else reason_of(error)
