"""Evaluate the demo model on unseen clips and prompts by audio analysis alone.

    uv run python -m demo_model.measure --model WORK/model [--clips 40] [--out FILE.json]

The prompts state all parameters of a clip: style, tempo, metre, key, drums. They are compared with measurements of the
generated audio. For reference, the same is measured for the synthesized clips, which is the upper bound, for the clips
through the codec, and against the parameters of other clips, which is chance.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo_model.training import device_with_tf32
from musicgen_core.analysis.features import Classifier, features, frechet_distance_diagonal, si_sdr
from musicgen_core.analysis.harmony import estimate_key, pitch_classes, share_in_key, slides
from musicgen_core.analysis.rhythm import meters, tempo_matches, tempos
from musicgen_core.codec import Codec
from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.generation.engine import Engine
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from musicgen_core.synthesis.captions import Truth
from musicgen_core.synthesis.composing import Clip, compose_many
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.synthesis.styles import ALL_STYLES, STYLES

REFERENCE_SEED, PROMPT_SEED = 60_000_000, 70_000_000
SECONDS, LONG_SECONDS = 10, 30
PROMPTS_AT_ONCE = 64
SLIDING = 0.1  # share of the time; of all styles only the theremin reaches it
Figures = dict[str, float]


class Judge:
    """Audio metrics of music; styles and drums are recognised by classifiers fitted to reference clips."""

    def __init__(self, truths: Sequence[Truth], *renderings: Tensor) -> None:
        """Fit to reference clips.

        Args:
            truths: parameters of the clips, [N].
            renderings: audio of the clips, each [N, samples]: as synthesized, and as decoded by the codec.
        """
        reference = [features(audio) for audio in renderings]
        self._features = reference[0]
        self._styles = Classifier(torch.cat(reference), [truth.style for truth in truths] * len(reference))
        self._drums = Classifier(torch.cat(reference), [str(truth.drums) for truth in truths] * len(reference))

    def styles(self, audio: Tensor) -> list[str]:
        """Return the most similar style of each clip."""
        return self._styles.classify(features(audio))

    def measure(self, audio: Tensor, truths: Sequence[Truth]) -> Figures:
        """Return the share of clips [B, samples] that match their parameters, from 0 to 1.

        The tempo is measured if there is a beat, the metre in styles that have both 3/4 and 4/4, the key if there are
        notes. `by chance` is the result of the same clips against the parameters of others. `in key` is the mean share
        of notes on the scale. The Fréchet distance is that to the reference clips.
        """
        given = features(audio)
        shuffled = np.random.default_rng(0).permutation(len(truths))
        beats = [index for index, truth in enumerate(truths) if truth.beat]
        metric = [index for index in beats if len(ALL_STYLES[truths[index].style].meters) > 1]
        notes = [index for index, truth in enumerate(truths) if truth.pitched]
        bpm, meter = tempos(audio).tolist(), meters(audio).tolist()
        classes = pitch_classes(audio).cpu()
        other = [truths[index] for index in shuffled]
        return {
            "style": _share(of == truth.style for of, truth in zip(self._styles.classify(given), truths, strict=True)),
            "drums": _share(
                of == str(truth.drums) for of, truth in zip(self._drums.classify(given), truths, strict=True)
            ),
            "tempo": _share(tempo_matches(bpm[index], truths[index].bpm) for index in beats),
            "tempo by chance": _share(tempo_matches(bpm[index], other[index].bpm) for index in beats),
            "metre": _share(meter[index] == truths[index].meter for index in metric),
            "in key": _share(share_in_key(classes[i], truths[i].root, truths[i].mode) for i in notes),
            "in key by chance": _share(share_in_key(classes[i], other[i].root, other[i].mode) for i in notes),
            "key": _share(estimate_key(classes[i]) == (truths[i].root, truths[i].mode) for i in notes),
            "slides": _share((slides(audio) > SLIDING).tolist()),
            "fréchet": frechet_distance_diagonal(self._features, given),
        }


def compose_each(styles: Iterable[str], clips: int, first_seed: int, full_caption: bool = False) -> list[Clip]:
    """Compose clips of 10 s, `clips` of each style."""
    return [
        clip
        for number, style in enumerate(styles)
        for clip in compose_many(clips, first_seed + number * clips, style, SECONDS * FRAME_RATE, full_caption)
    ]


def render(bank: SoundBank, clips: Sequence[Clip]) -> Tensor:
    """Return the audio of clips of 10 s, [B, samples]."""
    parts = (clips[start : start + PROMPTS_AT_ONCE] for start in range(0, len(clips), PROMPTS_AT_ONCE))
    return torch.cat([bank.render(part, SECONDS * FRAME_RATE) for part in parts])


def through(codec: Codec, audio: Tensor) -> Tensor:
    """Encode and decode audio [B, samples]."""
    parts = [codec.decode(codec.encode(part[:, None]))[:, 0] for part in audio.split(PROMPTS_AT_ONCE)]
    return torch.cat(parts).to(audio.device)[:, : audio.shape[1]]


def fit_judge(bank: SoundBank, codec: Codec, clips: int) -> Judge:
    """Return a judge fitted to clips of all styles, as synthesized and through the codec."""
    references = compose_each(ALL_STYLES, clips, REFERENCE_SEED)
    audio = render(bank, references)
    return Judge([clip.truth for clip in references], audio, through(codec, audio))


def load_engine(model: BaseModel, device: torch.device | str) -> Engine:
    """Return a model in fp32, ready to generate."""
    return Engine(load_lm(model, device), TextEncoder(model.text_encoder, device), model.config.inference_coefficient)


def generate(engine: Engine, codec: Codec, prompts: Sequence[str | None], settings: SamplingSettings) -> Tensor:
    """Generate music for prompts, each with its own random stream, [B, samples]."""
    audio = []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        part = prompts[start : start + PROMPTS_AT_ONCE]
        codes = engine.generate(part, settings, streams=range(start, start + len(part)))
        audio.append(codec.decode(torch.stack(codes))[:, 0])
    return torch.cat(audio).to(codec.device)


def measure_model(model: BaseModel, clips: int, references: int) -> dict[str, Figures]:
    """Return the rows of the table by their names."""
    device = device_with_tf32()
    bank, codec, engine = SoundBank(device), Codec(model, device), load_engine(model, device)
    judge = fit_judge(bank, codec, references)
    asked = compose_each(STYLES, clips, PROMPT_SEED, full_caption=True)
    truths, prompts = [clip.truth for clip in asked], [clip.caption for clip in asked]
    audio = render(bank, asked)
    decoded = through(codec, audio)
    rows = {"synthesized": judge.measure(audio, truths), "through the codec": judge.measure(decoded, truths)}
    rows["through the codec"]["SI-SDR, dB"] = si_sdr(audio, decoded).mean().item()
    _print(rows)
    for guidance in (1.0, 2.0, 3.0):
        settings = SamplingSettings(duration=SECONDS, guidance=guidance)
        music = generate(engine, codec, prompts, settings)
        rows[f"generated, guidance {guidance:g}"] = judge.measure(music, truths)
        _print(rows)
    settings = SamplingSettings(duration=SECONDS)
    rows["generated without text"] = judge.measure(generate(engine, codec, [None] * len(prompts), settings), truths)
    settings = SamplingSettings(duration=LONG_SECONDS)
    long_samples = generate(engine, codec, prompts, settings)[:, -SECONDS * SAMPLE_RATE :]
    rows[f"last {SECONDS} s of {LONG_SECONDS} s"] = judge.measure(long_samples, truths)
    _print(rows)
    return rows


def _print(rows: dict[str, Figures]) -> None:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    print(f"\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[column]:.2f}' if column in row else '' for column in columns)} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clips", type=int, default=40, help="prompts of each style")
    parser.add_argument("--references", type=int, default=60, help="clips of each style that the judge is fitted to")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    given = parser.parse_args()
    rows = measure_model(find_model(given.model), given.clips, given.references)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))


def _share(figures: Iterable[float]) -> float:
    """Return the mean, or NaN if there are no values."""
    values = list(figures)
    return sum(values) / len(values) if values else float("nan")


if __name__ == "__main__":
    main()
