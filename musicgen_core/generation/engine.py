"""Codes from prompts, one column of the delay pattern at a time, with keys and values kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from musicgen_core.codes import CODEBOOKS, FRAME_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.devices import can_compile
from musicgen_core.errors import Cancelled, DeviceError
from musicgen_core.generation.steps import EagerSteps, GraphedSteps, Steps, Window
from musicgen_core.language import message
from musicgen_core.model.decoder import MusicgenLM, TextCondition
from musicgen_core.model.pattern import undelay
from musicgen_core.model.text import TextEncoder

if TYPE_CHECKING:
    from musicgen_core.generation.decoding import Decoding

WINDOW_FRAMES = 30 * FRAME_RATE
"""What MusicGen was trained on; of longer pieces it sees a window at a time."""
WAIT_STEPS = 25


@dataclass(frozen=True)
class Engine:
    """A language model ready to generate.

    Attributes:
        lm: the model, any adapter merged.
        text: its text encoder.
        guidance: the coefficient where the settings give none.
        weight_bits: 16, or 8 with the GPU's own kernels.
        cache_bits: of keys and values where several pieces are made, likewise.
        eager: run the model's own forward pass even where there are kernels for it, which repack its weights.
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
        """How strongly the text guides with these settings."""
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
    ) -> list[Tensor]:
        """Generate for prompts side by side.

        A piece longer than a window goes on from its last `overlap` seconds, again and again (audiocraft's
        `extend_stride` is the rest of the window).

        Args:
            prompts: texts; None generates without one.
            streams: a seed for each prompt's own random stream.
            on_step: called after each step with the steps done and in all.
            cancelled: asked before each step.
            frames: of each piece, by default the settings' duration.
            known: [prompts, 4, frames], codes that the pieces begin with.

        Returns:
            codes [4, frames] of each piece, int64, on the CPU.

        Raises:
            Cancelled: `cancelled` said so.
            DeviceError: 8-bit weights or caches where there are no kernels for them.
        """
        device = self.lm.enc_to_dec_proj.weight.device
        frames = [frames_of(settings.duration)] * len(prompts) if frames is None else list(frames)
        codes = torch.zeros(len(prompts), CODEBOOKS, 0, dtype=torch.int64) if known is None else known.long()
        codes, ends = codes.to(device), torch.tensor(frames, device=device)
        text = self._with_null(self._encode(prompts))
        noise = _noise(streams, CODEBOOKS, max(frames) + CODEBOOKS - 1).to(device)
        windows = window_bounds(codes.shape[-1], max(frames), self.window, frames_of(settings.overlap))
        total = sum(end - have + CODEBOOKS - 1 for _, have, end in windows)  # the last column is predicted, never fed
        done, reached = 0, None
        for begin, have, end in windows:
            window = Window(
                text,
                codes[:, :, begin:have],
                (ends - begin).clamp(max=end - begin),
                noise[:, :, begin : end + CODEBOOKS - 1],
                settings,
                self.coefficient(settings),
            )
            steps = self._steps(window)
            for _ in range(end - have + CODEBOOKS - 1):
                if cancelled():
                    raise Cancelled(f"generating was cancelled at step {done} of {total}")
                steps.advance()
                if done % WAIT_STEPS == 0 and noise.is_cuda:
                    # What is told should nearly have happened; but the GPU always has steps to go on with.
                    waited_for, reached = reached, torch.cuda.Event()
                    reached.record()
                    if waited_for is not None:
                        waited_for.synchronize()
                done += 1
                on_step(done, total)
            new = undelay(steps.sequence, end - begin)
            codes = torch.cat([codes, new[:, :, have - begin :]], dim=2)
            del steps  # its caches make room for those of the next
        return [piece[:, :count] for piece, count in zip(codes.cpu(), frames, strict=True)]

    def _steps(self, window: Window) -> Steps:
        if self._decoding is not None:
            return GraphedSteps(self._decoding, window, self.bits_of_caches(len(window.known)))
        return EagerSteps(self.lm, window)

    def bits_of_caches(self, pieces: int) -> int:
        """In which keys and values are kept of so many pieces; those of a single one are few beside the weights."""
        return self.cache_bits if pieces > 1 else 16

    def pack(self) -> None:
        """Take what memory the GPU's kernels need now, so that what is free then is free for pieces."""
        _ = self._decoding

    @cached_property
    def _decoding(self) -> Decoding | None:
        """The model for the GPU's own kernels, where these work."""
        if self.eager or not decodes_fast(self.lm.enc_to_dec_proj.weight):
            for what, bits in (("weight", self.weight_bits), ("cache", self.cache_bits)):
                if bits != 16:
                    raise DeviceError(
                        message(
                            "8-bit {what}s need an NVIDIA GPU of compute capability 8.0 or newer, Triton, and a "
                            "C compiler",
                            what=what,
                        ),
                        message("Leave out --{what}-bits; musicgen-flows doctor says what is missing", what=what),
                    )
            return None
        from musicgen_core.generation.decoding import Decoding  # Triton is not everywhere

        return Decoding(self.lm, self.window + CODEBOOKS, self.weight_bits)

    def _encode(self, prompts: Sequence[str | None]) -> TextCondition:
        """Each text by itself: side by side with longer ones its states would be rounded in another way."""
        alone = {prompt: self.text.encode([prompt]) for prompt in dict.fromkeys(prompts)}
        longest = max(one.mask.shape[1] for one in alone.values())

        def padded(tensor: Tensor) -> Tensor:
            return torch.cat([tensor, tensor.new_zeros(1, longest - tensor.shape[1], *tensor.shape[2:])], dim=1)

        return TextCondition(
            torch.cat([padded(alone[prompt].states) for prompt in prompts]),
            torch.cat([padded(alone[prompt].mask) for prompt in prompts]),
        )

    @staticmethod
    def _with_null(text: TextCondition) -> TextCondition:
        """The prompts' conditions followed by as many null conditions."""
        return TextCondition(
            torch.cat([text.states, torch.zeros_like(text.states)]),
            torch.cat([text.mask, torch.zeros_like(text.mask)]),
        )


def frames_of(seconds: float) -> int:
    """At least one."""
    return max(1, round(seconds * FRAME_RATE))


def window_bounds(known: int, frames: int, window: int, overlap: int) -> list[tuple[int, int, int]]:
    """(begin, frames known before, end) of each window over a piece, in frames."""
    bounds = []
    while known < frames:
        begin = 0 if known < window else known - overlap
        end = min(frames, begin + window)
        bounds.append((begin, known, end))
        known = end
    return bounds


def _noise(streams: Sequence[int], codebooks: int, steps: int) -> Tensor:
    """[streams, codebooks, steps], uniform on [0, 1), drawn on the CPU so that it is the same for every device."""
    draws = []
    for seed in streams:
        # Step by step, so that a longer piece begins with the draws of a shorter one.
        generator = torch.Generator().manual_seed(seed)
        draws.append(torch.rand(steps, codebooks, generator=generator).T)
    return torch.stack(draws)


def decodes_fast(weight: Tensor) -> bool:
    """Whether a model with such weights can run on `decoding`'s kernels."""
    half = weight.dtype in (torch.bfloat16, torch.float16)
    if not weight.is_cuda or not half or torch.cuda.get_device_capability(weight.device) < (8, 0):
        return False
    return find_spec("triton") is not None and can_compile()
