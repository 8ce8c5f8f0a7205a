"""Music while it trains: the same prompts from the same seeds after each epoch, so that the change can be heard."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

import soundfile
import torch
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.config import DEFAULT_PROMPTS, SamplingSettings, TrainSettings
from musicgen_core.errors import Cancelled, raise_if_interrupted
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.loudness import normalize
from musicgen_core.generation.streams import streams_of
from musicgen_core.model.lora import Adapter, load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, guidance_defaults
from musicgen_core.training.distributed import World
from musicgen_core.training.loop import Trainer

logger = logging.getLogger(__name__)


class Samples:
    """`epoch_{n:03d}_{i:02d}.wav` of prompt i after epoch n; epoch 0 is the base model, without the adapter.

    Args:
        folder: where they go.
        text: encodes the prompts.
    """

    def __init__(
        self, folder: Path, prompts: Sequence[str], model: BaseModel, trainer: Trainer, text: TextEncoder
    ) -> None:
        self._folder, self._prompts, self._model, self._trainer, self._text = folder, prompts, model, trainer, text
        self._settings = SamplingSettings(duration=trainer.settings.sample_seconds, seed=trainer.settings.seed)

    def begin(self, adapter: Adapter, cancelled: Callable[[], bool]) -> None:
        """Render the base model, and the epoch that just ended, if any, where a killed training didn't come to it."""
        missing: list[tuple[int, Adapter | None]] = [(0, None)]
        step = self._trainer.progress.step
        if step and self._trainer.order.ends_epoch(step) and self._trainer.progress.pending is None:
            missing.append((self._trainer.order.epoch_of(step), adapter))
        for epoch, of in missing:
            if not all(self._wav(epoch, i).exists() for i in range(len(self._prompts))):
                self.render(epoch, of, cancelled)

    def render(self, epoch: int, adapter: Adapter | None, cancelled: Callable[[], bool]) -> None:
        """Render every prompt. What goes wrong is logged: a sample is not worth the training.

        Args:
            adapter: as it is being trained; None for the base model.

        Raises:
            Cancelled: told to stop meanwhile.
        """
        if not self._prompts:
            return
        try:
            with self._engine(adapter) as engine:
                streams = streams_of((self._settings.seed, prompt) for prompt in self._prompts)
                codes = engine.generate(self._prompts, self._settings, streams, cancelled=cancelled)
            for i, audio in enumerate(self._codec.decode(torch.stack(codes))):
                with storage.publish(self._wav(epoch, i)) as path:
                    soundfile.write(path, normalize(audio[0].numpy(), SAMPLE_RATE), SAMPLE_RATE, format="WAV")
        except Cancelled:
            raise
        except Exception as error:
            raise_if_interrupted(error)
            logger.warning("no samples of epoch %d: %s: %s", epoch, type(error).__name__, error)
        finally:
            gc.collect()
            if self._trainer.computation.device.type == "cuda":
                torch.cuda.empty_cache()

    def _wav(self, epoch: int, prompt: int) -> UPath:
        return storage.as_path(self._folder / f"epoch_{epoch:03d}_{prompt:02d}.wav")

    @cached_property
    def _codec(self) -> Codec:
        return Codec(self._model, self._trainer.computation.device)

    @contextmanager
    def _engine(self, adapter: Adapter | None) -> Iterator[Engine]:
        trainer, device = self._trainer, self._trainer.computation.device
        guidance = guidance_defaults(self._model).inference_coefficient
        if trainer.computation.execution.precision == "fp8":  # whose training model can't run by itself any more
            merged = load_merged(self._model, adapter, device, torch.bfloat16)
            yield Engine(merged, self._text, guidance)
            return
        # As it is, without a second copy of the weights: on a small GPU there is no room for one.
        peft_model, lm = trainer.model, trainer.computation.lm
        modes = {module: module.training for module in peft_model.modules()}
        dtype = lm.enc_to_dec_proj.weight.dtype
        half = torch.autocast(device.type, dtype) if dtype in (torch.bfloat16, torch.float16) else nullcontext()
        try:
            peft_model.eval()
            with half, peft_model.disable_adapter() if adapter is None else nullcontext():
                yield Engine(lm, self._text, guidance, eager=True)
        finally:
            for module, training in modes.items():
                module.training = training


def sample_prompts(settings: TrainSettings, world: World) -> Sequence[str]:
    """What a training renders; on a CPU only what is asked for, as it takes longer there than many a training."""
    if settings.sample_prompts is not None:
        return settings.sample_prompts
    return DEFAULT_PROMPTS if world.device.type == "cuda" else ()
