from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

from musicgen_core.synthesis import captions
from musicgen_core.synthesis.captions import Truth, caption_of, vocabulary
from musicgen_core.synthesis.composing import compose_many
from musicgen_core.synthesis.styles import ALL_STYLES, HELD_OUT, STYLES


def described(style: str | None, full: bool) -> Iterator[tuple[Truth, str]]:
    for clip in compose_many(300, 0, style, frames=50, full_caption=full):
        yield clip.truth, clip.caption


def said(phrases: tuple[str, ...], caption: str) -> bool:
    return any(re.search(rf"(^|[ ,]){re.escape(phrase)}($|[ ,])", caption) for phrase in phrases)


def words_of(caption: str) -> list[str]:
    return caption.replace(",", " ").split()


@pytest.mark.parametrize("style", ALL_STYLES)
def test_captions_tell_the_truth(style: str) -> None:
    for truth, caption in described(style, full=False):
        assert said(captions.GENRES[style], caption)
        assert re.findall(r"(\d+) bpm", caption) in ([], [str(truth.bpm)])
        keys = re.findall(r"(?:^|[ ,])([a-g](?:#|b| sharp| flat)?) (major|minor)", caption)
        assert all(tonic in captions.TONICS[truth.root] and mode == truth.mode for tonic, mode in keys)
        assert ("waltz" in caption or "3/4" in caption) == (truth.meter == 3)
        assert truth.meter == 4 or "4/4" not in caption
        for mode, moods in captions.MODE_MOODS.items():
            assert mode == truth.mode or not said(moods, caption)
        for tempo, words in captions.TEMPO_WORDS.items():
            without_drums = caption.replace("fast drums", "drums")
            assert tempo == captions.speed(truth.bpm) or not said(words, without_drums)
        for sound, names in captions.SOUNDS.items():
            present = sound in truth.instruments or (sound == "drums" and truth.drums)
            without_electric = caption.replace("electric piano", "rhodes")
            assert present or not said(names, without_electric) or said(names, " ".join(captions.GENRES[style]))


def test_full_captions_state_every_parameter() -> None:
    for truth, caption in described(None, full=True):
        assert f"{truth.bpm} bpm" in caption
        assert any(f"{tonic} {truth.mode}" in caption for tonic in captions.TONICS[truth.root]) == truth.pitched
        assert said(("3/4", "waltz") if truth.meter == 3 else ("4/4",), caption)
        for sound in (*truth.instruments, *(["drums"] if truth.drums else [])):
            assert any(name in caption for name in captions.SOUNDS[sound])


def test_captions_omit_what_prompts_often_omit() -> None:
    pairs = list(described(None, full=False))
    share = lambda pattern: sum(bool(re.search(pattern, caption)) for _, caption in pairs) / len(pairs)  # noqa: E731
    assert 0.65 < share(r"\d bpm") < 0.85
    assert 0.5 < share(r"(major|minor)") < 0.75
    assert 0.4 < share(r"(waltz|/4)") < 0.7
    assert len({caption for _, caption in pairs}) > 0.95 * len(pairs)


def test_the_vocabulary_has_every_word_of_the_base_styles() -> None:
    known = set(vocabulary())
    assert {str(bpm) for bpm in range(60, 161)} <= known
    for full in (True, False):
        for clip in compose_many(1_000, 10_000, frames=50, full_caption=full):
            assert set(words_of(clip.caption)) <= known, clip.caption


def test_the_vocabulary_lacks_the_names_of_held_out_styles() -> None:
    known = set(vocabulary())
    for style in HELD_OUT:
        for _, caption in described(style, full=False):
            assert set(words_of(caption)) - known, caption


def test_the_vocabulary_has_the_words_of_the_readmes_prompts() -> None:
    prompts = (
        "Upbeat electronic dance music with strong bass",
        "Relaxing jazz piano with soft background ambience",
        "Heavy metal with fast drums",
        "calm piano, 80 bpm",
        "lofi hip hop",
    )
    assert {word for prompt in prompts for word in words_of(prompt.lower())} <= set(vocabulary())


def test_a_description_depends_on_its_random_stream_only() -> None:
    truth = next(described("folk", full=False))[0]
    assert caption_of(truth, random.Random(1)) == caption_of(truth, random.Random(1))
    assert STYLES["folk"].beat == truth.beat
