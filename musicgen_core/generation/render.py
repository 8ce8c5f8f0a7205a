"""Prompts → `generated_000.wav`, `generated_000.json`, …"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.devices import compute_dtype, pick_device
from musicgen_core.errors import ConfigError
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.loudness import normalize
from musicgen_core.generation.streams import streams_of
from musicgen_core.model.lora import Adapter, find_adapter, load_adapter, load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, file_sha256, find_model, guidance_defaults


@dataclass(frozen=True)
class RenderRequest:
    """What to render, with what, and where to.

    Attributes:
        out: the directory for the files.
        prompts: texts.
        model: `debug`, a directory or a Hugging Face id.
        adapter: a `*_lora.pt` or a run directory; None for the base model.
        compare: render each prompt with the base model first, from the same seed.
        save_codes: keep the codes as `.npy`, too.
        copy_to: a place for a second copy, or None.
    """

    out: str
    prompts: Sequence[str]
    model: str
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    adapter: str | None = None
    compare: bool = False
    save_codes: bool = False
    device: str = "auto"
    copy_to: str | None = None


@dataclass(frozen=True)
class Rendered:
    """One piece of music: its wav's path, prompt, duration, and whether the adapter played."""

    wav: str
    prompt: str
    seconds: float
    with_adapter: bool


@dataclass(frozen=True)
class _Voice:
    """A model to render with: the base, or the base with the adapter."""

    engine: Engine
    adapter: dict[str, Any] | None


def read_prompts(path: str) -> list[str]:
    """Prompts from a text file, one a line; empty lines are left out.

    Raises:
        ConfigError: the file is missing or holds none.
    """
    try:
        text = storage.as_path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the prompts file {path} can't be read ({error})", "Check the path") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ConfigError(f"the prompts file {path} holds no prompts", "Write one a line")
    return prompts


def render(
    request: RenderRequest,
    on_step: Callable[[int, int, int], None] = lambda piece, done, total: None,
    on_piece: Callable[[Rendered], None] = lambda piece: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Rendered]:
    """Render every prompt.

    Args:
        on_step: called after each step with the piece's number from 0, the steps done and in all.
        on_piece: called when a piece's files are written.
        cancelled: asked before each step.

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
    voices = list(_voices(request, model, device))
    codec = Codec(model, device)
    streams = streams_of(request.settings.seed, request.prompts)
    pieces = []
    for number, prompt in enumerate(request.prompts):
        # One prompt at a time: its codes then can't depend on any other.
        for voice_number, voice in enumerate(voices):
            index = number * len(voices) + voice_number

            def report(done: int, total: int, index: int = index) -> None:
                on_step(index, done, total)

            started = time.monotonic()
            stream = streams[number]
            codes = voice.engine.generate([prompt], request.settings, [stream], report, cancelled)
            audio = normalize(codec.decode(codes)[0, 0].numpy(), SAMPLE_RATE)
            sidecar = {
                "prompt": prompt,
                "seed": request.settings.seed,
                "stream": stream,
                "duration": len(audio) / SAMPLE_RATE,
                "model": model.identity,
                "adapter": voice.adapter,
                "sampling": {
                    **request.settings.model_dump(mode="json"),
                    "guidance": voice.engine.coefficient(request.settings),
                },
                "engine_batch_size": 1,
                "device": str(device),
                "render_seconds": round(time.monotonic() - started, 3),
                "versions": {name: version(name) for name in ("torch", "audiocraft", "transformers")},
            }
            wav = _write(request, index, audio, codes[0], sidecar)
            piece = Rendered(wav, prompt, len(audio) / SAMPLE_RATE, voice.adapter is not None)
            pieces.append(piece)
            on_piece(piece)
    return pieces


def _voices(request: RenderRequest, model: BaseModel, device: torch.device) -> Iterator[_Voice]:
    text = TextEncoder(model.text_encoder, device)
    guidance = guidance_defaults(model).inference_coefficient
    adapter: Adapter | None = None
    described: dict[str, Any] | None = None
    if request.adapter is not None:
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
    if adapter is None or request.compare:
        yield _Voice(Engine(load_merged(model, None, device, compute_dtype(device)), text, guidance), None)
    if adapter is not None:
        yield _Voice(Engine(load_merged(model, adapter, device, compute_dtype(device)), text, guidance), described)


def _write(request: RenderRequest, index: int, audio: np.ndarray, codes: torch.Tensor, sidecar: dict[str, Any]) -> str:
    """Write one piece's files, the sidecar last, and their second copies."""
    out = storage.as_path(request.out)
    wav = out / f"generated_{index:03d}.wav"
    written = [wav]
    with storage.publish(wav) as path:
        soundfile.write(path, audio, SAMPLE_RATE, subtype="PCM_16", format="WAV")
    if request.save_codes:
        written.append(wav.with_suffix(".npy"))
        with storage.publish(written[-1]) as path, open(path, "wb") as npy:
            np.save(npy, codes.numpy().astype(np.uint16))
    written.append(wav.with_suffix(".json"))
    storage.write_text(written[-1], json.dumps(sidecar, indent=1, ensure_ascii=False))
    if request.copy_to:
        for file in written:
            with storage.staged(file) as local:
                storage.upload(Path(local), storage.as_path(request.copy_to) / file.name)
    return str(wav)


def plot_spectrogram(wav: str, target: Path, title: str) -> None:
    """Draw a wav's spectrogram as a PNG: time in s, frequency in Hz on a logarithmic scale, level in dB."""
    from matplotlib.figure import Figure

    with storage.staged(storage.as_path(wav)) as local:
        samples, rate = soundfile.read(local)
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    _, _, _, image = axes.specgram(samples, NFFT=1024, noverlap=768, Fs=rate, cmap="magma", vmin=-140, vmax=-20)
    axes.set(xlabel="time (s)", ylabel="frequency (Hz)", title=title, yscale="symlog", ylim=(50, rate / 2))
    figure.colorbar(image, ax=axes, label="dB")
    figure.savefig(target, dpi=120, format="png")
