"""Share of speech in clips, by Silero VAD.

The weights (MIT) come with the package silero-vad, which is never imported: its import limits torch to one thread. The
network is rebuilt here for batches: its encoder and output layer take all windows of all clips at once, and only the
recurrent layer between them is sequential.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE = 16_000
WINDOW, CONTEXT = 512, 64  # samples: windows of 32 ms, each with the end of the one before
REFLECTED = 64  # samples at a window's end
WINDOWS_AT_ONCE = 16_384

SPEAKS = 0.9  # probability: singing often has 0.5 to 0.9
LONGEST_GAP, SHORTEST_SPEECH = 3, 8  # windows: pauses up to 100 ms belong to the speech around, 250 ms are its minimum

NAMES = {
    "stft_conv.weight": "stft.forward_basis_buffer",
    **{f"conv{i + 1}.{kind}": f"encoder.{i}.reparam_conv.{kind}" for i in range(4) for kind in ("weight", "bias")},
    **{f"lstm.{kind}_{side}_l0": f"decoder.rnn.{kind}_{side}" for kind in ("weight", "bias") for side in ("ih", "hh")},
    **{f"final_conv.{kind}": f"decoder.decoder.2.{kind}" for kind in ("weight", "bias")},
}
"""Our names of the weights, and those of the package's TorchScript file (its safetensors file has older weights)"""


class Speech(NamedTuple):
    """Speech of each clip.

    Attributes:
        share: of the clip's time, [B]. Pauses between words are not speech: it is 0.9 for a fluent reader.
        confidence: from 0 to 1, [B]: mean of |2p - 1| over windows with probability p. Low for singing and shouts.
    """

    share: Tensor
    confidence: Tensor


class SileroVad(nn.Module):
    """The 16 kHz network of Silero VAD 6 (https://github.com/snakers4/silero-vad), for batches of whole clips."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)  # real and imaginary parts of 129 bins
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, audio: Tensor) -> Tensor:
        """Return the probability of speech in each window of 32 ms, [B, windows], of [B, samples] at 16 kHz."""
        padded = F.pad(audio, (CONTEXT, -audio.shape[-1] % WINDOW))
        windows = padded.unfold(-1, CONTEXT + WINDOW, WINDOW)  # [B, windows, 576]
        encoded = torch.cat([self._encode(part) for part in windows.flatten(0, 1).split(WINDOWS_AT_ONCE)])
        hidden, _ = self.lstm(encoded.view(*windows.shape[:2], -1))
        return self.final_conv(hidden.transpose(1, 2).relu()).sigmoid()[:, 0]

    def _encode(self, windows: Tensor) -> Tensor:
        """Encode windows [N, 576] → [N, 128]."""
        real, imaginary = self.stft_conv(F.pad(windows, (0, REFLECTED), "reflect")[:, None]).chunk(2, dim=1)
        x = (real.square() + imaginary.square()).sqrt()  # [N, 129, 4]
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = convolution(x).relu()
        return x[..., 0]


def load_vad(device: str | torch.device = "cpu") -> SileroVad:
    """Load the network with the weights of the installed package."""
    spec = find_spec("silero_vad")
    assert spec and spec.origin
    weights = torch.jit.load(str(Path(spec.origin).parent / "data" / "silero_vad.jit"), "cpu").state_dict()
    vad = SileroVad()
    vad.load_state_dict({name: weights[f"_model.{theirs}"] for name, theirs in NAMES.items()})
    return vad.eval().requires_grad_(False).to(device)


def measure_speech(vad: SileroVad, audio: Tensor) -> Speech:
    """Measure the speech in mono audio at 16 kHz, [B, samples], on the device of the network."""
    probabilities = vad(audio)
    speech = (probabilities > SPEAKS).float()
    speech = _eroded(_dilated(speech, LONGEST_GAP + 1), LONGEST_GAP + 1)
    shortest = min(SHORTEST_SPEECH, speech.shape[1])
    speech = _dilated(_eroded(speech, shortest), shortest)
    return Speech(share=speech.mean(1), confidence=(2 * probabilities - 1).abs().mean(1))


def _dilated(values: Tensor, width: int) -> Tensor:
    """Return the maximum of every `width` neighbours, with zeros around: [B, N] → [B, N + width - 1]."""
    return F.max_pool1d(F.pad(values, (width - 1, width - 1)), width, 1)


def _eroded(values: Tensor, width: int) -> Tensor:
    """Return the minimum of every `width` neighbours: [B, N] → [B, N - width + 1]."""
    return -F.max_pool1d(-values, width, 1)
