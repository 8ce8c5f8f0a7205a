"""Labels of the tagger clap, from YAML files."""

from __future__ import annotations

from pathlib import Path

import pytest

from musicgen_core.captioning.labels import DEFAULT_LABELS, read_labels
from musicgen_core.errors import ConfigError
from musicgen_core.music_tags import NO_VOCALS, VOCABULARY


def written(folder: Path, text: str) -> Path:
    path = folder / "labels.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_built_in_labels_are_each_in_one_category() -> None:
    labels = [label for _, labels in DEFAULT_LABELS for label in labels]
    assert len(labels) == len(set(labels)) and all(label == label.strip().lower() for label in labels)
    assert [category for category, _ in DEFAULT_LABELS] == list(VOCABULARY)
    assert {"trumpet", "saxophone", "piano", "techno", NO_VOCALS} <= set(labels)


def test_lists_of_a_file_replace_the_built_in_ones(tmp_path: Path) -> None:
    path = written(tmp_path, "instruments: [koto, ' shamisen ', choir]\ngenre:\n- enka\n- 80s\n")
    found = dict(read_labels(path))
    assert found["instruments"] == ("koto", "shamisen", "choir") and found["genre"] == ("enka", "80s")
    assert found["mood"] == dict(DEFAULT_LABELS)["mood"]
    assert "choir" not in found["vocals"] and NO_VOCALS in found["vocals"]


def test_all_problems_of_a_file_are_listed_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "genres: [a, b]\ngenre: []\ninstruments: piano\nmood: [1980, calm]\nvocals: [x, X]\n")
    with pytest.raises(ConfigError) as refused:
        read_labels(path)
    found = str(refused.value)
    for part in (
        f"the labels in {path} have 5 problems",
        "there is no setting genres",
        "genre: should be a list of two or more labels, not []",
        "instruments: input should be a valid list, not 'piano'",
        "mood: input should be a valid string, not 1980",
        "vocals: should not have X, which is listed before",
    ):
        assert part in found, found


@pytest.mark.parametrize("text", ["mood: [calm, '  ']", "mood: [calm]"])
def test_a_category_takes_two_labels(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="mood: should be a list of two or more labels"):
        read_labels(written(tmp_path, text))


def test_a_label_of_two_categories_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocals: should not have Choir, which is listed before"):
        read_labels(written(tmp_path, "instruments: [choir, piano]\nvocals: [Choir, no vocals]"))


@pytest.mark.parametrize("text", ["- a", "genre: [", ""])
def test_a_file_of_no_lists_is_refused_or_empty(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    if text:
        with pytest.raises(ConfigError, match=f"the settings file {path}"):
            read_labels(path)
    else:
        assert read_labels(path) == DEFAULT_LABELS
