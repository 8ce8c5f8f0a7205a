from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musicgen_core.config import TrainSettings
from musicgen_core.errors import ConfigError
from musicgen_core.evaluation.request import EvaluateSettings
from musicgen_core.generation.prompts import Prompt, read_prompts
from musicgen_core.settings import validate

TEXTS = st.text(st.characters(exclude_categories=("Cs",)))


def test_prompts_come_from_a_text_file_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('slow piano\n\n  Blasmusik für Anfänger  \r\n{"no": "JSON here"}', encoding="utf-8")
    texts = [prompt.prompt for prompt in read_prompts(str(path))]
    assert texts == ["slow piano", "Blasmusik für Anfänger", '{"no": "JSON here"}']


def test_a_line_of_jsonl_may_have_its_own_duration_seed_and_beginning(tmp_path: Path) -> None:
    path = tmp_path / "prompts.JSONL"
    lines = [
        '{"prompt": "jazz", "duration": 45, "seed": 7}',
        "",
        '"a text alone"',
        '{"prompt": "x", "continue_from": "a.wav"}',
    ]
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert read_prompts(str(path)) == [
        Prompt(prompt="jazz", duration=45, seed=7),
        Prompt(prompt="a text alone"),
        Prompt(prompt="x", continue_from="a.wav"),
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), ascii_only=st.booleans())
def test_any_text_survives_jsonl(tmp_path: Path, texts: list[str], ascii_only: bool) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": text}, ensure_ascii=ascii_only) for text in texts]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    assert [prompt.prompt for prompt in read_prompts(str(path))] == texts


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00"], ids=["missing", "empty", "blank", "binary"])
def test_a_file_without_prompts_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        read_prompts(str(path))


def test_a_missing_prompts_file_is_named_without_an_error_number(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    with pytest.raises(ConfigError) as refused:
        read_prompts(str(path))
    assert refused.value.found == f"the prompts file {path} can't be read (no such file or directory: {path})"


def test_every_wrong_line_of_jsonl_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "good"}\n{"prompt":\n{"prompt": "x", "duration": -1, "tempi": 3}\n3\n{"seed": 1}\n')
    with pytest.raises(ConfigError) as refused:
        read_prompts(str(path))
    found = refused.value.found
    assert found.startswith(f"the prompts file {path} is wrong: line 2 is no JSON")
    assert "the fields of line 3 have 2 problems: duration" in found and "no setting tempi" in found
    assert "line 4 is neither a text nor an object" in found
    assert "the fields of line 5 have a problem: prompt: field required" in found
    assert '{"prompt": "slow jazz"' in refused.value.next_step


def test_half_a_character_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "good"}\n{"prompt": "\\ud83c"}\n"\\ud83c"\n')
    with pytest.raises(ConfigError) as refused:
        read_prompts(str(path))
    assert "the fields of line 2 have a problem: prompt: should be whole characters" in refused.value.found
    assert "the fields of line 3 have a problem: prompt: should be whole characters" in refused.value.found


def test_the_first_invalid_lines_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("3\n" * 20)
    with pytest.raises(ConfigError, match=r"line 5 is neither a text nor an object; and 15 more lines\. "):
        read_prompts(str(path))


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_a_prompt_of_absurd_length_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    text = "piano " * 2500
    (tmp_path / name).write_text(f'"short"\n{json.dumps(text)}\n')
    with pytest.raises(ConfigError) as refused:
        read_prompts(str(tmp_path / name))
    assert "line 2 have a problem: prompt: should have at most 2,000 characters, and has 15," in refused.value.found
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("field", ["sample_prompts", "prompts"])
def test_prompts_of_trainings_and_evaluations_are_bounded_too(field: str) -> None:
    kind = TrainSettings if field == "sample_prompts" else EvaluateSettings
    with pytest.raises(ConfigError, match="at most 2,000 characters, and has 15,000"):
        validate(kind, {field: ["x" * 15_000]})
