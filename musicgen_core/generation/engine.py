"""Generate codes from prompts, one step of the delay pattern at a time, with a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.devices import can_compile
from musicgen_core.errors import Cancelled, DeviceError
from musicgen_core.generation.finished_frames import FinishedFrames, OnFrames
from musicgen_core.generation.likelihood import mean_log_likelihood
from musicgen_core.generation.melody import Melody, window_chroma
from musicgen_core.generation.sampling import Window
from musicgen_core.language import message
from musicgen_core.melody import NO_CLASS
from musicgen_core.model.decoder import Condition, MusicgenLM, undelay
from musicgen_core.model.text import TextEncoder

if TYPE_CHECKING:
    from musicgen_core.generation.decoding import Decoding  # Triton is not everywhere

WINDOW_FRAMES = 30 * FRAME_RATE
"""The length that MusicGen was trained on; longer samples are generated window by window."""
SYNC_STEPS = 25
"""Steps between two synchronizations with the GPU."""


@dataclass(frozen=True)
class Engine:
    """Generates codes with a language model.

    Attributes:
        lm: the model, with any adapter merged.
        text: its text encoder.
        guidance: the coefficient of classifier-free guidance if the settings give none.
        weight_bits: 16, or 8 where the decoding kernels work.
        cache_bits: bits of keys and values in batches of several samples, 16 or 8 likewise.
        eager: run the model's own forward pass even where the decoding kernels work, which repack its weights.
        window: frames of a window.
    """

    lm: MusicgenLM
    text: TextEncoder
    guidance: float
    weight_bits: int = 16
    cache_bits: int = 16
    eager: bool = False
    window: int = WINDOW_FRAMES

    def coefficient(self, settings: SamplingSettings) -> float:
        """Return the coefficient of classifier-free guidance for these settings."""
        return self.guidance if settings.guidance is None else settings.guidance

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str | None],
        settings: SamplingSettings,
        streams: Sequence[int],
        on_step: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
        frames: Sequence[int] | None = None,
        known: Tensor | None = None,
        melodies: Sequence[Melody | None] | None = None,
        negatives: Sequence[str | None] | None = None,
        changes: Mapping[int, Sequence[str | None]] | None = None,
        on_frames: OnFrames | None = None,
    ) -> list[Tensor]:
        """Generate the codes of one sample per prompt, in one batch.

        A sample longer than a window is continued from the last `overlap` seconds of the window before (audiocraft's
        `extend_stride` is the rest of the window). So is what follows a change of the texts, at which a window ends.

        Args:
            prompts: texts; None generates without one.
            settings: sampling settings.
            streams: the seed of each prompt's random stream.
            on_step: called after each step with the steps done and in total.
            cancelled: asked before each step.
            frames: the length of each sample; by default the settings' duration.
            known: [prompts, K, frames], codes that the samples start with.
            melodies: what each sample follows, in a model that takes a melody; None follows none.
            negatives: the texts that guidance leads away from; None leads away from the null condition.
            changes: texts that take the place of `prompts`, by the frame from which on they are generated with.
            on_frames: called with the codes [prompts, K, new frames] as they are completed, on the CPU. On a GPU they
                are copied while later steps run.

        Returns:
            The codes [K, frames] of each sample, int64, on the CPU.

        Raises:
            Cancelled: `cancelled` returned true.
            DeviceError: 8-bit weights or caches without the decoding kernels.
        """
        device, shape = self.lm.enc_to_dec_proj.weight.device, self.lm.config.codes
        frames = [frames_of(settings.duration)] * len(prompts) if frames is None else list(frames)
        codes = torch.zeros(len(prompts), shape.codebooks, 0, dtype=torch.int64) if known is None else known.long()
        codes, ends = codes.to(device), torch.tensor(frames, device=device)
        nothing = [None] * len(prompts)
        negatives, followed = negatives or nothing, melodies or nothing
        texts = {0: prompts, **(changes or {})}
        noise = _noise(streams, max(frames) + shape.most_delay, shape.codebooks).to(device)
        windows = window_bounds(codes.shape[-1], max(frames), self.window, frames_of(settings.overlap), texts)
        read: Sequence[str | None] | None = None
        total = sum(end - have + shape.most_delay for _, have, end in windows)  # the last step is predicted, never read
        done, reached = 0, None
        finished = FinishedFrames(on_frames, shape, codes.shape[-1]) if on_frames else None
        for begin, have, end in windows:
            wanted = texts[max(frame for frame in texts if frame <= have)]
            if wanted is not read:
                text, read = self._encode(wanted, negatives), wanted
            window = Window(
                condition=replace(text, chroma=self._chroma(followed, frames, begin, bool(changes))),
                known=codes[:, :, begin:have],
                frames=(ends - begin).clamp(max=end - begin),
                noise=noise[:, :, begin : end + shape.most_delay],
                shape=shape,
                settings=settings,
                guidance=self.coefficient(settings),
            )
            steps = self._steps(window)
            for step in range(1, end - have + shape.most_delay + 1):
                if cancelled():
                    raise Cancelled(f"generating was cancelled at step {done} of {total}")
                steps.advance()
                if finished is not None:
                    finished.follow(steps.sequence, begin, have + step - shape.most_delay)
                if done % SYNC_STEPS == 0 and noise.is_cuda:
                    # Reported progress stays close to the GPU's, which still always has queued steps.
                    waited_for, reached = reached, torch.cuda.Event()
                    reached.record()
                    if waited_for is not None:
                        waited_for.synchronize()
                done += 1
                on_step(done, total)
            new = undelay(steps.sequence, shape, end - begin)
            codes = torch.cat([codes, new[:, :, have - begin :]], dim=2)
            del steps  # frees its caches for those of the next window
        codes = codes.cpu()
        if finished is not None:
            finished.finish(codes)
        return [sample[:, :count] for sample, count in zip(codes, frames, strict=True)]

    @torch.inference_mode()
    def log_likelihoods(self, prompt: str | None, candidates: Sequence[Tensor], following: Tensor) -> list[float]:
        """Return the mean log-likelihood of the codes of the same frames after each of several candidates, in nats.

        Args:
            prompt: the text, or None; there is no guidance.
            candidates: [K, frames] each; of their frames as many count as the window has room for.
            following: [K, frames], fewer than those of the window.
        """
        condition = replace(self._encode([prompt], [None]), chroma=self._chroma([None], [1], 0, False)).rows(slice(1))
        room = self.window - following.shape[-1]
        return [mean_log_likelihood(self.lm, condition, codes[:, -room:], following) for codes in candidates]

    def _steps(self, window: Window) -> Steps:
        if self._decoding is not None:
            return GraphedSteps(self._decoding, window, self.cache_bits_for(len(window.known)))
        return EagerSteps(self.lm, window)

    def cache_bits_for(self, batch_size: int) -> int:
        """Return the bits of keys and values; those of a single sample are small beside the weights, and stay at 16."""
        return self.cache_bits if batch_size > 1 else 16

    def pack(self) -> None:
        """Allocate the memory of the decoding kernels now, so that the rest can be divided among caches."""
        _ = self._decoding

    @cached_property
    def _decoding(self) -> Decoding | None:
        """The model for the decoding kernels, or None where they don't work."""
        if self.eager or not decodes_fast(self.lm.enc_to_dec_proj.weight):
            for what, bits in (("weight", self.weight_bits), ("cache", self.cache_bits)):
                if bits != 16:
                    raise DeviceError(
                        message(
                            "8-bit {what}s need an NVIDIA GPU of compute capability 8.0 or newer, Triton, and a "
                            "C compiler",
                            what=what,
                        ),
                        message(
                            "Leave out --{what}-bits. To see what is missing: uv run musicgen-flows doctor", what=what
                        ),
                    )
            return None
        from musicgen_core.generation.decoding import Decoding

        return Decoding(self.lm, self.window + self.lm.config.codes.most_delay + 1, self.weight_bits)

    def _encode(self, prompts: Sequence[str | None], negatives: Sequence[str | None]) -> Condition:
        """Return the prompts' conditions, followed by those of their negative prompts, or null conditions.

        Each text is encoded separately: padded to longer ones, its states would be rounded differently.
        """
        texts = [*prompts, *negatives]
        alone = {text: self.text.encode([text]) for text in dict.fromkeys(texts)}
        states = pad_sequence([alone[text].states[0] for text in texts], batch_first=True)
        mask = pad_sequence([alone[text].mask[0] for text in texts], batch_first=True)
        lengths = mask.sum(dim=1)
        # A null condition takes as many positions as its prompt's text, as in audiocraft.
        lengths = lengths.where(lengths > 0, lengths[: len(prompts)].repeat(2)).clamp(min=1)
        return Condition(states, mask, text_lengths=lengths)

    def _chroma(
        self, melodies: Sequence[Melody | None], frames: Sequence[int], begin: int, changes: bool
    ) -> Tensor | None:
        """Return the melodies' pitch classes in the window that begins at a frame, followed by as many of silence."""
        count, device = self.lm.config.chroma_frames, self.lm.enc_to_dec_proj.weight.device
        if not count:
            return None
        chroma = torch.full((2 * len(melodies), count), NO_CLASS)
        found: dict[tuple[Melody, tuple[int, int] | None], Tensor] = {}
        for row, (melody, length) in enumerate(zip(melodies, frames, strict=True)):
            if melody is not None:
                # Of the sample's own length: the others of its batch may have more windows.
                key = (melody, (begin, self.window) if changes or length > self.window else None)
                if key not in found:
                    found[key] = window_chroma(melody.wav, count, key[1])
                chroma[row] = found[key]
        return chroma.to(device)


def frames_of(seconds: float) -> int:
    """Return the number of frames of a duration, at least one."""
    return max(1, round(seconds * FRAME_RATE))


def window_bounds(
    known: int, frames: int, window: int, overlap: int, changes: Iterable[int] = ()
) -> list[tuple[int, int, int]]:
    """Return (begin, end of the known frames, end) of each window over a sample, in frames.

    A window ends where the text changes, so that each is generated with one text.
    """
    bounds: list[tuple[int, int, int]] = []
    while known < frames:
        begin = 0 if known < window and not bounds else max(0, known - overlap)
        end = min([frames, begin + window, *(frame for frame in changes if frame > known)])
        bounds.append((begin, known, end))
        known = end
    return bounds


def _noise(streams: Sequence[int], steps: int, codebooks: int) -> Tensor:
    """Return noise [streams, codebooks, steps], uniform on [0, 1), drawn on the CPU: the same for every device."""
    generators = [torch.Generator().manual_seed(seed) for seed in streams]
    # Step by step, so that a longer sample starts with the draws of a shorter one.
    return torch.stack([torch.rand(steps, codebooks, generator=generator).T for generator in generators])


def decodes_fast(weight: Tensor) -> bool:
    """Return whether the decoding kernels work for a model with such weights."""
    half = weight.dtype in (torch.bfloat16, torch.float16)
    if not weight.is_cuda or not half or torch.cuda.get_device_capability(weight.device) < (8, 0):
        return False
    return find_spec("triton") is not None and can_compile()


class Steps(Protocol):
    """Generation of one batch; each `advance` fills the next step of `sequence` [B, K, steps]."""

    sequence: Tensor

    def advance(self) -> None: ...


class EagerSteps:
    """Runs the model's own forward pass, on any device."""

    def __init__(self, lm: MusicgenLM, window: Window) -> None:
        self._window, self._position = window, window.given
        self.sequence = window.delayed_sequence()
        given, steps = _both(self.sequence[:, :, : window.given]), window.noise.shape[-1]
        self._rows, conditions = zip(*_equal_prefixes(lm, window.condition), strict=True)
        self._groups = [
            _Group(lm, condition, given[rows], steps) for rows, condition in zip(self._rows, conditions, strict=True)
        ]
        self._order = torch.cat(self._rows).argsort()

    def advance(self) -> None:
        at, window = self._position, self._window
        codes = _both(self.sequence[:, :, at : at + 1])
        found = [group.step(codes[rows], at) for rows, group in zip(self._rows, self._groups, strict=True)]
        logits = torch.cat(found)[self._order]
        current = self.sequence[:, :, at + 1]
        self.sequence[:, :, at + 1] = window.choose(logits, window.noise[:, :, at], at, current)
        self._position += 1


class _Group:
    """Rows of a batch that read equally many positions in front of the codes.

    Args:
        lm: the model.
        condition: of the rows.
        given: [rows, K, given steps], delayed codes.
        steps: the most steps that are read.
    """

    def __init__(self, lm: MusicgenLM, condition: Condition, given: Tensor, steps: int) -> None:
        prefix = lm.prefix(condition, lm.project_text(condition)[0])
        self._lm, self._first = lm, 0 if prefix is None else prefix.states.shape[1]
        self._caches, self._mask = lm.new_cache(condition, self._first + steps)
        lm.prefill(given, self._caches, self._mask, None if prefix is None else prefix.states)

    def step(self, codes: Tensor, position: int) -> Tensor:
        """Return the next step's logits [rows, K, cardinality] from codes [rows, K, 1]."""
        return self._lm.step(codes, self._caches, self._mask, self._first + position)


class GraphedSteps:
    """Runs the kernels of `decoding`: compiled in the first step, captured as a CUDA graph in the second one."""

    def __init__(self, decoding: Decoding, window: Window, cache_bits: int) -> None:
        self._decoding, self._window = decoding, window
        sequence = window.delayed_sequence()
        self._state = decoding.begin(window.condition, sequence, window.given, cache_bits)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._begun = False
        self.sequence = self._state.sequence

    def advance(self) -> None:
        if not self._begun or not self.sequence.is_cuda:
            self._step()
            self._begun = True
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # captures without running
                self._step()
        self._graph.replay()

    def _step(self) -> None:
        self._decoding.step(self._state)
        self._decoding.choose(self._state, self._window)


def _equal_prefixes(lm: MusicgenLM, condition: Condition) -> Iterator[tuple[Tensor, Condition]]:
    """Yield numbers and conditions of rows that read equally many positions in front of the codes."""
    if not lm.config.takes_melody:
        yield torch.arange(len(condition.states), device=condition.states.device), condition
        return
    lengths = condition.text_positions
    for length in lengths.unique():
        (rows,) = torch.where(lengths == length)
        yield rows, condition.rows_alike(rows)


def _both(sequence: Tensor) -> Tensor:
    """Return the sequence twice: for the text and for the null condition."""
    return torch.cat([sequence, sequence])
