from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.config import SamplingSettings, TokenizeSettings, TrainSettings
from musicgen_core.errors import ConfigError
from musicgen_core.settings import Settings, read_yaml, validate
from musicgen_core.texts import template_fields


def refusal(kind: type[Settings] = TrainSettings, /, **values: Any) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        validate(kind, values)
    return refused.value


def test_the_defaults_are_the_documented_ones() -> None:
    promised = {
        "lora_r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "batch_size": "auto",
        "gradient_accumulation_steps": None,
        "num_epochs": 5,
        "max_steps": None,
        "max_grad_norm": 1.0,
        "segment_seconds": 30,
        "validation_fraction": 0.05,
        "save_every_steps": 500,
        "cfg_dropout": None,
        "warmup_steps": 0,
    }
    defaults = TrainSettings().model_dump()
    assert {name: defaults[name] for name in promised} == promised


@pytest.mark.parametrize("given", [{"schedule": "cosine"}, {"ema": 0.99}], ids=str)
def test_schedulefree_takes_neither_schedule_nor_average(given: dict[str, Any]) -> None:
    (name,) = given
    assert f"{name}: should" in refusal(optimizer_name="schedulefree", **given).found
    assert getattr(TrainSettings(optimizer_name="prodigy", **given), name) == given[name]


@pytest.mark.parametrize(
    ("given", "shown"), [("24-47", "24-47"), ("24, 0-11", "0-11,24"), (7, "7"), ("0,1,2", "0-2"), (" ", None)]
)
def test_layers_are_numbers_and_ranges(given: str | int, shown: str | None) -> None:
    assert TrainSettings(layers=given).layers == shown


def test_ranks_are_given_by_layer() -> None:
    assert TrainSettings(ranks="24-47=16, 0-22=4,23=4").ranks == "0-23=4,24-47=16"
    assert TrainSettings(layers="24-47", ranks="24-30=4").ranks == "24-30=4"


@pytest.mark.parametrize(
    "given",
    [
        *({"layers": layers} for layers in ("a", "5-2", "1,1", "0-3,2", "1000", "-1", "1-", True)),
        *({"ranks": ranks} for ranks in ("4", "0=0", "0=x", "0-3=4,2=8", "0=9999", "0-1")),
        {"layers": "24-47", "ranks": "0-23=4"},
    ],
    ids=str,
)
def test_layers_and_ranks_of_another_form_are_refused(given: dict[str, Any]) -> None:
    found = refusal(**given).found
    assert f"{list(given)[-1]}: " in found


@pytest.mark.parametrize("kind", [TrainSettings, TokenizeSettings, SamplingSettings])
def test_every_setting_has_a_description(kind: type[Settings]) -> None:
    assert [name for name, field in kind.model_fields.items() if not field.description] == []


def test_all_problems_are_listed_at_once_with_given_values() -> None:
    found = refusal(lora_r=0, batch_size=-2, learning_rate="fast", lora_dropout=1.0, epochs=3, max_steps=2.5).found
    for name, value in (("lora_r", "0"), ("batch_size", "-2"), ("learning_rate", "'fast'"), ("lora_dropout", "1.0")):
        assert f"{name}: input should be" in found
        assert f", not {value}" in found
    assert "max_steps: input should be a valid integer" in found
    assert "there is no setting epochs" in found
    assert "have 6 problems" in found


@pytest.mark.parametrize("value", ["many", 0, None, 1.5])
def test_a_setting_of_two_kinds_is_one_problem_that_names_both(value: Any) -> None:
    found = refusal(batch_size=value).found
    assert "have a problem: batch_size: " in found
    assert found.endswith(f" or 'auto', not {value!r}")


@pytest.mark.parametrize("name", sorted(set(TrainSettings.model_fields) - {"batch_size", "lora_targets"}))
def test_numbers_that_make_no_sense_are_refused(name: str) -> None:
    assert f"{name}: " in refusal(**{name: -1}).found
    assert f"{name}: " in refusal(**{name: "text"}).found
    assert f"{name}: " in refusal(**{name: float("nan")}).found


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainSettings().lora_r = 16  # type: ignore[misc]


# Descriptions and archives


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("{genre}, {bpm} bpm", ["genre", "bpm"]),
        ("{genre} {genre}", ["genre"]),
        ("{key signature}/{sub-genre} {{x}} {ジャンル}", ["key signature", "sub-genre", "ジャンル"]),
    ],
)
def test_a_template_names_its_fields(template: str, fields: list[str]) -> None:
    assert validate(TokenizeSettings, {"caption_template": template}).caption_template == template
    assert template_fields(template) == fields


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        *(
            (text, "nothing but names of fields")
            for text in ("{a.b}", "{a[0]}", "{0}", "{}", "{x!r}", "{x:>9}", "{x:{y}}")
        ),
        *((text, "names of fields in braces, such as {genre} (") for text in ("{a", "a}", "{a}}", "{a!}", "{")),
        *((text, "should name a field in braces") for text in ("techno", "{{genre}}")),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_in_words(template: str, reason: str) -> None:
    found = refusal(TokenizeSettings, caption_template=template).found
    assert "caption_template: should " in found and reason in found
    assert found.endswith(f", not {template!r}")


@settings(max_examples=200, deadline=None)
@given(st.text("ab{}!:.[]0 ", max_size=8))
def test_a_template_that_is_allowed_can_be_filled(template: str) -> None:
    try:
        fields = template_fields(template)
    except ValueError:
        return
    filled = template.format_map(dict.fromkeys(fields, "¤"))
    assert "¤" in filled


def test_caption_and_template_together_are_one_problem() -> None:
    found = refusal(TokenizeSettings, caption="x", caption_template="{genre}").found
    assert "have a problem: caption_template: caption stands for every clip, so give only one of the two" in found


@pytest.mark.parametrize("name", ["cp932", "Shift_JIS", " gbk ", "auto", "utf-8"])
def test_encodings_may_be_given_by_any_of_their_names(name: str) -> None:
    assert validate(TokenizeSettings, {"name_encoding": name}).name_encoding == name.strip()


@pytest.mark.parametrize("name", ["shift-jizz", "base64", "rot13", "undefined", "\0"])
def test_encodings_unusable_for_file_names_are_refused(name: str) -> None:
    assert "name_encoding: should be auto or an encoding" in refusal(TokenizeSettings, name_encoding=name).found


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_blank_texts_count_as_not_given(blank: str) -> None:
    texts = dict.fromkeys(["caption", "caption_prefix", "caption_template", "name_encoding"], blank)
    assert validate(TokenizeSettings, texts) == TokenizeSettings()
    assert validate(TokenizeSettings, {"caption": blank, "caption_template": " {a} "}).caption_template == "{a}"


@pytest.mark.parametrize(
    "values", [{"max_clip_gib": 0}, {"max_clip_gib": float("inf")}, {"max_ratio": 1}, {"max_ratio": float("nan")}]
)
def test_limits_of_archives_must_make_sense(values: dict[str, float]) -> None:
    assert f"{next(iter(values))}: " in refusal(TokenizeSettings, **values).found


def test_all_problems_of_tokenizing_settings_are_listed_at_once() -> None:
    values = {"caption": "x", "caption_template": "{a}", "name_encoding": "x", "max_clip_gib": "x", "max_ratio": -1}
    assert "have 4 problems" in refusal(TokenizeSettings, **values).found


def test_a_learning_rate_of_0_or_none_is_the_default_of_the_trained_weights() -> None:
    for none in (0, "0", "", None):
        rates = [TrainSettings.model_validate({"learning_rate": none, "train": each}) for each in ("lora", "all")]
        assert [settings.learning_rate for settings in rates] == [1e-4, 1e-5]


# YAML


def test_yaml_gives_the_settings_by_name(tmp_path: Path, bucket: UPath) -> None:
    text = "# mine\nlearning_rate: 1e-4\nlora_r: 16\nbatch_size: auto\nmax_steps: null\n"
    for place in (storage.as_path(tmp_path / "s.yaml"), bucket / "s.yaml"):
        storage.write_text(place, text)
        read = validate(TrainSettings, read_yaml(str(place)))
        assert read == TrainSettings(learning_rate=1e-4, lora_r=16)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_gives_no_settings(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    assert read_yaml(tmp_path / "s.yaml") == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"lora_r: [1,\n", "can't be read"),
        (b"lora_r: 8\n lora_alpha: 2\n", "can't be read"),
        (b"a: 1\n---\nb: 2\n", "can't be read"),
        (b"\xff\xfe\x80", "can't be read"),
        (b"lora_r: \x07\n", "can't be read"),
        (b"lora_r: !!python/object/apply:os.getcwd []\n", "can't be read"),
        (b"- lora_r\n", "holds no settings"),
        (b"just words", "holds no settings"),
        (b"8: lora_r\n", "holds no settings"),
        (b"on: 1\n", "holds no settings"),
    ],
)
def test_a_file_that_is_no_settings_is_named_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "s.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_yaml(tmp_path / "s.yaml")
    assert f"{tmp_path / 's.yaml'} {reason}" in refused.value.found
    assert "\n" not in str(refused.value) and refused.value.next_step


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml can't be read"):
        read_yaml(tmp_path / "none.yaml")


def test_sampling_settings_are_finite() -> None:
    with pytest.raises(ConfigError, match="2 problems"):
        validate(SamplingSettings, {"guidance": float("inf"), "temperature": float("inf")})
