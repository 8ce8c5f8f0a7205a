"""Captioning end to end: archives to measured clips, and the share of each measurement.

    python -m bench.captioning --device cuda --workdir DIR [--archives 4] [--clips 500] [--seconds 30] [--workers 4]
                               [--clap]

Builds zip archives of 44.1 kHz stereo 16-bit clips as `bench.tokenize` does, then measures all of them as the flow
does, several archives at a time, and each measurement alone on audio that is already in the device's memory. With
--clap, tags are those of a CLAP model with random weights of the shape of laion/larger_clap_music.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchaudio.functional import resample

from bench.tokenize import Table, make_archives
from musicgen_core.captioning.archive import measure_archive
from musicgen_core.captioning.clap import ClapTagger
from musicgen_core.captioning.key import measure_key
from musicgen_core.captioning.levels import clipped_share, integrated_loudness, silent_share
from musicgen_core.captioning.measuring import BATCH_SECONDS, SPEECH_RATE, Measurer
from musicgen_core.captioning.speech import load_vad, measure_speech
from musicgen_core.captioning.tagger_settings import TaggerSettings
from musicgen_core.captioning.taggers import find_tagger
from musicgen_core.captioning.tempo import measure_tempo
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import find_archives
from musicgen_core.devices import pick_device


def measure_alone(table: Table, measurer: Measurer, seconds: float, repeats: int) -> None:
    device = measurer.device
    clips = max(1, int(BATCH_SECONDS[device.type] / seconds))
    audio = 0.1 * torch.randn(clips, round(SAMPLE_RATE * seconds), device=device)
    low = audio[:, ::2].contiguous()
    heard = low if measurer.tagger.rate == SPEECH_RATE else resample(audio, SAMPLE_RATE, measurer.tagger.rate)
    measurements: dict[str, Callable[[], object]] = {
        "tags": partial(measurer.tagger.tag, heard),
        "tempo": partial(measure_tempo, audio),
        "key": partial(measure_key, audio),
        "speech": partial(measure_speech, load_vad(device), low),
        "loudness, silence, clipping": partial(_levels, audio),
    }
    for name, measure in measurements.items():
        with torch.inference_mode():
            measure()
            with table.timed(f"{name} alone, {clips} clips", clips * seconds * repeats):
                for _ in range(repeats):
                    measure()


def _levels(audio: Tensor) -> tuple[Tensor, ...]:
    return integrated_loudness(audio), silent_share(audio), clipped_share(audio)


def random_clap(folder: Path) -> Path:
    """Write a CLAP model of the shape of laion/larger_clap_music with random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    audio = {"depths": [2, 2, 12, 2], "hidden_size": 1024, "patch_embeds_hidden_size": 128}
    torch.manual_seed(0)
    ClapModel(ClapConfig(audio_config=audio)).save_pretrained(folder)
    ClapProcessor(feature_extractor=ClapFeatureExtractor(truncation="rand_trunc"), tokenizer=fast).save_pretrained(
        folder
    )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--archives", type=int, default=4)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--clap", action="store_true")
    options = parser.parse_args()

    device, tagger = pick_device(options.device), None
    if options.clap:
        model = str(random_clap(options.workdir / "clap"))
        tagger = ClapTagger(find_tagger(TaggerSettings(tagger="clap", tagger_model=model)), device)
    table, measurer = Table(), Measurer(device, tagger)
    total = make_archives(options.workdir / "archives", options.archives, options.clips, options.seconds, mixed=False)
    found = find_archives(options.workdir / "archives")
    measure = partial(measure_archive, measurer=measurer, settings=TokenizeSettings())
    measure(found[0], limit=max(1, options.clips // 10))  # the first calls compile and tune
    with (
        table.timed(f"archives to measurements, {options.workers} at a time", total),
        ThreadPoolExecutor(options.workers) as pool,
    ):
        for result in pool.map(measure, found):
            assert not result.rejected, result.rejected[:3]
    measure_alone(table, measurer, options.seconds, options.repeats)
    print("\n".join(table.rows))


if __name__ == "__main__":
    main()
