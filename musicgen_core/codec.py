"""EnCodec: audio to codes and back. The codec itself is stock audiocraft's."""

from __future__ import annotations

import textwrap
from typing import Any

import torch
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import CARDINALITY, CODEBOOKS, FRAME_RATE, SAMPLE_RATE
from musicgen_core.errors import ModelError
from musicgen_core.model.weights import BaseModel, file_sha256


class Codec:
    """The codec of a model directory, in fp32, which its weights were trained to be read with.

    Attributes:
        identity: a hash of the codec's weights, for fingerprints.
    """

    def __init__(self, model: BaseModel, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.identity = codec_identity(model)
        loaders = import_audiocraft("audiocraft.models.loaders")
        try:
            self._model: Any = loaders.load_compression_model(str(model.codec_path), device=str(self.device))
        except Exception as error:  # audiocraft raises many kinds on a damaged or foreign file
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
            raise ModelError(
                f"the codec {model.codec_path} can't be loaded ({reason})", "Fetch the file again"
            ) from error
        found = (self._model.sample_rate, self._model.frame_rate, self._model.num_codebooks, self._model.cardinality)
        if found != (SAMPLE_RATE, FRAME_RATE, CODEBOOKS, CARDINALITY):
            raise ModelError(
                f"the codec {model.codec_path} has sample rate, frame rate, codebooks and cardinality {found}, "
                f"not {(SAMPLE_RATE, FRAME_RATE, CODEBOOKS, CARDINALITY)}",
                "Use the codec that comes with facebook/musicgen-large",
            )

    @torch.inference_mode()
    def encode(self, wav: Tensor) -> Tensor:
        """wav [B, 1, samples] at 32 kHz → codes [B, 4, frames], int64."""
        codes, _ = self._model.encode(wav.to(self.device))
        return codes

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, 4, frames] → wav [B, 1, frames × 640] at 32 kHz, fp32 on the CPU."""
        return self._model.decode(codes.to(self.device)).float().cpu()


def codec_identity(model: BaseModel) -> str:
    """A hash of the codec's weights, without loading them."""
    stat = model.codec_path.stat()
    return f"sha256:{file_sha256(model.codec_path, stat.st_size, stat.st_mtime_ns)[:16]}"
