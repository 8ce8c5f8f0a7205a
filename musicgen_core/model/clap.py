"""CLAP embeddings of texts and audio in one space (Wu et al. 2023), by transformers' ClapModel."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model.local_files import find_clap
from musicgen_core.stages import announce

Embeddings = NDArray[np.float64]
"""[N, D]"""

S = TypeVar("S", NDArray[np.float32], Tensor)

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
    def of_sounds(self, sounds: Sequence[NDArray[np.float32]], rate: int) -> Embeddings:
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
        """Return the embeddings of sounds as `of_sounds` does, within 1e-4, in batches on the model's device.

        The extractor takes 0.1 s of a CPU for 10 s, and a GPU would wait for it: spectrograms are computed here, unless
        the model fuses several views of a long sound.

        Args:
            audio: mono at `rate`, [B, samples], on any device.

        Returns:
            Embeddings [B, D].
        """
        device = self._model.device
        at_once = WINDOWS_AT_ONCE[device.type]
        means: list[Tensor] = []
        for clips in audio.split(at_once):
            if (self._extractor.truncation, self._extractor.padding) == ("rand_trunc", "repeatpad"):
                points = [self._embed_on_device(window.to(device)) for window in self._windows(clips)]
            else:
                points = [self._embed(list(window.cpu().numpy())) for window in self._windows(clips)]
            means.append(torch.stack(points).mean(0))
        return torch.cat(means)

    def _windows(self, sound: S) -> list[S]:
        """Cut sounds [..., samples] at the model's rate into windows of 10 s; a remainder below 5 s is left out."""
        size = self._extractor.nb_max_samples
        starts = range(0, max(1, sound.shape[-1] - size // 2), size)
        return [sound[..., start : start + size] for start in starts]

    def _embed(self, windows: Sequence[NDArray[np.float32]]) -> Tensor:
        """Return the embeddings of windows, [windows, D], of unit length.

        The extractor gets them one by one: it picks at random which sound of a batch is treated as long.
        """
        inputs = [self._extractor(window, sampling_rate=self.rate, return_tensors="pt") for window in windows]
        batch = {name: torch.cat([each[name] for each in inputs]).to(self._model.device) for name in inputs[0]}
        points: Tensor = self._model.get_audio_features(**batch).pooler_output
        return points

    def _embed_on_device(self, windows: Tensor) -> Tensor:
        """Return the embeddings of windows [N, samples], [N, D], of unit length."""
        spectra = self._log_mel(windows)[:, None]
        is_longer = torch.zeros(len(windows), 1, dtype=torch.bool, device=windows.device)
        points: Tensor = self._model.get_audio_features(input_features=spectra, is_longer=is_longer).pooler_output
        return points

    def _log_mel(self, windows: Tensor) -> Tensor:
        """Return the extractor's mel spectrogram of windows [N, samples] in dB, [N, frames, mels].

        Shorter windows are repeated as often as they fit, and filled with zeros ("repeatpad").
        """
        extractor = self._extractor
        size, samples = extractor.nb_max_samples, windows.shape[1]
        if samples < size:
            repeated = windows.repeat(1, size // samples)
            windows = F.pad(repeated, (0, size - repeated.shape[1]))
        length = extractor.fft_window_size
        hann = torch.hann_window(length, device=windows.device)
        spectrum = torch.stft(windows, length, extractor.hop_length, window=hann, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()  # [N, frequencies, frames]
        filters = torch.from_numpy(extractor.mel_filters_slaney).to(power)  # [frequencies, mels]
        return 10 * (power.transpose(1, 2) @ filters).clamp(min=1e-10).log10()
