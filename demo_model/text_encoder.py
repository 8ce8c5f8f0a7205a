"""One-layer T5 with a whole-word vocabulary, trained together with the language model.

audiocraft derives the width of a text encoder from its name, so this one has the width of t5-small. Its tokenizer
lower-cases, has each word of the captions as a token, and splits other words into characters, which are tokens of
their own.
"""

from __future__ import annotations

import math
import random
import string
from typing import Any

import torch

from musicgen_core.synthesis.captions import HIGHEST_BPM, LOWEST_BPM, vocabulary

WIDTH = 512
SPELLED = 0.1  # share of captions that get an out-of-vocabulary word


def build() -> tuple[Any, Any]:
    """Return the tokenizer and the untrained encoder."""
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel, T5Tokenizer

    characters = "▁" + "".join(sorted(set(string.printable) - set(string.whitespace) - set(string.ascii_uppercase)))
    words = [word for word in vocabulary() if len(word) > 1]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(f"▁{word}", -1.0) for word in words] + [(character, -4.0) for character in characters]
    backend = T5Tokenizer(vocab=vocab, extra_ids=0).backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *filter(None, [backend.normalizer])])
    # T5Tokenizer would replace the normalizer on loading.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=16, d_ff=64, num_layers=1, num_heads=4, dropout_rate=0.0
    )
    encoder = T5EncoderModel(config)
    torch.nn.init.normal_(encoder.shared.weight, std=1.0)
    _place_numbers(tokenizer, encoder.shared.weight.data)
    return tokenizer, encoder


def _place_numbers(tokenizer: Any, embeddings: torch.Tensor) -> None:
    """Initialize similar tempos with similar embeddings, so that 100 words aren't learned independently."""
    bpm = torch.arange(LOWEST_BPM, HIGHEST_BPM + 1)
    octaves = (bpm / LOWEST_BPM).log2()
    rates = torch.logspace(math.log10(0.5), math.log10(16), WIDTH // 2)
    phases = 2 * math.pi * octaves[:, None] * rates
    tokens = tokenizer.convert_tokens_to_ids([f"▁{number}" for number in bpm.tolist()])
    embeddings[tokens] = math.sqrt(2) * torch.cat([phases.sin(), phases.cos()], dim=1)


def with_unknown_words(captions: list[str], seed: int) -> list[str]:
    """Insert a random word into some captions, so that the model learns to ignore unknown words."""
    rng = random.Random(seed)
    return [_with_unknown_word(caption, rng) if rng.random() < SPELLED else caption for caption in captions]


def _with_unknown_word(caption: str, rng: random.Random) -> str:
    words = caption.split(" ")
    unknown = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 10)))
    words.insert(rng.randint(0, len(words)), unknown)
    return " ".join(words)
