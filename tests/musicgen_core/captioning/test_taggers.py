"""Which tagger settings choose, and what identifies it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from musicgen_core.captioning.labels import DEFAULT_LABELS
from musicgen_core.captioning.tagger_settings import DEFAULT_CLAP, TaggerSettings
from musicgen_core.captioning.taggers import find_tagger
from musicgen_core.captioning.versions import measured_by
from musicgen_core.errors import ConfigError, ModelError
from musicgen_core.settings import validate
from tests.stand_in_hub import StandInHub


def test_the_default_is_musicnn_without_any_weights_of_clap(hub: StandInHub) -> None:
    found = find_tagger(TaggerSettings())
    assert found.clap is None and "musicnn 0.1" in measured_by(found.name)
    assert hub.requests == []


def test_a_model_of_the_hub_is_named_with_its_revision(hub: StandInHub, clap_weights: Path) -> None:
    hub.add(DEFAULT_CLAP, clap_weights)
    found = find_tagger(TaggerSettings(tagger="clap"))
    assert (found.clap, found.labels) == (DEFAULT_CLAP, DEFAULT_LABELS)
    assert found.name.startswith(f"CLAP {DEFAULT_CLAP} ")
    assert len(found.name.split()[2].strip(",")) == 12


def test_other_weights_or_labels_have_another_name(clap_weights: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(clap_weights, tmp_path / clap_weights.name))
    names = {find_tagger(TaggerSettings(tagger="clap", tagger_model=str(each))).name for each in (clap_weights, other)}
    assert len(names) == 1
    config = other / "config.json"
    config.write_text(config.read_text() + "\n")
    names.add(find_tagger(TaggerSettings(tagger="clap", tagger_model=str(other))).name)
    labels = tmp_path / "labels.yaml"
    labels.write_text("mood: [calm, angry]")
    with_labels = TaggerSettings(tagger="clap", tagger_model=str(clap_weights), tagger_labels=str(labels))
    names.add(find_tagger(with_labels).name)
    assert len(names) == 3


def test_options_of_clap_are_refused_without_it() -> None:
    with pytest.raises(ConfigError) as refused:
        validate(TaggerSettings, {"tagger_model": "a/b", "tagger_labels": "x.yaml"})
    for name in ("tagger_model", "tagger_labels"):
        assert f"{name}: should only be given with tagger clap" in str(refused.value)


def test_a_model_that_is_nowhere_is_refused_with_the_option() -> None:
    with pytest.raises(ModelError, match=r"there is no directory \./no/clap .*Give --tagger-model a directory"):
        find_tagger(TaggerSettings(tagger="clap", tagger_model="./no/clap"))
