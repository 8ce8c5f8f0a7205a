"""Generate codes from prompts, one step of the delay pattern at a time, with a key-value cache."""

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
from musicgen_core.generation.sampling import Window
from musicgen_core.generation.steps import EagerSteps, GraphedSteps, Steps
from musicgen_core.language import message
from musicgen_core.model.decoder import MusicgenLM, TextCondition, undelay
from musicgen_core.model.text import TextEncoder

if TYPE_CHECKING:
    from musicgen_core.generation.decoding import Decoding

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
    ) -> list[Tensor]:
        """Generate the codes of one sample per prompt, in one batch.

        A sample longer than a window is continued from the last `overlap` seconds of the window before (audiocraft's
        `extend_stride` is the rest of the window).

        Args:
            prompts: texts; None generates without one.
            settings: sampling settings.
            streams: the seed of each prompt's random stream.
            on_step: called after each step with the steps done and in total.
            cancelled: asked before each step.
            frames: the length of each sample; by default the settings' duration.
            known: [prompts, 4, frames], codes that the samples start with.

        Returns:
            The codes [4, frames] of each sample, int64, on the CPU.

        Raises:
            Cancelled: `cancelled` returned true.
            DeviceError: 8-bit weights or caches without the decoding kernels.
        """
        device = self.lm.enc_to_dec_proj.weight.device
        frames = [frames_of(settings.duration)] * len(prompts) if frames is None else list(frames)
        codes = torch.zeros(len(prompts), CODEBOOKS, 0, dtype=torch.int64) if known is None else known.long()
        codes, ends = codes.to(device), torch.tensor(frames, device=device)
        text = self._with_null(self._encode(prompts))
        noise = _noise(streams, CODEBOOKS, max(frames) + CODEBOOKS - 1).to(device)
        windows = window_bounds(codes.shape[-1], max(frames), self.window, frames_of(settings.overlap))
        total = sum(end - have + CODEBOOKS - 1 for _, have, end in windows)  # the last step is predicted, never read
        done, reached = 0, None
        for begin, have, end in windows:
            window = Window(
                text=text,
                known=codes[:, :, begin:have],
                frames=(ends - begin).clamp(max=end - begin),
                noise=noise[:, :, begin : end + CODEBOOKS - 1],
                settings=settings,
                guidance=self.coefficient(settings),
            )
            steps = self._steps(window)
            for _ in range(end - have + CODEBOOKS - 1):
                if cancelled():
                    raise Cancelled(f"generating was cancelled at step {done} of {total}")
                steps.advance()
                if done % SYNC_STEPS == 0 and noise.is_cuda:
                    # Reported progress stays close to the GPU's, which still always has queued steps.
                    waited_for, reached = reached, torch.cuda.Event()
                    reached.record()
                    if waited_for is not None:
                        waited_for.synchronize()
                done += 1
                on_step(done, total)
            new = undelay(steps.sequence, end - begin)
            codes = torch.cat([codes, new[:, :, have - begin :]], dim=2)
            del steps  # frees its caches for those of the next window
        return [sample[:, :count] for sample, count in zip(codes.cpu(), frames, strict=True)]

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
        from musicgen_core.generation.decoding import Decoding  # Triton is not everywhere

        return Decoding(self.lm, self.window + CODEBOOKS, self.weight_bits)

    def _encode(self, prompts: Sequence[str | None]) -> TextCondition:
        """Encode each text separately: padded to longer ones, its states would be rounded differently."""
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
        """Return the prompts' conditions followed by as many null conditions."""
        return TextCondition(
            torch.cat([text.states, torch.zeros_like(text.states)]),
            torch.cat([text.mask, torch.zeros_like(text.mask)]),
        )


def frames_of(seconds: float) -> int:
    """Return the number of frames of a duration, at least one."""
    return max(1, round(seconds * FRAME_RATE))


def window_bounds(known: int, frames: int, window: int, overlap: int) -> list[tuple[int, int, int]]:
    """Return (begin, end of the known frames, end) of each window over a sample, in frames."""
    bounds = []
    while known < frames:
        begin = 0 if known < window else known - overlap
        end = min(frames, begin + window)
        bounds.append((begin, known, end))
        known = end
    return bounds


def _noise(streams: Sequence[int], codebooks: int, steps: int) -> Tensor:
    """Return noise [streams, codebooks, steps], uniform on [0, 1), drawn on the CPU: the same for every device."""
    draws = []
    for seed in streams:
        # Step by step, so that a longer sample starts with the draws of a shorter one.
        generator = torch.Generator().manual_seed(seed)
        draws.append(torch.rand(steps, codebooks, generator=generator).T)
    return torch.stack(draws)


def decodes_fast(weight: Tensor) -> bool:
    """Return whether the decoding kernels work for a model with such weights."""
    half = weight.dtype in (torch.bfloat16, torch.float16)
    if not weight.is_cuda or not half or torch.cuda.get_device_capability(weight.device) < (8, 0):
        return False
    return find_spec("triton") is not None and can_compile()
