from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo_model import text_encoder
from musicgen_core.model.text import TextEncoder
from musicgen_core.synthesis.captions import vocabulary


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """The untrained encoder, as fine-tuning loads it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text_encoder")
    tokenizer, encoder = text_encoder.build()
    tokenizer.save_pretrained(folder)
    encoder.save_pretrained(folder)
    return TextEncoder(Path(folder))


def test_words_of_captions_are_one_token_in_any_case(saved: TextEncoder) -> None:
    assert saved.tokenizer.tokenize("Upbeat JAZZ, 125 bpm in F# minor") == [
        *("▁upbeat", "▁jazz", ",", "▁125", "▁bpm", "▁in", "▁f#", "▁minor"),
    ]
    for word in vocabulary():
        assert saved.tokenizer.tokenize(word) == [f"▁{word}"] or len(word) == 1, word


def test_unknown_words_are_spelled(saved: TextEncoder) -> None:
    tokens = saved.tokenizer("zither", add_special_tokens=False)["input_ids"]
    assert len(tokens) > 1 and saved.tokenizer.unk_token_id not in tokens


def test_similar_tempos_start_with_similar_embeddings() -> None:
    torch.manual_seed(0)
    tokenizer, encoder = text_encoder.build()
    ids = tokenizer.convert_tokens_to_ids([f"▁{bpm}" for bpm in (100, 101, 140)])
    near, far = (torch.cosine_similarity(encoder.shared.weight[ids[0]], encoder.shared.weight[i], 0) for i in ids[1:])
    assert near > 0.5 > far.abs()


def test_some_captions_get_an_unknown_word() -> None:
    captions = ["calm piano, 80 bpm"] * 1000
    changed = text_encoder.with_unknown_words(captions, seed=0)
    assert changed == text_encoder.with_unknown_words(captions, seed=0)
    different = [caption for caption in changed if caption != captions[0]]
    assert 60 < len(different) < 140
    assert all(len(caption.split()) == 5 for caption in different)
