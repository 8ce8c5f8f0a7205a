"""Prompts → `generated_000.wav`, `generated_000.json`, …, `index.html`"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.devices import compute_dtype, pick_device
from musicgen_core.errors import ConfigError
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.files import Piece, write_piece
from musicgen_core.generation.loudness import normalize
from musicgen_core.generation.page import write_index
from musicgen_core.generation.plan import PlannedPiece, batches, bytes_of_caches, fitting_size, plan
from musicgen_core.generation.request import Rendered, RenderRequest
from musicgen_core.model.lora import Adapter, find_adapter, load_adapter, load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, file_sha256, find_model, guidance_defaults

WRITERS = 4
"""Threads that write files: drawing and encoding several pieces at once"""
SHARE_FOR_CACHES = 0.7
"""Of the GPU's free memory; the rest is for activations and for decoding"""


Progress = Callable[[int, int, str], None]


def render(
    request: RenderRequest,
    on_progress: Progress = lambda done, total, text: None,
    on_piece: Callable[[Rendered], None] = lambda piece: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Rendered]:
    """Render every prompt.

    Args:
        on_progress: called after each step with frames of music done and in all, and with what is rendered.
        on_piece: called when a piece's files are written.
        cancelled: asked before each step.

    Returns:
        The pieces in the order of their files' names.

    Raises:
        MusicgenError: anything that a person can act on.
        Cancelled: `cancelled` said so. Pieces that were finished stay.
    """
    if not request.prompts:
        raise ConfigError("there are no prompts", "Give --prompt 'some text' or --prompts-file FILE")
    if request.compare and request.adapter is None:
        raise ConfigError("--compare needs an adapter to compare with the base model", "Give --adapter")
    device = pick_device(request.device)
    model = find_model(request.model)
    voices = _voices(request, model)
    codec = Codec(model, device)
    pieces = plan(request.prompts, request.settings, request.variations, request.continue_from, codec)
    rendering = _Rendering(request, model, device, codec, pieces, len(voices), on_progress, cancelled)
    done: list[_Made] = []
    for number, voice in enumerate(voices):
        for made in rendering.run(number, voice):
            done = sorted([*done, *made], key=lambda piece: piece.index)
            rendering.show(done)
            for piece in made:
                on_piece(piece.rendered)
    return [piece.rendered for piece in done]


@dataclass(frozen=True)
class _Voice:
    """A model to render with: the base, or the base with the adapter, as the sidecar describes it."""

    adapter: Adapter | None
    described: dict[str, Any] | None


def _voices(request: RenderRequest, model: BaseModel) -> list[_Voice]:
    if request.adapter is None:
        return [_Voice(None, None)]
    path = find_adapter(request.adapter)
    adapter = load_adapter(path)
    adapter.check_base(model, str(path))
    with storage.staged(path) as local:
        stat = local.stat()
        described = {
            "path": str(path),
            "sha256": file_sha256(local, stat.st_size, stat.st_mtime_ns),
            "epoch": adapter.epoch,
            "global_step": adapter.global_step,
        }
    return [*([_Voice(None, None)] if request.compare else []), _Voice(adapter, described)]


@dataclass(frozen=True)
class _Made:
    """A piece whose files are written; `index` stands in their names."""

    index: int
    stem: str
    sidecar: dict[str, Any]
    rendered: Rendered


class _Rendering:
    """What is the same for all pieces."""

    def __init__(
        self,
        request: RenderRequest,
        model: BaseModel,
        device: torch.device,
        codec: Codec,
        pieces: Sequence[PlannedPiece],
        voices: int,
        on_progress: Progress,
        cancelled: Callable[[], bool],
    ) -> None:
        self._request, self._model, self._device, self._codec = request, model, device, codec
        self._pieces, self._voices, self._cancelled = pieces, voices, cancelled
        self._on_progress = on_progress
        self._text = TextEncoder(model.text_encoder, device)
        self._frames, self._total = 0, voices * sum(_new_frames(piece) for piece in pieces)

    def run(self, voice_number: int, voice: _Voice) -> Iterator[list[_Made]]:
        """Render all pieces with a voice, batch after batch; only its model is in memory meanwhile."""
        request, model = self._request, self._model
        lm = load_merged(model, voice.adapter, self._device, compute_dtype(self._device))
        engine = Engine(lm, self._text, guidance_defaults(model).inference_coefficient, request.weight_bits)

        def size_for(left: int, frames: int) -> int:
            return self._size_for(engine, left, frames)

        with ThreadPoolExecutor(WRITERS, "writing music") as writers:
            for batch in batches(self._pieces, size_for):
                started = time.monotonic()
                size = self._size_for(engine, len(batch), batch[-1].frames)
                codes = self._generate(engine, batch, size)
                audio = self._decode(codes)
                seconds = round((time.monotonic() - started) / len(batch), 3)

                def write(
                    one: tuple[PlannedPiece, Tensor, Tensor], size: int = size, seconds: float = seconds
                ) -> _Made:
                    piece, codes, audio = one
                    made = {"engine_batch_size": size, "render_seconds": seconds}
                    return self._write(voice_number, voice, engine, piece, codes, audio, made)

                yield list(writers.map(write, zip(batch, codes, audio, strict=True)))

    def show(self, made: Sequence[_Made]) -> None:
        """Bring the page of all pieces up to date."""
        self._copy([write_index(self._request.out, [(piece.stem, piece.sidecar) for piece in made])])

    def _size_for(self, engine: Engine, left: int, frames: int) -> int:
        """Pieces side by side, and places in the engine's batch, some of which may stay empty."""
        if self._request.batch_size is not None:
            return self._request.batch_size
        if self._device.type != "cuda":
            return 1  # a prompt's codes then can't depend on any other's
        free, _ = torch.cuda.mem_get_info(self._device)
        free += torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        window = min(frames, engine.window)
        return fitting_size(left, int(SHARE_FOR_CACHES * free / bytes_of_caches(engine.lm.config, window)))

    def _generate(self, engine: Engine, batch: Sequence[PlannedPiece], size: int) -> list[Tensor]:
        """Codes [4, frames] of each piece; the batch is filled up to its size, so that it always computes alike."""
        empty = size - len(batch)
        known = torch.stack([piece.known for piece in batch] + empty * [batch[0].known])
        new, before = sum(_new_frames(piece) for piece in batch), self._frames
        numbers = sorted(piece.number + 1 for piece in batch)
        text = f"piece {numbers[0]}" if len(batch) == 1 else f"{len(batch)} pieces side by side"

        def on_step(done: int, total: int) -> None:
            self._on_progress(before + new * done // total, self._total, f"{text} of {len(self._pieces)}")

        codes = engine.generate(
            [*(piece.prompt.prompt for piece in batch), *(empty * [None])],
            self._request.settings,
            [piece.stream for piece in batch] + empty * [0],
            on_step,
            self._cancelled,
            [piece.frames for piece in batch] + empty * [known.shape[-1] + 1],
            known,
        )
        self._frames += new
        return codes[: len(batch)]

    def _decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """[samples] of each piece. Those of one length, which stand together, are decoded at once."""
        audio: list[Tensor] = []
        for _, alike in groupby(codes, key=lambda one: one.shape[-1]):
            audio += self._codec.decode(torch.stack(list(alike)))[:, 0].unbind()
        return audio

    def _write(
        self,
        voice_number: int,
        voice: _Voice,
        engine: Engine,
        piece: PlannedPiece,
        codes: Tensor,
        samples: Tensor,
        made: dict[str, Any],
    ) -> _Made:
        request = self._request
        audio = normalize(samples.numpy(), SAMPLE_RATE)
        index, seconds = piece.number * self._voices + voice_number, len(audio) / SAMPLE_RATE
        sampling = request.settings.model_dump(mode="json")
        sampling |= {"duration": seconds, "seed": piece.seed, "guidance": engine.coefficient(request.settings)}
        sidecar = {
            "prompt": piece.prompt.prompt,
            "seed": piece.seed,
            "stream": piece.stream,
            "variation": piece.variation,
            "continued_from": piece.prompt.continue_from,
            "duration": seconds,
            "model": self._model.identity,
            "adapter": voice.described,
            "sampling": sampling,
            "weight_bits": request.weight_bits,
            "device": str(self._device),
            **made,
            "versions": {name: version(name) for name in ("torch", "audiocraft", "transformers")},
        }
        stem = f"generated_{index:03d}"
        kept = codes.numpy().astype(np.uint16) if request.save_codes else None
        written = write_piece(request.out, Piece(stem, audio, kept, sidecar), request.formats, request.spectrograms)
        self._copy(written)
        text, with_adapter = piece.prompt.prompt, voice.adapter is not None
        rendered = Rendered(str(written[0]), text, piece.prompt_number, seconds, with_adapter)
        return _Made(index, stem, sidecar, rendered)

    def _copy(self, files: Sequence[UPath]) -> None:
        if self._request.copy_to:
            for file in files:
                with storage.staged(file) as local:
                    storage.upload(Path(local), storage.as_path(self._request.copy_to) / file.name)


def _new_frames(piece: PlannedPiece) -> int:
    return piece.frames - piece.known.shape[-1]
