"""Render prompts to `generated_000.wav`, `generated_000.json`, …, and `index.html`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.generation.candidates import Candidate, Choosing
from musicgen_core.generation.checks import check_guided, check_request
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.files import GeneratedSample, write_sample
from musicgen_core.generation.finished_frames import OnFrames
from musicgen_core.generation.loudness import normalize, sound_of
from musicgen_core.generation.melody import check_takes_melody
from musicgen_core.generation.numbering import Numbering, stem_of
from musicgen_core.generation.page import write_index
from musicgen_core.generation.plan import (
    PlannedSample,
    batches,
    cache_budget,
    cache_bytes,
    fitting_size,
    plan,
    smaller_size,
)
from musicgen_core.generation.redone import Redo, splice
from musicgen_core.generation.request import Rendered, RenderRequest
from musicgen_core.generation.resident import ResidentModel, load_model
from musicgen_core.generation.seams import Share, join
from musicgen_core.language import message
from musicgen_core.model.weighted_adapters import Mix
from musicgen_core.separation.separator import Separator
from musicgen_core.separation.weights import find_separator
from musicgen_core.settings import MOST_SIDE_BY_SIDE
from musicgen_core.stages import mention
from musicgen_core.wording import counted

logger = logging.getLogger(__name__)
WRITERS = 4
"""Threads that encode, draw and write the files of several samples at once."""

OnProgress = Callable[[int, int, str], None]
OnSampleFrames = Callable[[PlannedSample, Tensor], None]


def render(
    request: RenderRequest,
    on_progress: OnProgress = lambda done, total, text: None,
    on_piece: Callable[[Rendered], None] = lambda piece: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Rendered]:
    """Render every prompt.

    Args:
        request: what to render.
        on_progress: called after each step, with frames of music done and in total, and a text that names the samples.
        on_piece: called for each sample once its files are written.
        cancelled: asked before each step.

    Returns:
        The samples in the order of their files' names.

    Raises:
        MusicgenError: an error that the user can act on.
        Cancelled: `cancelled` returned true; finished samples are kept.
    """
    check_request(request)
    numbering = Numbering(*_folders(request))  # refuses a folder before the model is loaded
    return _render_all(load_model(request), request, numbering, on_progress, on_piece, cancelled)


def render_with(
    resident: ResidentModel,
    request: RenderRequest,
    on_progress: OnProgress = lambda done, total, text: None,
    on_piece: Callable[[Rendered], None] = lambda piece: None,
    cancelled: Callable[[], bool] = lambda: False,
    on_frames: OnSampleFrames | None = None,
) -> list[Rendered]:
    """Render every prompt with a model in memory: the files are those of `render`.

    Args:
        resident: the model; adapters of the request that it lacks are loaded.
        request: what to render; its model and device are ignored.
        on_progress: see `render`, as are the others, the result and the errors.
        on_frames: called with the first sample of each batch and its codes [K, new frames] as they are completed.
    """
    check_request(request)
    numbering = Numbering(*_folders(request))
    if request.melodies:
        check_takes_melody(resident.model.name, resident.model.chroma_frames > 0)
    resident.add_adapters(request.all_adapters)
    return _render_all(resident, request, numbering, on_progress, on_piece, cancelled, on_frames)


def _render_all(
    resident: ResidentModel,
    request: RenderRequest,
    numbering: Numbering,
    on_progress: OnProgress,
    on_piece: Callable[[Rendered], None],
    cancelled: Callable[[], bool],
    on_frames: OnSampleFrames | None = None,
) -> list[Rendered]:
    for folder in _folders(request):
        storage.delete_partials(folder)
    if request.settings.guidance is None:
        check_guided(request, resident.model.config.inference_coefficient)
    pieces = plan(request, resident.codec, _separator(request, resident.device))
    with ThreadPoolExecutor(WRITERS, "writing music") as writers:
        rendering = _Rendering(
            resident=resident,
            request=request,
            pieces=pieces,
            numbering=numbering,
            writers=writers,
            on_progress=on_progress,
            on_piece=on_piece,
            cancelled=cancelled,
            on_frames=on_frames,
        )
        rendering.run()
    return [piece.rendered for piece in rendering.done]


@dataclass(frozen=True)
class _Made:
    """A sample whose files are written, with the number in their names."""

    number: int
    sidecar: dict[str, Any]
    rendered: Rendered


class _Rendering:
    """Renders batches of samples, and writes each batch while the next one is generated.

    Attributes:
        done: the samples whose files are written, in the order of their numbers.
    """

    def __init__(
        self,
        resident: ResidentModel,
        request: RenderRequest,
        pieces: Sequence[PlannedSample],
        numbering: Numbering,
        writers: ThreadPoolExecutor,
        on_progress: OnProgress,
        on_piece: Callable[[Rendered], None],
        cancelled: Callable[[], bool],
        on_frames: OnSampleFrames | None,
    ) -> None:
        self._resident, self._request, self._device = resident, request, resident.device
        self._pieces, self._writers, self._numbering = pieces, writers, numbering
        self._on_progress, self._on_piece, self._cancelled = on_progress, on_piece, cancelled
        self._on_frames = on_frames
        self.done: list[_Made] = []
        self._identity = writers.submit(lambda: resident.model.identity)  # reads 6 GB while the model is loaded
        self._writing: list[Future[_Made]] = []
        self._choosing = Choosing(resident, request.keep_candidates)
        self._started_samples = 0
        self._max_batch = MOST_SIDE_BY_SIDE
        self._frames, self._total = 0, sum(piece.new_frames for piece in pieces)

    def run(self) -> None:
        """Render all samples, those of one mix of adapters after the other: there is one model in memory."""
        request = self._request
        for mix in dict.fromkeys(piece.mix for piece in self._pieces):
            engine = self._resident.engine(mix, request.weight_bits, request.cache_bits)
            pieces = [piece for piece in self._pieces if piece.mix == mix]
            for batch, size in batches([one for one in pieces if one.seam is None], partial(self._size_for, engine)):
                self._render(engine, batch, size)
            for piece in (one for one in pieces if one.seam is not None):
                self._render(engine, [piece], self._candidates_for(engine, piece))
            self._deliver_written()
            del engine  # frees the packed weights for those of the next mix

    def _render(self, engine: Engine, batch: Sequence[PlannedSample], size: int) -> None:
        """Render a batch; if memory runs out, render it again in smaller ones, which also limits all later batches."""
        started = time.monotonic()
        try:
            music = self._try_render(engine, batch, size)
        finally:  # also if this batch is interrupted: the samples before it are finished
            self._deliver_written()
        if music is None:
            smaller = self._max_batch = smaller_size(size)
            self._on_frames = None  # it has heard the beginning of samples that are generated again
            logger.warning("out of GPU memory: a batch has %s from here on, not %d", counted(smaller, "sample"), size)
            torch.cuda.empty_cache()
            for start in range(0, len(batch), smaller):
                self._render(engine, batch[start : start + smaller], smaller)
            return
        codes, wavs, described = music
        self._frames += sum(piece.new_frames for piece in batch)
        self._started_samples += len(batch)
        made = {
            "engine_batch_size": size,
            "cache_bits": engine.cache_bits_for(size),
            "render_seconds": round((time.monotonic() - started) / len(batch), 3),
            **described,
        }
        write = partial(self._write, engine.coefficient(self._request.settings))
        candidates = [Candidate(*one, made) for one in zip(batch, codes, wavs, strict=True)]
        chosen = [one for candidate in candidates for one in self._choosing.add(candidate)]
        self._writing = [self._writers.submit(write, one) for one in chosen]

    def _try_render(
        self, engine: Engine, batch: Sequence[PlannedSample], size: int
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Any]] | None:
        """Return codes and audio of each sample, and what their sidecars say of that.

        None if memory ran out: the error would keep tensors alive.
        """
        try:
            if batch[0].seam is not None:
                generate = partial(self._generate, engine)
                joined = join(batch[0], engine, self._resident.codec, generate, size)
                return [joined.codes], [joined.wav], joined.described
            codes = self._generate(engine, batch, size)
            mention(message("turning the codes into sound"))
            return codes, self._decode(codes), {}
        except torch.OutOfMemoryError:
            return None

    def _deliver_written(self) -> None:
        """Wait for the samples that are being written, and add them to the pages."""
        made, self._writing = [future.result() for future in self._writing], []
        if not made:
            return
        self.done = sorted([*self.done, *made], key=lambda piece: piece.number)
        new = {piece.number: piece.sidecar for piece in self.done}
        for place, folder in enumerate(_folders(self._request)):
            pieces = self._numbering.sidecars(place, besides=new) | new  # also those of other runs
            write_index(folder, [(stem_of(number), pieces[number]) for number in sorted(pieces)])
        for piece in made:
            self._on_piece(piece.rendered)

    def _size_for(self, engine: Engine, left: int, frames: int) -> int:
        """Return the size of the next batch, which may not be full."""
        if self._request.batch_size is not None:
            return min(self._request.batch_size, self._max_batch)
        if self._device.type != "cuda":
            return 1  # so that a prompt's codes don't depend on the others
        one = cache_bytes(engine.lm.config, min(frames, engine.window), engine.cache_bits)
        return fitting_size(left, min(int(cache_budget(self._device) / one), self._max_batch))

    def _candidates_for(self, engine: Engine, piece: PlannedSample) -> int:
        """Return how many candidates for a seam are generated in a batch: on a CPU all, as they are the same always."""
        assert piece.seam is not None
        if self._request.batch_size is None and self._device.type != "cuda":
            return piece.seam.candidates
        return self._size_for(engine, piece.seam.candidates, piece.frames)

    def _generate(
        self,
        engine: Engine,
        batch: Sequence[PlannedSample],
        size: int,
        share: Share = lambda done, total: (done, total),
    ) -> list[Tensor]:
        """Return the codes [K, frames] of each sample; the batch is padded to its size, for reproducible results.

        Several candidates for a seam are one sample, of whose progress they are a share.
        """
        empty, given = size - len(batch), batch[0].continuation.frames
        known = torch.stack([piece.continuation.codes for piece in batch] + empty * [batch[0].continuation.codes])
        samples = batch if batch[0].seam is None else batch[:1]
        new, before = sum(piece.new_frames for piece in samples), self._frames
        first, last = self._started_samples + 1, self._started_samples + len(samples)
        total = len(self._pieces)
        text = message("sample {number} of {total}", number=first, total=total)
        if last > first:
            text = message("samples {first} to {last} of {total}", first=first, last=last, total=total)

        def on_step(done: int, total: int) -> None:
            done, total = share(done, total)
            self._on_progress(before + new * done // total, self._total, text)
            if all(future.done() for future in self._writing):
                self._deliver_written()

        codes = engine.generate(
            prompts=[*(piece.first_text for piece in batch), *(empty * [None])],
            settings=self._request.settings,
            streams=[piece.stream for piece in batch] + empty * [0],
            on_step=on_step,
            cancelled=self._cancelled,
            frames=[piece.frames for piece in batch] + empty * [given + 1],
            known=known,
            melodies=[*(piece.melody for piece in batch), *(empty * [None])],
            negatives=[*(piece.negative_prompt for piece in batch), *(empty * [None])],
            changes={
                frame: [*(piece.changes[frame] for piece in batch), *(empty * [None])] for frame in batch[0].changes
            },
            on_frames=self._frames_listener(batch[0]),
        )
        return codes[: len(batch)]

    def _frames_listener(self, piece: PlannedSample) -> OnFrames | None:
        """Return what hands on the frames of the first sample of a batch, up to its own end."""
        listener = self._on_frames
        if listener is None or piece.candidates > 1 or piece.seam is not None:
            return None
        heard = piece.continuation.frames

        def on_frames(codes: Tensor) -> None:
            nonlocal heard
            if (own := codes[0, :, : piece.frames - heard]).shape[-1]:
                heard += own.shape[-1]
                listener(piece, own)

        return on_frames

    def _decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Return the audio [channels, samples] of each sample; neighbours of one length are decoded in one batch."""
        audio: list[Tensor] = []
        for _, alike in groupby(codes, key=lambda one: one.shape[-1]):
            audio += self._resident.codec.decode(torch.stack(list(alike))).unbind()
        return audio

    def _write(self, guidance: float, candidate: Candidate) -> _Made:
        request, piece = self._request, candidate.piece
        sound = sound_of(candidate.sound)
        audio = splice(piece.seam, sound) if isinstance(piece.seam, Redo) else normalize(sound, SAMPLE_RATE)
        seconds, adapters = len(audio) / SAMPLE_RATE, self._described(piece.mix)
        sampling = {**request.settings.model_dump(mode="json"), "duration": seconds, "seed": piece.seed}
        sidecar = {
            **piece.described,
            "duration": seconds,
            "model": self._identity.result(),
            "adapter": adapters if len(adapters) > 1 else next(iter(adapters), None),
            "sampling": {**sampling, "guidance": guidance},
            "weight_bits": request.weight_bits,
            "device": str(self._device),
            **candidate.made,
            "versions": {name: version(name) for name in ("torch", "audiocraft", "transformers")},
        }
        kept = candidate.codes.numpy().astype(np.uint16) if request.save_codes else None
        number = self._numbering.take(piece.number, sidecar)
        written = write_sample(
            out=request.out,
            sample=GeneratedSample(stem_of(number), audio, kept, sidecar),
            formats=request.formats,
            spectrogram=request.spectrograms,
            copy_to=request.copy_to,
        )
        self._numbering.release(number)  # not after a failure: the claim identifies files that were already written
        rendered = Rendered(
            wav=str(written[0]),
            prompt=piece.prompt,
            prompt_number=piece.prompt_number,
            variation=piece.variation,
            seconds=seconds,
            with_adapter=bool(adapters),
            adapters=tuple(one["path"] for one in adapters),
            strengths=tuple(one["strength"] for one in adapters),
        )
        return _Made(number, sidecar, rendered)

    def _described(self, mix: Mix) -> list[dict[str, Any]]:
        """Return the entries of a mix in sidecars, in the order in which its adapters are given."""
        by_source = {one.source: one for one in self._resident.adapters}
        return [by_source[one.source].described(one.strength) for one in mix]


def _separator(request: RenderRequest, device: torch.device) -> Separator | None:
    """Return Demucs if melodies are to be separated."""
    if not (request.separate_melody and request.melodies):
        return None
    return Separator(find_separator("--separate-melody"), device)


def _folders(request: RenderRequest) -> list[UPath]:
    return [storage.as_path(folder) for folder in (request.out, request.copy_to) if folder is not None]
