"""Samples during training: after each epoch, the same prompts are rendered from the same seeds for comparison."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.config import DEFAULT_PROMPTS, SamplingSettings, TrainSettings
from musicgen_core.devices import compute_dtype, release_memory
from musicgen_core.errors import Cancelled, raise_if_interrupted, reason_of
from musicgen_core.generation.engine import Engine, decodes_fast
from musicgen_core.generation.loudness import normalize, sound_of
from musicgen_core.generation.page import PAGE, write_samples_index
from musicgen_core.generation.page import SAMPLES as SAMPLES_PAGE
from musicgen_core.language import message
from musicgen_core.model.lora import load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.trained_model import Learned, TrainedModel
from musicgen_core.model.weights import BaseModel, lm_of
from musicgen_core.run_layout import PROMPTS, SAMPLES, parse_sample_name, sample_name
from musicgen_core.seeds import streams_of
from musicgen_core.stages import announce
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.training.loop import Trainer
from musicgen_core.training.processes.distributed import PATIENCE, World

logger = logging.getLogger(__name__)


class Samples:
    """Renders `samples/epoch_{n:03d}_{i:02d}.wav` of prompt i after epoch n; epoch 0 is the base model.

    `index.html` plays them all.
    """

    def __init__(
        self, files: RunDirectory, prompts: Sequence[str], model: BaseModel, trainer: Trainer, text: TextEncoder
    ) -> None:
        self._files, self._prompts, self._model, self._trainer, self._text = files, prompts, model, trainer, text
        self._rendered_epochs: set[int] = set()  # with the current prompts and settings
        self._settings = SamplingSettings(duration=trainer.settings.sample_seconds, seed=trainer.settings.seed)

    def begin(self, learned: Callable[[], Learned], cancelled: Callable[[], bool]) -> list[int]:
        """Render the base model, and the epoch that the run resumes after, unless their samples exist.

        Args:
            learned: returns what is trained as it is now.
            cancelled: asked before each step of the generation.

        Returns:
            Which of these epochs have samples now.
        """
        if not self._prompts:
            return []
        trainer = self._trainer
        done = trainer.order.epochs_done(trainer.progress.step)
        self._rendered_epochs = {epoch for epoch in self._read() if epoch <= done}
        wanted: dict[int, Callable[[], Learned | None]] = {0: lambda: None}
        if done and trainer.order.ends_epoch(trainer.progress.step) and trainer.progress.pending is None:
            wanted[done] = learned
        rendered = [
            epoch for epoch, of in wanted.items() if self._is_whole(epoch) or self.render(epoch, of(), cancelled)
        ]
        self._write_page()
        return rendered

    def _is_whole(self, epoch: int) -> bool:
        names = [sample_name(epoch, i) for i in range(len(self._prompts))]
        return epoch in self._rendered_epochs and all(self._files.sample(name) is not None for name in names)

    def render(self, epoch: int, learned: Learned | None, cancelled: Callable[[], bool]) -> bool:
        """Render every prompt, and return whether that succeeded. Errors are logged: they must not end the run.

        Args:
            epoch: the number in the files' names.
            learned: what is being trained; None for the base model.
            cancelled: asked before each step of the generation.

        Raises:
            Cancelled: `cancelled` returned true.
        """
        if not self._prompts:
            return False
        if epoch:
            announce(message("rendering the samples of epoch {number}", number=epoch))
        else:
            announce(message("rendering the samples of the base model"))
        try:
            codes = self._generate(learned, self._in_time(cancelled))
            for i, audio in enumerate(self._codec.decode(torch.stack(codes))):
                wav = storage.as_path(self._files.stage / SAMPLES / sample_name(epoch, i))
                with storage.publish(wav) as path:
                    soundfile.write(path, normalize(sound_of(audio), SAMPLE_RATE), SAMPLE_RATE, format="WAV")
            self._rendered_epochs.add(epoch)
            self._record_epochs()
            self._write_page()
            return True
        except Cancelled:
            raise
        except Exception as error:
            raise_if_interrupted(error)
            logger.warning("no samples of epoch %d: %s: %s", epoch, type(error).__name__, error)
            return False
        finally:
            if self._trainer.computation.device.type == "cuda":  # on a CPU it costs time and saves little memory
                release_memory(self._trainer.computation.device)

    def _write_page(self) -> None:
        """Write the page of all epochs' samples, including those rendered before the run resumed."""
        folder = self._files.stage / SAMPLES
        existing = self._files.sample(PAGE)
        try:
            if existing is not None and not SAMPLES_PAGE.is_at(existing):
                logger.warning("%s is not a page of samples and is kept: move it away to get that page", existing)
                return
        except OSError as error:
            logger.warning("%s can't be read and is kept (%s)", existing, reason_of(error))
            return
        files: dict[int, list[tuple[int, str]]] = {}
        for epoch, prompt, name in self._named():
            if epoch in self._rendered_epochs and prompt < len(self._prompts):
                files.setdefault(epoch, []).append((prompt, name))
        try:
            write_samples_index(storage.as_path(folder), self._prompts, files)
        except Exception as error:  # the next epoch writes it again
            raise_if_interrupted(error)
            logger.warning("%s could not be written (%s)", folder / PAGE, error)

    def _named(self) -> list[tuple[int, int, str]]:
        """Return the epoch, the prompt's number, and the file name of every sample."""
        found = ((parse_sample_name(name), name) for name in self._files.sample_names())
        return [(*numbers, name) for numbers, name in found if numbers is not None]

    @property
    def _content(self) -> dict[str, Any]:
        """The prompts and settings; samples are comparable if these are equal."""
        return {"prompts": list(self._prompts), **self._settings.model_dump(mode="json")}

    def _read(self) -> set[int]:
        """Return the epochs that were rendered with the current prompts and settings, according to prompts.json."""
        path = self._files.sample(PROMPTS)
        known: Any = {}
        with suppress(OSError, ValueError):  # damaged: it is written again
            known = json.loads(storage.read_text(path)) if path is not None else {}
        if not isinstance(known, dict):
            return set()
        epochs, since = known.pop("epochs", None), known.pop("since_epoch", None)
        if known != self._content:
            return set()
        if isinstance(epochs, list):
            return {epoch for epoch in epochs if isinstance(epoch, int)}
        since = since if isinstance(since, int) else 1  # the format of earlier versions
        return {epoch for epoch, _, _ in self._named() if epoch == 0 or epoch >= since}

    def _record_epochs(self) -> None:
        """Write prompts.json: the prompts and settings, and the epochs rendered with them."""
        path = self._files.stage / SAMPLES / PROMPTS
        try:
            content = {**self._content, "epochs": sorted(self._rendered_epochs)}
            storage.write_text(storage.as_path(path), json.dumps(content, indent=1))
        except OSError as error:  # the next start renders these samples again
            logger.warning("%s could not be written (%s)", path, reason_of(error))

    def local_files(self, epoch: int) -> list[tuple[str, Path]]:
        """Return prompts and wavs of an epoch that are on this machine."""
        folder = self._files.stage / SAMPLES
        wavs = [(prompt, folder / sample_name(epoch, i)) for i, prompt in enumerate(self._prompts)]
        return [(prompt, wav) for prompt, wav in wavs if wav.exists()]

    def _generate(self, learned: Learned | None, cancelled: Callable[[], bool]) -> list[Tensor]:
        streams = streams_of(self._settings.seed, self._prompts)
        with self._engine(learned) as engine:  # freed before the codes are decoded
            return engine.generate(self._prompts, self._settings, streams, cancelled=cancelled)

    def _deadline(self) -> float:
        """Return when rendering must end, because the other ranks time out; infinity without other ranks."""
        return time.monotonic() + (PATIENCE.total_seconds() / 2 if self._trainer.world.size > 1 else math.inf)

    def _in_time(self, cancelled: Callable[[], bool]) -> Callable[[], bool]:
        """Return `cancelled`, which raises TimeoutError after the deadline."""
        deadline = self._deadline()

        def ask() -> bool:
            if time.monotonic() > deadline:
                raise TimeoutError("it took too long while other processes wait; give fewer or shorter ones")
            return cancelled()

        return ask

    @cached_property
    def _codec(self) -> Codec:
        return Codec(self._model, self._trainer.computation.device)

    @contextmanager
    def _engine(self, learned: Learned | None) -> Iterator[Engine]:
        trainer, device = self._trainer, self._trainer.computation.device
        guidance = self._model.config.inference_coefficient
        if isinstance(learned, TrainedModel):
            lm = lm_of(self._model.config.decoder, learned.weights, device, compute_dtype(device))
            yield Engine(lm.requires_grad_(False), self._text, guidance)
            return
        if self._merges():
            yield Engine(load_merged(self._model, learned, device, compute_dtype(device)), self._text, guidance)
            return
        # The training model itself: a small GPU has no memory for a merged copy.
        peft_model, lm = trainer.learner.model, trainer.computation.lm
        modes = {module: module.training for module in peft_model.modules()}
        dtype = lm.enc_to_dec_proj.weight.dtype
        half = torch.autocast(device.type, dtype) if dtype in (torch.bfloat16, torch.float16) else nullcontext()
        try:
            peft_model.eval()
            base_alone = peft_model.disable_adapter() if learned is None else nullcontext()
            with trainer.optimizer.evaluated(), half, base_alone:
                yield Engine(lm, self._text, guidance, eager=True)
        finally:
            for module, training in modes.items():
                module.training = training

    def _merges(self) -> bool:
        """Return whether to render with a merged copy of the model.

        With FP8 the training model has no forward pass of its own, and with `train all` it is no longer the base model;
        and where the decoding kernels work and memory suffices, a merged copy is many times faster.
        """
        computation = self._trainer.computation
        if computation.execution.precision == "fp8" or self._trainer.learner.lora is None:
            return True
        weight = computation.lm.enc_to_dec_proj.weight
        if not decodes_fast(weight):
            return False
        free, _ = torch.cuda.mem_get_info(computation.device)
        return free > 2 * weight.element_size() * sum(one.numel() for one in computation.lm.parameters())


def sample_prompts(settings: TrainSettings, world: World) -> Sequence[str]:
    """Return the prompts that a run renders; on a CPU only requested ones, as rendering takes long there."""
    if settings.sample_prompts is not None:
        return [prompt for prompt in settings.sample_prompts if prompt.strip()]
    return DEFAULT_PROMPTS if world.device.type == "cuda" else ()
