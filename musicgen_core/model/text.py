"""Text conditioning with a frozen T5 encoder."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model import hub, transformers_format
from musicgen_core.model.decoder import Condition
from musicgen_core.model.transformers_configuration import is_musicgen, read_transformers_config
from musicgen_core.model.transformers_files import as_others_may_read
from musicgen_core.stages import announce
from musicgen_core.texts import shorten

MAX_TOKENS = 512
"""Tokens of a text, of which the rest is cut off: T5's own limit; the memory of its attention grows with the square"""


def find_text_encoder(source: str | Path) -> Path:
    """Return the directory of a T5, after downloading it if `source` is a Hugging Face id such as `t5-base`.

    Raises:
        ModelError: it is not on this machine and can't be downloaded.
    """
    directory = Path(source)
    if directory.is_dir():
        return directory
    if isinstance(source, Path) or directory.is_absolute():
        raise ModelError(
            message("there is no text encoder at {source}", source=source),
            message("Put a T5 encoder and its tokenizer into text_encoder/ of the model directory"),
        )
    return hub.fetch(str(source), hub.T5)


class TextEncoder(nn.Module):
    """A frozen T5 encoder and its tokenizer, in Hugging Face's format.

    Args:
        source: a directory that holds both, a whole MusicGen in transformers' format, or a Hugging Face id such as
            `t5-base`.
        device: the device of the encoder, which runs in fp32: it is small, and half precision changes its states.
    """

    def __init__(self, source: str | Path, device: torch.device | str = "cpu") -> None:
        announce(message("reading the text encoder"))
        from transformers import AutoTokenizer, T5EncoderModel
        from transformers.utils import logging

        super().__init__()
        logging.disable_progress_bar()  # loading takes a second; its bar would break the flows' own
        directory = find_text_encoder(source)
        if is_musicgen(directory):
            default = read_transformers_config(directory).t5
            self.t5, self.tokenizer = transformers_format.load_text_encoder(directory, default)
            self.t5.requires_grad_(False).to(device)
            return
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
            self.t5 = T5EncoderModel.from_pretrained(str(directory), dtype=torch.float32, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(
                message(
                    "the text encoder {source} can't be loaded ({reason})",
                    source=source,
                    reason=textwrap.shorten(str(error), 300),
                ),
                message("Put a T5 encoder and its tokenizer into {directory} again", directory=directory),
            ) from error
        self.t5.eval().requires_grad_(False).to(device)

    @property
    def dim(self) -> int:
        return self.t5.config.d_model

    @torch.no_grad()
    def encode(self, texts: Sequence[str | None]) -> Condition:
        """Return the texts' states [B, L, text_dim] and mask [B, L]; None and "" give the null condition."""
        device = self.t5.device
        if not any(texts):  # their states are never read
            rows = (len(texts), 1)
            return Condition(
                torch.zeros(*rows, self.dim, device=device), torch.zeros(rows, dtype=torch.bool, device=device)
            )
        entries = [shorten(text or "") for text in texts]  # shards of earlier versions may have longer ones
        tokens = self.tokenizer(entries, return_tensors="pt", padding=True, truncation=True, max_length=MAX_TOKENS)
        tokens = tokens.to(device)
        states = self.t5(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        given = torch.tensor([bool(entry) for entry in entries], device=device)
        return Condition(states, tokens["attention_mask"].bool() & given[:, None])


def write_text_encoder(source: str, directory: Path) -> None:
    """Write a T5 encoder and its tokenizer as a directory of their own.

    Args:
        source: as for `TextEncoder`.
    """
    encoder = TextEncoder(source)
    encoder.t5.save_pretrained(directory)
    encoder.tokenizer.save_pretrained(directory)
    as_others_may_read(directory)
