"""CLAP embeddings of texts and audio in one space (Wu et al. 2023), by transformers' ClapModel."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model.local_files import find_clap
from musicgen_core.stages import announce

Audio = NDArray[np.float32]
Embeddings = NDArray[np.float64]
"""[N, D]"""

WINDOWS_AT_ONCE = {"cpu": 8, "cuda": 64}


class Clap:
    """A CLAP model in fp32, initially on the CPU.

    Args:
        source: a directory in Hugging Face's format, or an id such as `laion/larger_clap_music`.
        option: the option that gave the source, for the advice of an error.

    Raises:
        ModelError: `source` has no usable weights.
    """

    def __init__(self, source: str, option: str = "--clap-weights") -> None:
        announce(message("reading the CLAP weights"))
        from transformers import ClapModel, ClapProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()  # it would break the flows' own progress bar
        directory = find_clap(source, option)
        try:
            self._processor: Any = ClapProcessor.from_pretrained(str(directory), local_files_only=True)
            self._model: Any = ClapModel.from_pretrained(str(directory), dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:  # TypeError: the files are of another model
            raise ModelError(
                message(
                    "the CLAP weights {source} can't be loaded ({reason})",
                    source=source,
                    reason=textwrap.shorten(str(error), 300),
                ),
                message(
                    "Give {option} a directory with a ClapModel and its processor, or an id such as "
                    "laion/larger_clap_music where the Hugging Face Hub can be reached",
                    option=option,
                ),
            ) from error
        self._model.eval().requires_grad_(False)
        self._extractor = self._processor.feature_extractor
        self.rate: int = self._extractor.sampling_rate
        """Samples a second of the audio that the model takes"""
        self.logit_scale = float(self._model.logit_scale_a.exp())
        """Factor of the cosine similarities of a sound with texts, whose softmax was trained"""

    def to(self, device: torch.device) -> None:
        self._model.to(device)

    @torch.inference_mode()
    def of_texts(self, texts: Sequence[str]) -> Embeddings:
        """Return the embeddings of texts, [texts, D], of unit length."""
        tokenizer, found = self._processor.tokenizer, []
        longest = self._model.config.text_config.max_position_embeddings - 2  # RoBERTa's positions start at 2
        for text in texts:
            tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=longest).to(self._model.device)
            found.append(self._model.get_text_features(**tokens).pooler_output)
        return np.asarray(torch.cat(found).double().cpu())

    @torch.inference_mode()
    def of_sounds(self, sounds: Sequence[Audio], rate: int) -> Embeddings:
        """Return the embeddings of sounds, [sounds, D], of unit length, or the mean over windows beyond 10 s.

        Windows are embedded one by one, so that embeddings don't depend on the other sounds.
        """
        found = []
        for sound in sounds:
            heard = soxr.resample(sound, rate, self.rate, quality="HQ")
            points = [self._embed([window]) for window in self._windows(heard)]
            found.append(torch.cat(points).mean(dim=0, keepdim=True))
        return np.asarray(torch.cat(found).double().cpu())

    @torch.inference_mode()
    def of_batch(self, audio: Tensor) -> Tensor:
        """Return the embeddings of sounds as `of_sounds` does, on the model's device; windows are embedded in batches.

        Args:
            audio: mono at `rate`, [B, samples], on any device.

        Returns:
            Embeddings [B, D].
        """
        windows = [window for sound in audio.cpu().numpy() for window in self._windows(sound)]
        at_once = WINDOWS_AT_ONCE[self._model.device.type]
        points = [self._embed(windows[start : start + at_once]) for start in range(0, len(windows), at_once)]
        return torch.cat(points).unflatten(0, (len(audio), -1)).mean(1)

    def _windows(self, sound: Audio) -> list[Audio]:
        """Cut a sound at the model's rate into windows of 10 s; a remainder of less than half of one is left out."""
        size = self._extractor.nb_max_samples
        return [sound[start : start + size] for start in range(0, max(1, len(sound) - size // 2), size)]

    def _embed(self, windows: Sequence[Audio]) -> Tensor:
        """Return the embeddings of windows, [windows, D], of unit length.

        The extractor gets them one by one: it picks at random which sound of a batch is treated as long.
        """
        inputs = [self._extractor(window, sampling_rate=self.rate, return_tensors="pt") for window in windows]
        batch = {name: torch.cat([each[name] for each in inputs]).to(self._model.device) for name in inputs[0]}
        points: Tensor = self._model.get_audio_features(**batch).pooler_output
        return points
