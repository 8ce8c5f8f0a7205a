"""CLAP embeddings of texts and audio in one space (Wu et al. 2023), by transformers' ClapModel, and their distance."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model import hub
from musicgen_core.stages import announce

Audio = NDArray[np.float32]
Embeddings = NDArray[np.float64]
"""[N, D]"""


def find_clap(source: str) -> Path:
    """Return the directory of CLAP weights, which are downloaded if `source` is a Hugging Face id.

    Raises:
        ModelError: the weights are missing and can't be downloaded.
    """
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ModelError(
            message("there is no directory {source} of CLAP weights", source=source),
            message(
                "Give --clap-weights a directory with a ClapModel and its processor, or an id such as "
                "laion/larger_clap_music"
            ),
        )
    return hub.fetch(source, hub.CLAP)


class Clap:
    """A CLAP model in fp32, initially on the CPU.

    Args:
        source: a directory in Hugging Face's format, or an id such as `laion/larger_clap_music`.

    Raises:
        ModelError: `source` has no usable weights.
    """

    def __init__(self, source: str) -> None:
        announce(message("reading the CLAP weights"))
        from transformers import ClapModel, ClapProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()  # it would break the flows' own progress bar
        directory = find_clap(source)
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
                    "Give --clap-weights a directory with a ClapModel and its processor, or an id such as "
                    "laion/larger_clap_music where the Hugging Face Hub can be reached"
                ),
            ) from error
        self._model.eval().requires_grad_(False)
        self._extractor = self._processor.feature_extractor

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

        Windows are embedded one by one: the extractor picks at random which sound of a batch is treated as long, and
        where long ones are cut.
        """
        size, own_rate, found = self._extractor.nb_max_samples, self._extractor.sampling_rate, []
        for sound in sounds:
            heard = soxr.resample(sound, rate, own_rate, quality="HQ")
            windows = [heard[start : start + size] for start in range(0, max(1, len(heard) - size // 2), size)]
            points = []
            for window in windows:
                inputs = self._extractor(window, sampling_rate=own_rate, return_tensors="pt").to(self._model.device)
                points.append(self._model.get_audio_features(**inputs).pooler_output)
            found.append(torch.cat(points).mean(dim=0, keepdim=True))
        return np.asarray(torch.cat(found).double().cpu())


def clap_score(texts: Embeddings, sounds: Embeddings) -> float:
    """Return the mean cosine similarity of each text and its sound, from −1 to 1.

    It measures how well music follows texts as far as CLAP understands them, not how good it sounds. The score of real
    clips with their own descriptions is about the best to be expected.
    """
    lengths = np.linalg.norm(texts, axis=1) * np.linalg.norm(sounds, axis=1)
    return float(((texts * sounds).sum(axis=1) / lengths).mean())


def frechet_distance(first: Embeddings, second: Embeddings) -> float:
    """Return the Fréchet distance of Gaussians fitted to two sets of embeddings (Dowson, Landau 1982).

    It is |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½). Over audio embeddings it is the Fréchet audio distance (Kilgour et
    al. 2019). It is biased upwards for few points, the more so the more dimensions there are (Gui et al. 2024):
    compare only distances over equally many points.

    The last trace is the sum of the singular values of A Bᵀ where Σ₁ = AᵀA and Σ₂ = BᵀB. This avoids the root of a
    product that is singular if there are fewer points than dimensions.

    Args:
        first: embeddings [N, D], at least two.
        second: embeddings [M, D], at least two.
    """
    centred = [points - points.mean(axis=0) for points in (first, second)]
    roots = [points / np.sqrt(len(points) - 1) for points in centred]
    between = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    within = sum((root**2).sum() for root in roots)
    shared = np.linalg.norm(roots[0] @ roots[1].T, "nuc")
    return max(0.0, float(between + within - 2 * shared))
