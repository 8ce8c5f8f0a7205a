"""Music of both models to compare: samples of the training run, music generated now, and CLAP scores of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import torch
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec, Codes
from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.data.dataset import Clips
from musicgen_core.devices import pick_device
from musicgen_core.errors import ConfigError
from musicgen_core.evaluation.clap import clap_score, frechet_distance
from musicgen_core.evaluation.request import EvaluateRequest, MusicScores
from musicgen_core.generation.loudness import Audio, mono_of, normalize, sound_of
from musicgen_core.generation.plan import cache_bytes
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import OnProgress, render
from musicgen_core.generation.request import RenderRequest
from musicgen_core.language import message
from musicgen_core.model.clap import Clap
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import PROMPTS, RunLayout, parse_sample_name, sample_name
from musicgen_core.stages import announce
from musicgen_core.texts import MAX_CHARACTERS
from musicgen_core.wording import counted

logger = logging.getLogger(__name__)

FEWEST_DESCRIBED = 2
"""Minimum number of described clips for a Fréchet distance"""
MOST_ON_CPU, CPU_CACHE_BYTES = 8, 2**31
"""Limits of a batch on a CPU: eight samples take a fifth of the time of eight single ones"""


@dataclass(frozen=True)
class Pair:
    """A prompt rendered by both models, from the same random stream.

    Attributes:
        adapter_label: which state of the adapter was used.
        base_codes: codes of the base model's music, [K, frames]; None where only the audio is known.
        adapter_codes: likewise of the adapter's.
    """

    prompt: str
    base: Audio
    adapter: Audio
    adapter_label: str = message("With adapter")
    base_codes: Codes | None = None
    adapter_codes: Codes | None = None


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
    request: EvaluateRequest,
    adapters: Sequence[WeightedAdapter],
    prompts: Sequence[Prompt],
    on_progress: OnProgress,
    batch_size: int | None = None,
) -> list[Pair]:
    """Render each prompt with both models, as `generate --compare` does."""
    settings = SamplingSettings(duration=request.settings.duration, seed=request.settings.seed)
    with storage.scratch_folder() as folder:
        wanted = RenderRequest(
            out=str(folder),
            prompts=prompts,
            model=request.model,
            settings=settings,
            adapters=adapters,
            compare=True,
            spectrograms=False,
            save_codes=True,
            batch_size=batch_size,
            device=request.device,
        )
        pieces = render(wanted, on_progress)
        audio = [_read(storage.as_path(piece.wav)) for piece in pieces]
        codes = [np.load(str(storage.as_path(piece.wav).with_suffix(".npy"))) for piece in pieces]
    return [
        Pair(
            prompt=prompt.prompt,
            base=audio[2 * i],
            adapter=audio[2 * i + 1],
            base_codes=codes[2 * i],
            adapter_codes=codes[2 * i + 1],
        )
        for i, prompt in enumerate(prompts)
    ]


def render_described(
    request: EvaluateRequest,
    adapters: Sequence[WeightedAdapter],
    model: BaseModel,
    clips: Clips,
    indices: Sequence[int],
    on_progress: OnProgress,
) -> list[Pair]:
    """Render the description of each clip with both models, in the length of the clip or of the settings if shorter.

    On a CPU, samples are generated in one batch as far as their caches take at most `CPU_CACHE_BYTES`: no one relies on
    the codes of these samples, which may differ in the rounding from those of samples generated alone.
    """
    if not indices:
        return []
    seconds = request.settings.duration
    announce(
        message(
            "making {samples} of up to {seconds:.3g} s: one of each model from each of {clips}",
            samples=counted(2 * len(indices), "sample"),
            seconds=seconds,
            clips=counted(len(indices), "description"),
        )
    )
    prompts = [
        Prompt(
            prompt=str(clips.description(index))[:MAX_CHARACTERS],
            duration=min(seconds, int(clips.frames[index]) / FRAME_RATE),
        )
        for index in indices
    ]
    batch_size = None
    if pick_device(request.device).type == "cpu":
        cache = 2 * cache_bytes(model.config.decoder, round(seconds * FRAME_RATE))  # fp32
        batch_size = max(1, min(MOST_ON_CPU, len(prompts), CPU_CACHE_BYTES // cache))
    return render_pairs(request, adapters, prompts, on_progress, batch_size)


class ClapScoring:
    """CLAP scores of music generated from the clips' descriptions. Invalid requests fail in the constructor.

    Args:
        described: indices of the clips to evaluate on that have a description.
        total: number of all clips to evaluate on.

    Attributes:
        clips: number of clips from whose descriptions music is needed, the first of `described`.

    Raises:
        ConfigError: too few clips have a description.
        ModelError: the CLAP weights can't be used.
    """

    def __init__(
        self, request: EvaluateRequest, clips: Clips, described: Sequence[int], total: int, device: torch.device
    ) -> None:
        self._settings, self._all_clips, self._device = request.settings, clips, device
        if len(described) < FEWEST_DESCRIBED:
            raise ConfigError(
                message(
                    "{number} of the {total} clips to evaluate on have a description, which is too little "
                    "for CLAP's scores",
                    number=len(described),
                    total=total,
                ),
                message("Leave out --clap-weights, or tokenize with --metadata"),
            )
        self._indices = described[: request.settings.clap_clips]
        self.clips = len(self._indices)
        self._clap = Clap(str(request.settings.clap_weights))

    def run(self, pairs: Sequence[Pair], codec: Codec, on_progress: OnProgress) -> MusicScores:
        """Score music of both models.

        Args:
            pairs: music from the descriptions of the clips, in their order, of the first `clips` at least.
        """
        texts = [str(self._all_clips.description(index)) for index in self._indices]
        on_progress(0, 1, message("CLAP's scores"))
        sounds = list(decoded(self._all_clips, self._indices, self._settings.duration, codec))
        self._clap.to(self._device)
        name = str(self._settings.clap_weights)
        scores = music_scores(self._clap, name, texts, sounds, pairs[: self.clips])
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
        clap.of_sounds(list(map(mono_of, sounds)), SAMPLE_RATE)
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
        yield normalize(sound_of(codec.decode(torch.from_numpy(codes)[None])[0]), SAMPLE_RATE)


def _read(path: UPath) -> Audio:
    with storage.staged(path) as local:
        samples, _ = soundfile.read(local, dtype="float32")
    audio: Audio = samples
    return audio
