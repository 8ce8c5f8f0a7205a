"""Music of both models to compare: samples of the training run, music rendered now, and CLAP scores of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.data.dataset import Clips
from musicgen_core.devices import release_memory
from musicgen_core.errors import ConfigError
from musicgen_core.evaluation.clap import clap_score, frechet_distance
from musicgen_core.evaluation.request import EvaluateRequest, MusicScores
from musicgen_core.generation.loudness import normalize
from musicgen_core.generation.render import OnProgress, render
from musicgen_core.generation.request import Prompt, RenderRequest
from musicgen_core.language import message
from musicgen_core.model.clap import Clap
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import PROMPTS, RunLayout, parse_sample_name, sample_name

logger = logging.getLogger(__name__)

Audio = NDArray[np.float32]
"""[samples], 32 kHz mono"""
FEWEST_DESCRIBED = 2
"""Minimum number of described clips for a Fréchet distance"""


@dataclass(frozen=True)
class Pair:
    """A prompt rendered by both models, from the same random stream.

    Attributes:
        adapter_label: which state of the adapter was used.
    """

    prompt: str
    base: Audio
    adapter: Audio
    adapter_label: str = message("With adapter")


def pairs_of_training(run_dir: UPath, epoch: int) -> list[Pair]:
    """Return the samples of a training run: of the base model, and after `epoch` or else the last epoch.

    Missing or unreadable samples give an empty list, so that they don't fail the report.
    """
    folder = RunLayout(run_dir).samples
    try:
        prompts = json.loads(storage.read_text(folder / PROMPTS))["prompts"]
        heard = _epoch_with_samples(folder, epoch)
        base, adapted = ([_read(folder / sample_name(number, i)) for i in range(len(prompts))] for number in (0, heard))
        return [
            Pair(*given, message("After epoch {epoch}", epoch=heard))
            for given in zip(prompts, base, adapted, strict=True)
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, soundfile.LibsndfileError) as error:
        logger.warning("the samples in %s are left out of the report: %s", folder, error)
        return []


def _epoch_with_samples(folder: UPath, epoch: int) -> int:
    if (folder / sample_name(epoch, 0)).exists():
        return epoch
    numbers = (parse_sample_name(path.name) for path in folder.glob("epoch_*.wav"))
    epochs = [number[0] for number in numbers if number is not None and number[1] == 0]
    if not any(epochs):
        raise FileNotFoundError(f"{folder} has samples of no epoch")
    return max(epochs)


def render_pairs(
    request: EvaluateRequest, adapter: UPath, prompts: Sequence[str], on_progress: OnProgress
) -> list[Pair]:
    """Render each prompt with both models, as `generate --compare` does."""
    settings = SamplingSettings(duration=request.settings.duration, seed=request.settings.seed)
    with storage.scratch_folder() as folder:
        wanted = RenderRequest(
            out=str(folder),
            prompts=[Prompt(prompt=text) for text in prompts],
            model=request.model,
            settings=settings,
            adapter=str(adapter),
            compare=True,
            spectrograms=False,
            device=request.device,
        )
        pieces = render(wanted, on_progress)
        audio = [_read(storage.as_path(piece.wav)) for piece in pieces]
    return [Pair(text, audio[2 * i], audio[2 * i + 1]) for i, text in enumerate(prompts)]


class ClapScoring:
    """CLAP scores of music generated from the clips' descriptions. Invalid requests fail in the constructor.

    Raises:
        ConfigError: too few clips have a description.
        ModelError: the CLAP weights can't be used.
    """

    def __init__(
        self,
        request: EvaluateRequest,
        adapter: UPath,
        model: BaseModel,
        clips: Clips,
        indices: Sequence[int],
        device: torch.device,
    ) -> None:
        self._request, self._adapter, self._model, self._clips, self._device = request, adapter, model, clips, device
        described = [index for index in indices if clips.description(index)]
        if len(described) < FEWEST_DESCRIBED:
            raise ConfigError(
                message(
                    "{number} of the {total} clips to evaluate on have a description, which is too little "
                    "for CLAP's scores",
                    number=len(described),
                    total=len(indices),
                ),
                message("Leave out --clap-weights, or tokenize with --metadata"),
            )
        self._indices = described[: request.settings.clap_clips]
        self._clap = Clap(str(request.settings.clap_weights))

    def run(self, on_progress: OnProgress) -> MusicScores:
        settings = self._request.settings
        texts = [str(self._clips.description(index)) for index in self._indices]
        pairs = render_pairs(self._request, self._adapter, texts, on_progress)
        release_memory(self._device)
        on_progress(0, 1, message("CLAP's scores"))
        sounds = list(decoded(self._clips, self._indices, settings.duration, Codec(self._model, self._device)))
        self._clap.to(self._device)
        scores = music_scores(self._clap, str(settings.clap_weights), texts, sounds, pairs)
        on_progress(1, 1, message("CLAP's scores"))
        return scores


def music_scores(
    clap: Clap, name: str, texts: Sequence[str], clips: Sequence[Audio], pairs: Sequence[Pair]
) -> MusicScores:
    """Score how well clips, and music rendered from their descriptions, follow the texts and resemble each other.

    Args:
        clap: the CLAP model.
        name: name of its weights.
        texts: descriptions of the clips.
        clips: audio of the clips, at the same loudness as the music.
        pairs: music rendered from each text.
    """
    described = clap.of_texts(texts)
    real, base, adapted = (
        clap.of_sounds(sounds, SAMPLE_RATE)
        for sounds in (clips, [pair.base for pair in pairs], [pair.adapter for pair in pairs])
    )
    return MusicScores(
        clap_weights=name,
        clips=len(clips),
        seconds=sum(map(len, clips)) / len(clips) / SAMPLE_RATE,
        clips_clap_score=clap_score(described, real),
        base_clap_score=clap_score(described, base),
        adapter_clap_score=clap_score(described, adapted),
        base_frechet_distance=frechet_distance(real, base),
        adapter_frechet_distance=frechet_distance(real, adapted),
    )


def decoded(clips: Clips, indices: Sequence[int], seconds: float, codec: Codec) -> Iterator[Audio]:
    """Yield the audio of the beginning of each clip, at the loudness of rendered music."""
    for index in indices:
        codes = clips.codes_of(index)[:, : round(seconds * FRAME_RATE)].astype(np.int64)
        yield normalize(codec.decode(torch.from_numpy(codes)[None])[0, 0].numpy(), SAMPLE_RATE)


def _read(path: UPath) -> Audio:
    with storage.staged(path) as local:
        samples, _ = soundfile.read(local, dtype="float32")
    audio: Audio = samples
    return audio
