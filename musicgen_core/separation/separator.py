"""Demucs: stereo audio to the sources in it. The model itself is stock demucs's."""

from __future__ import annotations

import json
import textwrap
import threading
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.separation.weights import BAG_FILE, SIGNATURE, WEIGHTS_FILE, separator_identity
from musicgen_core.stages import announce
from musicgen_core.tensor_files import names_of_non_finite

BATCH_SEGMENTS = {"cpu": 1, "cuda": 32}
"""Segments of 7.8 s in a batch: on a CPU each layer already keeps all cores busy"""
VOCALS = frozenset({"vocals"})
RHYTHM = frozenset({"drums", "bass"})
"""Sources that drown the melody; audiocraft's `ChromaStemConditioner` leaves them out, too"""
_CLASS = "demucs.htdemucs.HTDemucs"


class Separator:
    """HTDemucs in fp32. Thread-safe: calls are serialized, so memory holds the activations of one batch.

    Attributes:
        identity: name and hash of the weights, for fingerprints.
        rate: sample rate of the audio that it takes, in Hz.
        segment_samples: length of a segment, the one that it was trained with.
        batch_segments: segments to pass at once. Callers lower it when they run out of memory.

    Args:
        directory: the weights, as the Hub has them.
        device: where to compute.

    Raises:
        ModelError: the weights are damaged, or not of an HTDemucs that separates vocals.
    """

    def __init__(self, directory: Path, device: torch.device | str = "cpu") -> None:
        announce(message("reading the weights of Demucs"))
        self.device = torch.device(device)
        self.identity = separator_identity(directory)
        self._model = _load(directory).to(self.device)
        self.rate: int = self._model.samplerate
        self.segment_samples = int(self._model.segment * self.rate)
        self.batch_segments = BATCH_SEGMENTS[self.device.type]
        self._lock = threading.Lock()

    @torch.inference_mode()
    def without(self, segments: Tensor, left_out: Sequence[Set[str]]) -> Tensor:
        """Return sums of sources.

        Args:
            segments: [B, 2, segment_samples], normalised to the mean and the deviation of their clips.
            left_out: the sources that each sum leaves out.

        Returns:
            [sums, B, 2, segment_samples], on the CPU.

        Raises:
            torch.OutOfMemoryError: the batch is too large for the GPU.
        """
        with self._lock:
            sources = self._model(segments.to(self.device))  # [B, sources, 2, samples]
            kept = [[index for index, name in enumerate(self._model.sources) if name not in out] for out in left_out]
            return torch.stack([sources[:, indices].sum(dim=1) for indices in kept]).cpu()


def _load(directory: Path) -> Any:
    path = directory / WEIGHTS_FILE
    try:
        _check_class(path)
        model = _read(directory)
    except Exception as error:  # safetensors, yaml and torch raise many kinds on a damaged or foreign file
        raise _unusable(path, f"{type(error).__name__}: {error}") from error
    if broken := names_of_non_finite(model.state_dict()):
        raise _unusable(path, f"NaN or infinity in {broken[0]}")
    if not VOCALS.issubset(model.sources) or len(model.sources) < 2 or model.audio_channels != 2:
        raise _unusable(path, f"sources: {', '.join(model.sources)}; channels: {model.audio_channels}")
    return model.eval().requires_grad_(False)


def _check_class(path: Path) -> None:
    """Check the class that the file names: demucs imports whatever stands there."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        described = file.metadata() or {}
    if described.get("klass") != _CLASS or "structure" in described:  # the structure of quantized weights
        raise ValueError(f"it is not of the class {_CLASS}")
    json.loads(described["args"]), json.loads(described["kwargs"])


def _read(directory: Path) -> Any:
    """Return the model as `demucs.hf.get_hf_model` does, which asks the Hub for each file."""
    import yaml
    from demucs.apply import BagOfModels
    from demucs.hf import load_safetensors_model

    bag = yaml.safe_load((directory / BAG_FILE).read_text(encoding="utf-8"))
    if bag["models"] != [SIGNATURE]:
        raise ValueError(f"{BAG_FILE} names {bag['models']}, not {SIGNATURE}")
    model = load_safetensors_model(directory / WEIGHTS_FILE)
    return BagOfModels([model], bag.get("weights"), bag.get("segment")).models[0]


def _unusable(path: Path, reason: str) -> ModelError:
    return ModelError(
        message(
            "the weights of Demucs, {path}, can't be used ({reason})",
            path=path,
            reason=textwrap.shorten(reason, 300),
        ),
        message("Delete {folder}: it is downloaded again", folder=path.parent.parent.parent),
    )
