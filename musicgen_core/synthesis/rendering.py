"""Render clips to audio, in batches.

Since every note starts on a codec frame, a clip is a sum of frames of notes: each is taken from the sound bank, scaled
by a gain that is linear within the frame, and added to its frame of the output. On a GPU that is one gather and one
`index_add_` for a whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from musicgen_core.codes import SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.synthesis.composing import Clip
from musicgen_core.synthesis.instruments import NOTES, note_frames

ROWS_AT_ONCE = 400_000  # frames of notes, 1 GB
GAIN = 0.75


class SoundBank:
    """Notes of all instruments on a device, synthesized on first use."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._frames = torch.zeros(0, SAMPLES_PER_FRAME, device=self.device)
        self._first = torch.full((len(NOTES),), -1, device=self.device)
        self._lengths = torch.zeros(len(NOTES), dtype=torch.int64, device=self.device)

    @torch.no_grad()
    def render(self, clips: Sequence[Clip], frames: int) -> Tensor:
        """Render clips within ±1, truncated to `frames`.

        Returns:
            [B, frames · 640] on the bank's device, 32 kHz mono. On a GPU two renderings may differ by rounding, as the
            order of its atomic additions does.
        """
        clip = np.repeat(np.arange(len(clips)), [len(clip.events) for clip in clips])
        events = np.concatenate([clip.events for clip in clips])
        self._load(np.unique(events[:, 0]).astype(int).tolist())
        dry = self._mix(
            torch.from_numpy(clip).to(self.device), torch.from_numpy(events).to(self.device), len(clips), frames
        )
        levels = torch.tensor([clip.reverb for clip in clips], device=self.device)[:, None]
        return torch.tanh(GAIN * (dry + levels * self._reverberate(dry)))

    def _mix(self, clip: Tensor, events: Tensor, clips: int, frames: int) -> Tensor:
        note, onset = events[:, 0].long(), events[:, 1].long()
        sustain, release, velocity = events[:, 2:].unbind(1)
        sounding = torch.minimum((sustain + release).long(), self._lengths[note])
        sounding = torch.minimum(sounding, frames - onset).clamp(min=0)  # frames of each event
        event = torch.repeat_interleave(torch.arange(len(events), device=self.device), sounding)
        age = torch.arange(len(event), device=self.device) - (sounding.cumsum(0) - sounding)[event]
        mixed = torch.zeros(clips * frames, SAMPLES_PER_FRAME, device=self.device)
        within = torch.linspace(0, 1, SAMPLES_PER_FRAME + 1, device=self.device)[:-1]
        for e, a in zip(event.split(ROWS_AT_ONCE), age.split(ROWS_AT_ONCE), strict=True):
            begin, end = (velocity[e] * ((sustain[e] + release[e] - at) / release[e]).clamp(0, 1) for at in (a, a + 1))
            gain = begin[:, None] + (end - begin)[:, None] * within
            mixed.index_add_(0, clip[e] * frames + onset[e] + a, self._frames[self._first[note[e]] + a] * gain)
        return mixed.view(clips, frames * SAMPLES_PER_FRAME)

    def _load(self, notes: Sequence[int]) -> None:
        """Synthesize the notes that aren't in the bank yet."""
        missing = [note for note, first in zip(notes, self._first[notes].tolist(), strict=True) if first < 0]
        if missing:
            made = [note_frames(NOTES[note]) for note in missing]
            lengths = torch.tensor([len(frames) for frames in made])
            self._first[missing] = (len(self._frames) + lengths.cumsum(0) - lengths).to(self.device)
            self._lengths[missing] = lengths.to(self.device)
            self._frames = torch.cat([self._frames, torch.from_numpy(np.concatenate(made)).to(self.device)])

    def _reverberate(self, dry: Tensor) -> Tensor:
        size = dry.shape[-1] + len(self._impulse_response)
        size += -size % 6400  # FFTs are faster for sizes with small prime factors
        spectrum = torch.fft.rfft(dry, size) * torch.fft.rfft(self._impulse_response, size)
        return torch.fft.irfft(spectrum, size)[..., : dry.shape[-1]]

    @cached_property
    def _impulse_response(self) -> Tensor:
        """Return low-passed noise of energy 1 that decays by 60 dB in 1.4 s, after 12 ms of silence."""
        times = np.arange(round(1.3 * SAMPLE_RATE)) / SAMPLE_RATE
        noise = np.random.default_rng(5).normal(size=len(times)) * np.exp(-5 * times)
        response = np.convolve(noise, np.hanning(9), "same")
        response[: round(0.012 * SAMPLE_RATE)] = 0
        return torch.from_numpy((response / np.linalg.norm(response)).astype(np.float32)).to(self.device)
