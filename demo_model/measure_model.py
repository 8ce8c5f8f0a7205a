"""Measure the demo model on clips and prompts that it was not trained on, from their audio alone.

    python -m demo_model.measure WORK/model [--clips 40] [--out FILE.json]

Prints the table that README.md shows. The prompts state all parameters of a piece, and what is measured from the
generated audio is compared with them. The same is measured of the synthesized pieces themselves, which is the most that
can be reached, and of the pieces through the codec.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from demo_model.training import pick_device
from musicgen_core.analysis.classifier import Classifier, features
from musicgen_core.analysis.distances import frechet_distance_diagonal, si_sdr
from musicgen_core.analysis.harmony import pitch_classes, share_in_key
from musicgen_core.analysis.rhythm import meters, tempo_matches, tempos
from musicgen_core.codec import Codec
from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.generation.engine import Engine
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from musicgen_core.synthesis.composing import Clip, compose
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.synthesis.styles import ALL_STYLES, STYLES

REFERENCE_SEED, PROMPT_SEED = 60_000_000, 70_000_000
REFERENCES = 60  # clips of each style that the classifiers are fitted to
SECONDS, LONG_SECONDS = 10, 30
Row = dict[str, float]


class Judge:
    """Classifiers of style and of drums, fitted to synthesized clips and to the same through the codec."""

    def __init__(self, bank: SoundBank, codec: Codec, references: int, styles: Sequence[str] = tuple(ALL_STYLES)) -> None:
        clips = [compose(REFERENCE_SEED + index, style) for style in styles for index in range(references)]
        audio = render(bank, clips)
        self._fit(torch.cat([features(audio), features(through(codec, audio))]), clips)
        self.references = features(audio)

    def _fit(self, inputs: Tensor, clips: Sequence[Clip]) -> None:
        self._style = Classifier(inputs, [clip.truth.style for clip in clips] * 2)
        self._drums = Classifier(inputs, [str(clip.truth.drums) for clip in clips] * 2)

    def styles(self, audio: Tensor) -> list[str]:
        """Return the style of each clip."""
        return self._style.classify(features(audio))

    def measure(self, audio: Tensor, asked: Sequence[Clip]) -> Row:
        """Compare clips [B, samples] with what was asked for; all but the last value are shares of clips or notes."""
        truths = [clip.truth for clip in asked]
        pitched = [index for index, truth in enumerate(truths) if truth.pitched]
        rhythmic = [index for index, truth in enumerate(truths) if truth.beat]
        metric = [index for index in rhythmic if len(ALL_STYLES[truths[index].style].meters) > 1]
        classes = pitch_classes(audio)
        bpm, found_meters = tempos(audio).tolist(), meters(audio).tolist()
        of_others = random.Random(0).sample(rhythmic, len(rhythmic))
        found = features(audio)
        styles, drums = self._style.classify(found), self._drums.classify(found)
        return {
            "style": share(style == truth.style for style, truth in zip(styles, truths, strict=True)),
            "notes in key": mean(share_in_key(classes[i], truths[i].root, truths[i].mode) for i in pitched),
            "tempo within 5 %": share(tempo_matches(bpm[i], truths[i].bpm) for i in rhythmic),
            "tempo by chance": share(
                tempo_matches(bpm[i], truths[other].bpm) for i, other in zip(rhythmic, of_others, strict=True)
            ),
            "metre": share(found_meters[i] == truths[i].meter for i in metric),
            "drums": share(found == str(truth.drums) for found, truth in zip(drums, truths, strict=True)),
            "Fréchet distance": frechet_distance_diagonal(self.references, found),
        }


def share(hits: object) -> float:
    """Return the share of true values."""
    return mean(float(hit) for hit in hits)  # type: ignore[attr-defined]


def mean(values: object) -> float:
    """Return the mean; NaN of nothing."""
    listed = list(values)  # type: ignore[call-overload]
    return sum(listed) / len(listed) if listed else float("nan")


def render(bank: SoundBank, clips: Sequence[Clip], seconds: int = SECONDS) -> Tensor:
    """Return the audio of clips, [B, samples]."""
    frames = seconds * FRAME_RATE
    return torch.cat([bank.render(clips[i : i + 64], frames) for i in range(0, len(clips), 64)])


def through(codec: Codec, audio: Tensor) -> Tensor:
    """Encode and decode audio [B, samples]."""
    parts = [codec.decode(codec.encode(part[:, None]))[:, 0] for part in audio.split(64)]
    return torch.cat(parts).to(audio.device)[:, : audio.shape[1]]


def generate(engine: Engine, codec: Codec, prompts: Sequence[str | None], settings: SamplingSettings) -> Tensor:
    """Return music for prompts, each with its own seed, [B, samples] on the codec's device."""
    pieces = []
    for start in range(0, len(prompts), 128):
        part = prompts[start : start + 128]
        codes = engine.generate(part, settings, streams=range(start, start + len(part)))
        pieces += [codec.decode(some)[:, 0] for some in torch.stack(codes).split(32)]
    return torch.cat(pieces).to(codec.device)


def load_engine(model: BaseModel, device: torch.device) -> Engine:
    """Return the model in fp32, ready to generate."""
    return Engine(load_lm(model, device), TextEncoder(model.text_encoder, device), model.config.inference_coefficient)


def measure_all(model: BaseModel, clips: int, references: int) -> dict[str, Row]:
    """Return the rows of the table, by their names."""
    device = pick_device()
    bank, codec = SoundBank(device), Codec(model, device)
    engine = load_engine(model, device)
    judge = Judge(bank, codec, references)
    asked = [compose(PROMPT_SEED + i, style, full_caption=True) for style in STYLES for i in range(clips)]
    prompts = [clip.caption for clip in asked]
    audio = render(bank, asked)
    decoded = through(codec, audio)
    rows = {"synthesized": judge.measure(audio, asked), "through the codec": judge.measure(decoded, asked)}
    rows["through the codec"]["SI-SDR in dB"] = si_sdr(audio, decoded).mean().item()
    for style in STYLES:
        of_style = [index for index, clip in enumerate(asked) if clip.truth.style == style]
        rows[f"codec, {style}"] = {"SI-SDR in dB": si_sdr(audio[of_style], decoded[of_style]).mean().item()}
    for guidance in (3.0, 2.0, 1.0):
        settings = SamplingSettings(duration=SECONDS, guidance=guidance)
        rows[f"generated, guidance {guidance:g}"] = judge.measure(generate(engine, codec, prompts, settings), asked)
    settings = SamplingSettings(duration=SECONDS)
    rows["generated without text"] = judge.measure(generate(engine, codec, [None] * len(prompts), settings), asked)
    few = [index for index in range(len(asked)) if index % clips < max(1, clips // 2)]
    pieces = generate(engine, codec, [prompts[i] for i in few], SamplingSettings(duration=LONG_SECONDS))
    rows["last 10 s of 30 s"] = judge.measure(pieces[:, -SECONDS * SAMPLE_RATE :], [asked[i] for i in few])
    return rows


def table(rows: dict[str, Row]) -> str:
    """Return the rows as a Markdown table."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{row[column]:.2f}' if column in row else '' for column in columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clips", type=int, default=40, help="prompts of each style")
    parser.add_argument("--references", type=int, default=REFERENCES)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = measure_all(find_model(given.model), given.clips, given.references)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
