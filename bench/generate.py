"""Generation speed with random weights of a real shape: this project, audiocraft, Hugging Face.

    python -m bench.random_large LARGE
    python -m bench.generate LARGE [--subjects …] [--batches 1 8 32] [--seconds 30] [--peer-seconds 5]

Each generates codes with top-k 250 and a guidance of 3, and decodes them to audio; on a GPU in bf16, audiocraft in its
default fp16. A short batch of the same size is generated before timing starts, and its compile time is reported
separately. Hugging Face's model has the same shape and its own weights. Each subject runs in a separate process, so a
failure doesn't affect the others. A model that takes a melody follows one: noise of the sample's length, whose stems
aren't separated. Last, guided logits in bf16, with 8-bit weights and with 8-bit caches are compared with those in fp32.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codec import Codec
from musicgen_core.codes import CODEBOOKS, FRAME_RATE, SAMPLE_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.devices import pick_device
from musicgen_core.generation.engine import Engine, decodes_fast, frames_of
from musicgen_core.generation.melody import Melody
from musicgen_core.generation.sampling import guide
from musicgen_core.model.decoder import Condition
from musicgen_core.model.local_files import TEXT_ENCODER
from musicgen_core.model.lora import load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_model

PROMPT = "upbeat dance with a bass"
"""26 tokens for the debug model's character tokenizer, as many as some 15 words have for T5's"""
SHORT_SECONDS = 1.2  # its sequence length is divisible by 16 as that of 30 s, which specializes the kernels
GUIDANCE = 3.0
SEVERAL = 4
"""Batch size of which the logits are compared, too"""
Make = Callable[[int, float], Any]
"""Takes batch size and seconds per sample; returns the audio"""


def project(model: BaseModel, device: torch.device, bits: int = 16, cache_bits: int = 16) -> Make:
    lm = load_merged(model, None, device, _half(device))
    engine = Engine(lm, TextEncoder(model.text_encoder, device), GUIDANCE, bits, cache_bits)
    codec = Codec(model, device)
    tune = Melody(noise(), path="", sha256="")

    def make(batch: int, seconds: float) -> Any:
        settings = SamplingSettings(duration=seconds)
        codes = engine.generate([PROMPT] * batch, settings, range(batch), melodies=[tune] * batch)
        return codec.decode(torch.stack(codes))

    return make


def noise() -> torch.Tensor:
    """Return 30 s of noise, as a melody."""
    return torch.rand(30 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0)) - 0.5


def audiocraft(model: BaseModel, device: torch.device) -> Make:
    if model.chroma_frames:
        leave_stems_together()
    loaders = import_audiocraft("audiocraft.models.loaders")
    names = {"t5-small", "t5-base"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # its T5 by a name that it knows
        for name in names:
            Path(name).symlink_to(model.directory / TEXT_ENCODER)
        lm = loaders.load_lm_model(str(model.directory), device=str(device))
    codec = loaders.load_compression_model(str(model.directory), device=str(device))
    musicgen = import_audiocraft("audiocraft.models").MusicGen("random", codec, lm, max_duration=30)

    def make(batch: int, seconds: float) -> Any:
        musicgen.set_generation_params(duration=seconds, top_k=250, cfg_coef=GUIDANCE)
        if model.chroma_frames:
            return musicgen.generate_with_chroma([PROMPT] * batch, noise().expand(batch, 1, -1), SAMPLE_RATE)
        return musicgen.generate([PROMPT] * batch)

    return make


def leave_stems_together() -> None:
    """Let audiocraft read melodies from whole mixes: Demucs' weights can't be had, and librosa isn't installed."""
    import demucs.pretrained
    from transformers.audio_utils import chroma_filter_bank

    separator: Any = SimpleNamespace(sources=["drums", "bass", "other", "vocals"])
    separator.to = lambda device: separator
    pretrained: Any = demucs.pretrained
    pretrained.get_model = lambda name: separator

    def chroma(sr: int, n_fft: int, tuning: float, n_chroma: int) -> Any:
        return chroma_filter_bank(n_fft, n_chroma, sr, tuning).astype("float32")

    module: Any = import_audiocraft("audiocraft.modules.chroma")
    module.filters = SimpleNamespace(chroma=chroma)
    conditioner = import_audiocraft("audiocraft.modules.conditioners").ChromaStemConditioner
    conditioner._get_stemmed_wav = staticmethod(lambda wav, rate: wav.mean(1, keepdim=True))


def huggingface(model: BaseModel, device: torch.device, is_static: bool) -> Make:
    import transformers
    from transformers import DynamicCache, EncodecConfig, EncoderDecoderCache, StaticCache
    from transformers import T5Config as TextConfig

    shape = load_merged(model, None, "meta", torch.float32).config
    kind = "MusicgenMelody" if shape.takes_melody else "Musicgen"
    decoder = getattr(transformers, f"{kind}DecoderConfig")(
        vocab_size=2048,
        hidden_size=shape.dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        ffn_dim=shape.ffn_dim,
        num_codebooks=shape.codebooks,
        audio_channels=shape.codes.channels,
    )
    codec = EncodecConfig(
        sampling_rate=SAMPLE_RATE,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=2048,
        target_bandwidths=[2.2],
        num_filters=64,
        hidden_size=128,
        codebook_dim=128,
        use_causal_conv=False,
    )
    text = TextConfig.from_pretrained(model.directory / TEXT_ENCODER)
    config = getattr(transformers, f"{kind}Config")(
        text_encoder=text.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict()
    )
    with torch.device(device):
        hf: Any = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    hf = hf.to(_half(device)).eval()
    tokenizer = TextEncoder(model.text_encoder, device).tokenizer

    class Static(StaticCache):
        def get_seq_length(self, layer_idx: int = 0) -> int:
            return int(super().get_seq_length(layer_idx))  # it is added to tensors on the CPU

    def make(batch: int, seconds: float) -> Any:
        inputs = tokenizer([PROMPT] * batch, return_tensors="pt").to(device)
        steps = frames_of(seconds) + CODEBOOKS - 1  # the largest delay
        more: dict[str, Any] = {}
        if shape.takes_melody:
            pitch_classes = torch.arange(shape.chroma_frames, device=device).expand(batch, -1) % 12
            more["input_features"] = F.one_hot(pitch_classes, 12).to(hf.dtype)
        if is_static:  # MusicGen's generate makes none, whatever `cache_implementation` says
            own = Static(config=hf.decoder.config, max_cache_len=steps + 2)
            of_text = DynamicCache(config=hf.decoder.config)
            more = {"past_key_values": EncoderDecoderCache(own, of_text), "disable_compile": True}
        return hf.generate(**inputs, do_sample=True, guidance_scale=GUIDANCE, max_new_tokens=steps, top_k=250, **more)

    return make


DISTANCES = "distances"
SUBJECTS: dict[str, Callable[[BaseModel, torch.device], Make]] = {
    "project": project,
    "project, 8-bit weights": partial(project, bits=8),
    "project, 8-bit caches": partial(project, cache_bits=8),
    "project, 8-bit weights and caches": partial(project, bits=8, cache_bits=8),
    "audiocraft": audiocraft,
    "Hugging Face, dynamic cache": partial(huggingface, is_static=False),
    "Hugging Face, static cache": partial(huggingface, is_static=True),
}


def measure(make: Make, batch: int, seconds: float, device: torch.device) -> str:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    first = _timed(partial(make, batch, min(SHORT_SECONDS, seconds)), device)
    taken = _timed(partial(make, batch, seconds), device)
    peak = f"{torch.cuda.max_memory_reserved() / 2**30:.1f}" if device.type == "cuda" else ""
    step_ms = 1000 * taken / (seconds * FRAME_RATE)
    return f"{taken:.2f} | {batch * seconds / taken:.1f} | {step_ms:.2f} | {first:.1f} | {peak}"


def _timed(make: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        make()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.inference_mode()
def distances(model: BaseModel, device: torch.device, steps: int = 200) -> list[str]:
    """Return the distances of guided logits from fp32 for the same random codes: ‖difference‖ / ‖fp32‖, and flips."""
    text = TextEncoder(model.text_encoder, device).encode([PROMPT] * SEVERAL)
    size = (SEVERAL, model.codes.codebooks, steps)
    codes = torch.randint(2048, size, generator=torch.Generator().manual_seed(0)).to(device)
    kinds: list[tuple[str, int, Kernels | None]] = [
        ("bf16, the model's own forward pass", 1, None),
        ("bf16", 1, Kernels()),
        ("8-bit weights", 1, Kernels(weight_bits=8)),
        ("bf16", SEVERAL, Kernels()),
        ("8-bit caches", SEVERAL, Kernels(cache_bits=8)),
        ("8-bit weights", SEVERAL, Kernels(weight_bits=8)),
        ("8-bit weights and caches", SEVERAL, Kernels(8, 8)),
    ]

    def both(batch: int) -> Condition:
        states, mask = text.states[:batch], text.mask[:batch]
        chroma = torch.arange(batch * model.chroma_frames, device=device).view(batch, -1) % 12
        return Condition(
            states=torch.cat([states, 0 * states]),
            mask=torch.cat([mask, 0 * mask]).bool(),
            chroma=torch.cat([chroma, 0 * chroma]) if model.chroma_frames else None,
            text_lengths=mask.sum(dim=1).repeat(2),
        )

    exact = _logits(model, device, dtype=torch.float32, kernels=None, text=both(SEVERAL), codes=codes)
    lines = []
    for name, batch, kernels in kinds:
        if kernels is not None and device.type != "cuda":
            continue
        found, expected = (
            _logits(model, device, dtype=torch.bfloat16, kernels=kernels, text=both(batch), codes=codes[:batch]),
            exact[:, :batch],
        )
        distance = ((found - expected).norm() / expected.norm()).item()
        same = (found.argmax(-1) == expected.argmax(-1)).float().mean().item()
        lines.append(f"| {name} | {batch} | {100 * distance:.2f} % | {100 * same:.1f} % |")
    return lines


class Kernels(NamedTuple):
    """Bits of weights and caches for `decoding`."""

    weight_bits: int = 16
    cache_bits: int = 16


def _logits(
    model: BaseModel,
    device: torch.device,
    dtype: torch.dtype,
    kernels: Kernels | None,
    text: Condition,
    codes: torch.Tensor,
) -> torch.Tensor:
    """Return guided logits [steps, samples, K, cardinality], teacher forced: every step reads the given codes."""
    lm = load_merged(model, None, device, dtype)
    steps = codes.shape[-1] - CODEBOOKS
    if kernels is None or not decodes_fast(lm.enc_to_dec_proj.weight):
        logits = lm(torch.cat([codes, codes])[:, :, :steps], text).float().cpu()
        found = list(logits.unbind(dim=2))
    else:
        from musicgen_core.generation.decoding import Decoding

        decoding = Decoding(lm, steps, kernels.weight_bits)
        found, session = [], decoding.begin(text, codes[:, :, : steps + 1].clone(), cache_bits=kernels.cache_bits)
        for at in range(steps):
            session.position.fill_(at)
            found.append(decoding.step(session).float().cpu())
    conditional, unconditional = torch.stack(found).chunk(2, dim=1)
    return guide(conditional, unconditional, GUIDANCE)


def _half(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def lines_of(name: str, given: argparse.Namespace) -> Iterator[str]:
    """Yield the rows of the table, one per batch size, or the reason of a failure."""
    device, model = pick_device(given.device), find_model(given.model)
    if name == DISTANCES:
        yield from distances(model, device)
        return
    seconds = given.seconds if name.startswith("project") else given.peer_seconds or given.seconds
    try:
        make = SUBJECTS[name](model, device)
    except Exception as error:
        yield f"| {name} | | {_reason(error)} |"
        return
    for batch in given.batches:
        try:
            figures = measure(make, batch, seconds, device)
        except Exception as error:
            figures = _reason(error)
        yield f"| {name} | {batch} | {seconds:g} | {figures} |"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def in_own_process(name: str, timeout: float) -> list[str]:
    """Return the output of `lines_of` for a subject in a separate process, up to a failure."""
    command = [sys.executable, "-m", "bench.generate", *sys.argv[1:], "--only", name]
    with tempfile.TemporaryFile("w+") as output:
        try:
            code = subprocess.run(command, stdout=output, timeout=timeout, check=False).returncode
            ended = f"ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            ended = f"nothing more within {timeout:g} s"
        output.seek(0)
        lines = [line.rstrip() for line in output if line.startswith("| ")]
    if ended:
        lines.append(f"| {name} | | {ended} |")
    print(*lines, sep="\n", flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory that bench.random_large made, or debug")
    parser.add_argument("--subjects", nargs="+", choices=[*SUBJECTS, DISTANCES])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--peer-seconds", type=float, help="of audiocraft's and Hugging Face's pieces: they take long")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds that a subject may take")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        for line in lines_of(given.only, given):
            print(line, flush=True)
        return
    takes_melody = find_model(given.model).chroma_frames > 0
    # With a melody in front of the codes there is no cross-attention, and no cache of it.
    compared = [name for name in SUBJECTS if not (takes_melody and name == "Hugging Face, static cache")]
    subjects = given.subjects or [*compared, DISTANCES]
    tables = {name: in_own_process(name, given.timeout) for name in subjects}
    far = tables.pop(DISTANCES, [])
    print("\n| what | pieces | of s | s | × real time | ms a step | first, with compiling, s | GiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |", *chain(*tables.values()), sep="\n")
    head = "| guided logits with | pieces | distance from fp32 | same greedy codes |\n| --- | ---: | ---: | ---: |"
    print("", head, *far, sep="\n")


if __name__ == "__main__":
    main()
