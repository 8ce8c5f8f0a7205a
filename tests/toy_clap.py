"""A toy CLAP in Hugging Face's format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

WORDS = ("tune", *map(str, range(40)))


def make_clap(folder: Path, words: Sequence[str] = WORDS, seed: int = 0) -> Path:
    """Write a ClapModel with random weights and its processor, built as in transformers' own tests.

    Args:
        folder: an empty directory.
        words: those that its tokenizer knows.
        seed: of the weights.

    Returns:
        The directory.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        ClapAudioConfig,
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
        ClapProcessor,
        ClapTextConfig,
        PreTrainedTokenizerFast,
    )

    known = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    text = ClapTextConfig(
        vocab_size=len(known), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=20, projection_dim=8,
    )  # fmt: skip
    audio = ClapAudioConfig(
        window_size=2, num_mel_bins=16, spec_size=32, hidden_size=16, patch_size=4, patch_stride=(4, 4),
        patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[2, 2], num_hidden_layers=2, projection_dim=8,
        num_classes=4,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=8))
    model.save_pretrained(folder)
    extractor = ClapFeatureExtractor(feature_size=16, hop_length=800, max_length_s=1, truncation="rand_trunc")
    ClapProcessor(feature_extractor=extractor, tokenizer=fast).save_pretrained(folder)
    return folder
