"""EnCodec: audio to codes and back. The codec itself is stock audiocraft's."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import CODEBOOKS, FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.data.audio import resample
from musicgen_core.devices import start_to_host
from musicgen_core.language import message
from musicgen_core.melody import Chroma, Excerpt, extract_chroma
from musicgen_core.model.compression import codec_identity, load_codec
from musicgen_core.model.weights import BaseModel
from musicgen_core.stages import announce

Codes = NDArray[np.uint16]
"""[K, frames]"""

ENCODE_SECONDS = 60
"""Longer tracks are encoded in segments of this length, so that memory doesn't grow with the track."""
CPU_BATCH_SECONDS = 8.0
"""Small on a CPU: each layer already keeps all cores busy, and larger tensors cost more to allocate."""
MAX_BATCH_SECONDS = 1920
"""Batches beyond half an hour of audio are no faster, not even on an H200."""
DECODE_SECONDS, CONTEXT_SECONDS = 60, 5
"""Window in which long audio is decoded, and its context on each side, which makes the seams inaudible."""
MAX_TAPS = 2**21
"""Limit of filter taps: 44.1 kHz takes 0.2 M; rates with a small common divisor with 32 kHz would take gigabytes."""


class Codec:
    """The EnCodec of a model directory, in fp32, the precision it was trained in.

    Thread-safe: calls are serialized, so memory holds the activations of one batch.

    Attributes:
        identity: a hash of the codec's weights, for fingerprints.
        model: name of its model.
        shape: of its codes.
        decoder_layers: the layers of EnCodec's decoder in the order of their use, audiocraft's or transformers'.
        takes_melody: whether its model takes a melody, so that clips are tokenized with their chroma.
        batch_seconds: seconds of audio to pass to `start` per batch. Callers lower it when they run out of memory.
    """

    def __init__(self, model: BaseModel, device: torch.device | str = "cpu") -> None:
        import_audiocraft()  # takes most of the time, and says so
        announce(message("reading the codec"))
        self.device = torch.device(device)
        self.identity, self.model = codec_identity(model), model.name
        self._model = load_codec(model, self.device)
        self.shape = replace(model.codes, cardinality=self._model.cardinality)
        self.takes_melody = model.chroma_frames > 0
        self._encoder = self._model.encoder if hasattr(self._model, "encoder") else self._model.model.encoder
        self._ragged = RaggedBatches(self._encoder)
        decoder = self._model.decoder if hasattr(self._model, "decoder") else self._model.model.decoder
        self.decoder_layers = list(decoder.model if hasattr(decoder, "model") else decoder.layers)
        self._lock = threading.Lock()
        self._uploads = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.batch_seconds = self._fitting_seconds() / self.shape.channels

    def _fitting_seconds(self) -> float:
        """Return the seconds of audio that fit four fifths of the free GPU memory; a small constant on a CPU."""
        if self.device.type != "cuda":
            return CPU_BATCH_SECONDS
        free, _ = torch.cuda.mem_get_info(self.device)
        channels = next(self._encoder.parameters()).shape[0]  # of the widest activations, those at 32 kHz
        bytes_per_second = 5 * channels * SAMPLE_RATE * 4  # five of them at once in fp32: 39 MiB, measured on an H200
        return float(min(MAX_BATCH_SECONDS, max(ENCODE_SECONDS, 0.8 * free // bytes_per_second)))

    @torch.inference_mode()
    def encode(self, wav: Tensor) -> Tensor:
        """Encode wav [B, channels, samples] at 32 kHz to codes [B, K, frames], int64."""
        with self._lock:
            codes, _ = self._model.encode(wav.to(self.device).flatten(0, 1)[:, None])
        return self._interleave(codes)

    def _interleave(self, codes: Tensor) -> Tensor:
        """Return codes [B, K, frames] with alternating channels, from those of single channels [B · channels, 4, …]."""
        return codes.unflatten(0, (-1, self.shape.channels)).transpose(1, 2).flatten(1, 2)

    def _separate(self, codes: Tensor) -> Tensor:
        """Return the codes of single channels [B · channels, 4, frames], from codes [B, K, frames]."""
        return codes.unflatten(1, (-1, self.shape.channels)).transpose(1, 2).flatten(0, 1)

    @torch.inference_mode()
    def start(self, clips: Sequence[NDArray[np.float32]], rate: int, excerpts: Sequence[Excerpt] = ()) -> StartedBatch:
        """Start encoding a batch. On a GPU the call returns before the work is done.

        Args:
            clips: [samples] each, or [2, samples] for stereo, of any lengths; padding doesn't affect the codes.
            rate: sample rate of the clips in Hz. They are resampled to 32 kHz, on the GPU if there is one.
            excerpts: the parts of longer clips that these are, to extract their chroma, too.

        Raises:
            torch.OutOfMemoryError: the batch is too large for the GPU.
        """
        if not (resampler := resampler_of(rate, self.device)):
            clips = [resample(clip, rate) for clip in clips]
        channels = [channel for clip in clips for channel in np.atleast_2d(clip)]
        lengths = [len(channel) for channel in channels]
        host = self._fill(channels)
        with self._lock:
            wav = self._upload(host)
            if resampler:
                wav = resampler(wav)
                lengths = [math.ceil(length * SAMPLE_RATE / rate) for length in lengths]
            codes = self._interleave(self._encode(wav, lengths)).to(torch.int16)  # [B, K, frames]
            chroma = self._chroma(wav, lengths, excerpts)
            on_host = (
                start_to_host(codes),
                start_to_host(pad_sequence(chroma, batch_first=True) if chroma else codes[:0]),
            )
            ready = None
            if self.device.type == "cuda":
                ready = torch.cuda.Event()
                ready.record()
        frames = [math.ceil(length / SAMPLES_PER_FRAME) for length in lengths[:: self.shape.channels]]
        return StartedBatch(*on_host, frames=frames, chroma_frames=[len(each) for each in chroma], ready=ready)

    def _chroma(self, wav: Tensor, lengths: Sequence[int], excerpts: Sequence[Excerpt]) -> list[Tensor]:
        """Return the chroma [frames] of each excerpt, from wav [B · channels, samples]; each to its own end."""
        if not excerpts:
            return []
        channels = self.shape.channels
        mono = wav if channels == 1 else wav.unflatten(0, (-1, channels)).mean(dim=1)
        return [
            extract_chroma(clip[None, :length], excerpt)[0]
            for clip, length, excerpt in zip(mono, lengths[::channels], excerpts, strict=True)
        ]

    def _encode(self, wav: Tensor, lengths: Sequence[int]) -> Tensor:
        """Encode wav [B, samples], each row valid up to its length, to codes [B, 4, frames]."""
        if self._ragged.supported or len(set(lengths)) == 1:
            with self._ragged.of(lengths, self.device):
                return self._model.encode(wav[:, None])[0]
        frames = math.ceil(max(lengths) / SAMPLES_PER_FRAME)
        codes = torch.zeros(len(wav), CODEBOOKS, frames, dtype=torch.int64, device=wav.device)
        for length in set(lengths):
            rows = [row for row, its_length in enumerate(lengths) if its_length == length]
            alike, _ = self._model.encode(wav[rows][:, None, :length])
            codes[rows, :, : alike.shape[-1]] = alike
        return codes

    def _fill(self, clips: Sequence[NDArray[np.float32]]) -> Tensor:
        """Return the clips as one host tensor [B, longest], zero-padded."""
        host = torch.empty(len(clips), max(map(len, clips)), pin_memory=self._uploads is not None)
        for row, clip in zip(host, clips, strict=True):
            row[: len(clip)] = torch.from_numpy(clip)
            row[len(clip) :] = 0
        return host

    def _upload(self, host: Tensor) -> Tensor:
        """Copy to the device on a stream of its own, overlapping the computation of the previous batch."""
        if self._uploads is None:
            return host
        with torch.cuda.stream(self._uploads):
            wav = host.to(self.device, non_blocking=True)
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self._uploads)
        wav.record_stream(now)
        return wav

    @torch.inference_mode()
    def vectors(self, codes: Tensor) -> Tensor:
        """Return the input of the decoder [B · channels, D, frames] on the device, from codes [B, K, frames]."""
        found: Tensor = self._model.decode_latent(self._separate(codes.to(self.device)))
        return found

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, K, frames] to wav [B, channels, frames × 640] at 32 kHz, fp32 on the CPU.

        Rows are decoded in batches that fit the memory. Audio longer than a minute is decoded in windows of a minute.
        Each window gets some seconds of context on both sides, which are dropped: only nearby codes affect the sound.
        """
        frames = codes.shape[-1]
        window, context = DECODE_SECONDS * FRAME_RATE, CONTEXT_SECONDS * FRAME_RATE
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # free memory has changed since the start if a language model was loaded or freed
        channels = self.shape.channels
        fitting = min(self.batch_seconds, self._fitting_seconds() / channels)
        rows = max(1, int(fitting * FRAME_RATE / min(frames, window + 2 * context)))
        wav = torch.empty(len(codes), channels, frames * SAMPLES_PER_FRAME)
        for part, target in zip(codes.split(rows), wav.split(rows), strict=True):
            for begin in range(0, frames, window):
                end, first = min(frames, begin + window), max(0, begin - context)
                with self._lock:
                    alone = self._separate(part[:, :, first : end + context].to(self.device))
                    decoded = self._model.decode(alone)[:, 0].unflatten(0, (-1, channels))
                skipped, taken = (begin - first) * SAMPLES_PER_FRAME, (end - begin) * SAMPLES_PER_FRAME
                target[:, :, begin * SAMPLES_PER_FRAME : end * SAMPLES_PER_FRAME] = decoded[
                    :, :, skipped : skipped + taken
                ]
        return wav


@dataclass(frozen=True)
class StartedBatch:
    """A batch that is being encoded. Its results are waited for.

    Attributes:
        frames: of the codes of each clip.
        chroma_frames: of the chroma of each clip; empty if there is none.
        ready: recorded after the results, on a GPU.
    """

    _codes: Tensor  # [B, K, frames]
    _chroma: Tensor  # [B, frames]
    frames: Sequence[int]
    chroma_frames: Sequence[int]
    ready: torch.cuda.Event | None

    def codes(self) -> list[Codes]:
        """Return the codes of each clip."""
        self._wait()
        clips = zip(self._codes, self.frames, strict=True)
        return [clip[:, :count].numpy().astype(np.uint16) for clip, count in clips]

    def chroma(self) -> list[Chroma]:
        """Return the chroma of each clip, if its excerpts were given."""
        self._wait()
        return [clip[:count].numpy() for clip, count in zip(self._chroma, self.chroma_frames, strict=True)]

    def _wait(self) -> None:
        if self.ready is not None:
            self.ready.synchronize()


class RaggedBatches:
    """Hooks that let audiocraft's SEANet encode clips of several lengths in one batch, each as if it were alone.

    Every convolution pads its input with zeros. In a batch, the positions after the end of a shorter clip hold the
    previous layer's output for the padding instead. They are reset to zero before each convolution. The LSTM runs
    forward in time, so positions after a clip's end don't affect it.

    Attributes:
        supported: False for a codec that pads by reflection, normalizes over time, or isn't audiocraft's own. Its
            clips are encoded together only where they are of one length.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._lengths: Tensor | None = None  # [B] on the device: reading the values on the host would stall the GPU
        self._shortest = 0
        conv = import_audiocraft("audiocraft.modules.conv").StreamableConv1d
        hop = 1  # samples of the wav a step at this layer
        self.supported = any(isinstance(module, conv) for module in encoder.modules())
        for module in encoder.modules():
            if isinstance(module, conv):
                self.supported &= module.pad_mode == "constant" and module.conv.norm_type != "time_group_norm"
                module.register_forward_pre_hook(partial(self._clear, hop))
                hop *= module.conv.conv.stride[0]

    @contextmanager
    def of(self, lengths: Sequence[int], device: torch.device) -> Iterator[None]:
        """Set the lengths of the batch's rows, in samples, for the duration of the block."""
        if len(set(lengths)) == 1:
            yield
            return
        on_host = torch.tensor(lengths, pin_memory=device.type == "cuda")
        self._lengths, self._shortest = on_host.to(device, non_blocking=True), min(lengths)
        try:
            yield
        finally:
            self._lengths = None

    def _clear(self, hop: int, _module: nn.Module, inputs: tuple[Tensor]) -> None:
        if self._lengths is not None:
            ends = -(-self._lengths // hop)  # rounded up
            first = math.ceil(self._shortest / hop)
            tails = inputs[0][:, :, first:]  # [B, channels, steps]: no clip ends before
            steps = torch.arange(first, inputs[0].shape[2], device=tails.device)
            tails.masked_fill_((steps >= ends[:, None])[:, None], 0.0)


class Resampler(nn.Module):
    """Batched resampling to 32 kHz on the GPU: windowed sinc, torchaudio's version of librosa's kaiser_best filter.

    torchaudio applies it as a convolution with one input channel, which takes cuDNN a fifth of the codec's time. Here
    it is one GEMM: rows of overlapping samples times the filter. The filter is repeated and shifted until a row holds
    at least as many new samples as it shares with the next.
    """

    filter: Tensor

    def __init__(self, rate: int) -> None:
        import torchaudio

        super().__init__()
        made = torchaudio.transforms.Resample(
            rate,
            SAMPLE_RATE,
            resampling_method="sinc_interp_kaiser",
            lowpass_filter_width=64,
            rolloff=0.9475937167399596,
            beta=14.769656459379492,
        )
        common = math.gcd(rate, SAMPLE_RATE)
        self.old, self.new, self.width = rate // common, SAMPLE_RATE // common, made.width
        kernel = made.kernel[:, 0]  # [new, taps]: a row gives one of the `new` samples made from `old` ones
        self.repeats = math.ceil(kernel.shape[1] / self.old)
        shifted = [F.pad(kernel, (i * self.old, (self.repeats - 1 - i) * self.old)) for i in range(self.repeats)]
        self.register_buffer("filter", torch.cat(shifted).T.contiguous())  # [taps of a row, repeats · new]

    def forward(self, wav: Tensor) -> Tensor:
        """Resample wav [B, samples] to [B, ⌈samples · 32,000 / rate⌉], fp32."""
        samples = wav.shape[-1]
        step = self.repeats * self.old
        rows = math.ceil((samples // self.old + 1) / self.repeats)
        padded = F.pad(wav, (self.width, (rows - 1) * step + self.filter.shape[0] - self.width - samples))
        resampled = padded.unfold(-1, self.filter.shape[0], step) @ self.filter  # [B, rows, repeats · new]
        return resampled.flatten(1)[:, : math.ceil(samples * self.new / self.old)]


@lru_cache(maxsize=16)
def resampler_of(rate: int, device: torch.device) -> Resampler | None:
    """Return a resampler, or None if the CPU should do it: there is no GPU, or the filter would be huge."""
    common = math.gcd(rate, SAMPLE_RATE)
    taps = (rate // common) * (SAMPLE_RATE // common)
    if device.type != "cuda" or rate == SAMPLE_RATE or taps > MAX_TAPS:
        return None
    return Resampler(rate).to(device)
