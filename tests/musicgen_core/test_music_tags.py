"""Every tag of the networks is mapped or dropped, once; thresholds and contradictions decide what a clip gets."""

from __future__ import annotations

import ast
import importlib.util
from collections import Counter
from pathlib import Path

import pytest
import torch

from musicgen_core.captioning.musicnn import Tagging
from musicgen_core.music_tags import DROPPED, MSD_TAGS, MTT_TAGS, THRESHOLDS, VOCABULARY, choose_tags


def chosen(**probabilities: float) -> dict[str, list[str]]:
    """Return the chosen names by category, for `mtt_…` and `msd_…` tags; `__` stands for a hyphen, `_` for a space."""
    values = {"mtt": torch.full((1, 50), 0.01), "msd": torch.full((1, 50), 0.01)}
    for key, probability in probabilities.items():
        network, _, name = key.partition("_")
        names = MTT_TAGS if network == "mtt" else MSD_TAGS
        values[network][0, names.index(name.replace("__", "-").replace("_", " "))] = probability
    (tags,) = choose_tags(Tagging(values["mtt"], values["msd"], torch.zeros(1, 400)))
    found: dict[str, list[str]] = {}
    for tag in tags:
        found.setdefault(tag.category, []).append(tag.name)
    return found


def test_the_networks_tags_are_in_the_packages_order() -> None:
    spec = importlib.util.find_spec("musicnn")
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).with_name("configuration.py").read_text(encoding="utf-8"))
    values = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert tuple(ast.literal_eval(values["MTT_LABELS"])) == MTT_TAGS
    assert tuple(ast.literal_eval(values["MSD_LABELS"])) == MSD_TAGS


def test_every_tag_has_one_meaning() -> None:
    raw = [name for tags in VOCABULARY.values() for names in tags.values() for name in names]
    raw += [name for names in DROPPED.values() for name in names]
    assert Counter(raw) == Counter({*MTT_TAGS, *MSD_TAGS})
    canonical = [name for tags in VOCABULARY.values() for name in tags]
    assert len(canonical) == len(set(canonical)) and all(name == name.lower() for name in canonical)


def test_nothing_is_chosen_below_the_thresholds() -> None:
    assert chosen(mtt_rock=THRESHOLDS["mtt"] - 0.01, msd_rock=THRESHOLDS["msd"] - 0.01) == {}
    assert chosen(mtt_rock=THRESHOLDS["mtt"] + 0.01) == {"genre": ["rock"]}
    assert chosen(msd_rock=THRESHOLDS["msd"] + 0.01) == {"genre": ["rock"]}


def test_synonyms_are_one_tag_with_the_highest_probability() -> None:
    audio = Tagging(torch.full((2, 50), 0.0), torch.full((2, 50), 0.0), torch.zeros(2, 400))
    audio.mtt[1, MTT_TAGS.index("beat")] = 0.4
    audio.mtt[1, MTT_TAGS.index("drums")] = 0.3
    none, (tag,) = choose_tags(audio)
    assert none == [] and (tag.category, tag.name) == ("instruments", "drums")
    assert tag.probability == pytest.approx(0.4)


def test_the_most_probable_tag_is_first() -> None:
    assert chosen(mtt_piano=0.3, mtt_guitar=0.6, msd_sad=0.5) == {"instruments": ["guitar", "piano"], "mood": ["sad"]}


def test_opinions_dates_and_what_is_measured_are_dropped() -> None:
    assert chosen(msd_sexy=0.9, msd_90s=0.9, mtt_fast=0.9, mtt_solo=0.9) == {}


def test_vocals_do_not_contradict_each_other() -> None:
    assert chosen(mtt_no_voice=0.5, msd_female_vocalists=0.4) == {"vocals": ["no vocals"]}
    assert chosen(mtt_no_voice=0.3, msd_female_vocalists=0.4, mtt_singing=0.2) == {
        "vocals": ["female vocals", "vocals"]
    }


def test_a_genre_far_below_another_is_left_out() -> None:
    assert chosen(mtt_classical=0.7, msd_jazz=0.3) == {"genre": ["classical"]}
    assert chosen(msd_rock=0.5, msd_alternative=0.4) == {"genre": ["rock", "alternative rock"]}
