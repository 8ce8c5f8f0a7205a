"""Find Demucs and its weights, without loading PyTorch."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from musicgen_core.errors import ConfigError, ModelError
from musicgen_core.language import message
from musicgen_core.model import hub
from musicgen_core.model.local_files import file_sha256

REPO = "adefossez/HTDemucs"
"""Hybrid Transformer Demucs (Rouard et al. 2023, arXiv:2211.08553), of Demucs's author: one model of four sources"""
NAME, SIGNATURE = "htdemucs", "955717e8"
BAG_FILE, WEIGHTS_FILE = f"{NAME}.yaml", f"{SIGNATURE}.safetensors"
_FILES = hub.Wanted((BAG_FILE, WEIGHTS_FILE))


def check_installed(option: str) -> None:
    """Check that Demucs is installed.

    Args:
        option: the option that needs it.

    Raises:
        ConfigError: it is not, or only an older version.
    """
    if find_spec("demucs") is None or find_spec("demucs.hf") is None:  # new in Demucs 4.1
        raise ConfigError(
            message("{option} requires Demucs 4.1 or newer, which is not installed", option=option),
            message("Install it: uv sync --extra vocals, or pip install 'demucs>=4.1'"),
        )


def find_separator(option: str) -> Path:
    """Return the directory of the weights, which are downloaded if they are missing.

    Args:
        option: the option that needs them.

    Raises:
        ConfigError: Demucs is not installed.
        ModelError: the weights are missing and can't be downloaded.
    """
    check_installed(option)
    try:
        return hub.fetch(REPO, _FILES)
    except ModelError as error:
        raise ModelError(
            message("the weights for {option} can't be downloaded: {reason}", option=option, reason=error.found),
            error.next_step,
        ) from error


def separator_identity(directory: Path) -> str:
    """Return the model's name with a hash of its files, for fingerprints."""
    both = "".join(file_sha256(directory / name) for name in (BAG_FILE, WEIGHTS_FILE))
    return f"{NAME}@sha256:{hashlib.sha256(both.encode()).hexdigest()[:16]}"
