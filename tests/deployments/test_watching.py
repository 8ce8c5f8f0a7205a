"""The texts of a watched run in the user's language."""

from __future__ import annotations

import re

import pytest

from deployments.registering import read_automations
from deployments.watching import AUTOMATIC, in_parts, in_users_language
from flows.train_lora import train_lora
from musicgen_core.data.archive import choose_archives
from musicgen_core.errors import ConfigError, MusicgenError, translated_error
from musicgen_core.language import VARIABLE, message, say, translated
from musicgen_core.training.request import TrainResult
from musicgen_core.wording import counted
from tasks.forms import with_fields
from tasks.next_steps import Made, Outcome, as_comment, from_comment
from tasks.outcomes import no_descriptions
from tasks.runs import CANCELLED
from tasks.training import outcome

FORM = {"properties": train_lora.parameters.properties, "definitions": train_lora.parameters.definitions}


def shown(text: str) -> str:
    """Return the message of a state as a Japanese reader sees it: stored in English, with the fields of the form."""
    return in_users_language(with_fields(str(text), FORM), FORM)


@pytest.fixture(autouse=True)
def _japanese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "ja")


@pytest.mark.parametrize("ending", ["trained", "stopped early", "complete before"])
@pytest.mark.parametrize("best", [0.25, None])
def test_the_message_of_a_completed_training_is_in_the_users_language(ending: str, best: float | None) -> None:
    result = TrainResult("/runs/first", 2040, 3, best, 2, 1.0, 0.5, 0, ending=ending)  # type: ignore[arg-type]
    text = shown(outcome(result))
    assert "2,040 ステップ" in text and "/runs/first" in text and ("0.2500" in text) == (best is not None)
    assert not re.search("[a-z]{3}", text.replace("/runs/first", "")), text


def test_the_message_of_completed_tokenizing_is_in_the_users_language() -> None:
    text = message("tokenized {clips} into {target}", clips=counted(3000, "clip"), target="/tokens")
    assert shown(text) == "3,000 個のクリップ をトークナイズしました: /tokens"


def test_the_message_of_a_cancelled_run_is_in_the_users_language() -> None:
    text = message("cancelled at step {step:,} of {steps:,}; Retry continues from there", step=20, steps=1040)
    assert shown(text) == "ステップ 20 / 1,040 でキャンセルしました。Retry でそこから再開します"
    assert shown(CANCELLED).startswith("キャンセルしました。")


def test_the_message_of_failed_tokenizing_is_in_the_users_language() -> None:
    text = "2 of 3 archives failed: /a/b.zip can't be opened (Input/output error); /a/c.zip: something unheard of"
    assert shown(text) == (
        "3 個のアーカイブのうち 2 個が失敗しました: "
        "/a/b.zip を開けません（Input/output error）; /a/c.zip: something unheard of"
    )


def test_the_message_of_a_refused_run_names_the_fields_of_its_form() -> None:
    refused = ConfigError(
        message("both init_adapter and init_from_latest are given"),
        message("Use a machine with an NVIDIA GPU and its driver (nvidia-smi shows both), or --device cpu"),
    )
    text = shown(str(refused))
    assert text == with_fields(translated_error(refused), FORM) and "device cpu" in text and "--device" not in text


def test_foreign_words_that_look_like_a_short_message_stay_as_they_are() -> None:
    for text in ("Crash detected: the worker, in /opt", "2 of 3 apples failed: they fell", "None of this was said"):
        assert shown(text) == text


def test_messages_of_prefect_and_of_other_versions_stay_as_they_are() -> None:
    for text in ("Flow run infrastructure exited with non-zero status code 1.", "All states completed.", ""):
        assert shown(text) == text


def test_every_message_that_an_automation_sets_is_in_the_users_language() -> None:
    set_by = {action["message"] for automation in read_automations() for action in automation["actions"]}
    assert set_by == set(map(str, AUTOMATIC))
    assert all(shown(text) != text for text in set_by)


def test_the_notice_on_descriptions_is_in_the_users_language() -> None:
    notice = no_descriptions(message("none of the {clips}", clips=counted(8, "clip")))
    stored = from_comment(as_comment(Outcome((Made(message("tokens"), "/tokens"),), (), notice)))
    assert stored is not None and stored.notice == notice
    assert translated(stored.notice) == translated(notice) and "8 個のクリップ" in translated(stored.notice)
    assert not re.search("has a description|Put a", translated(stored.notice))


def test_progress_is_translated_in_its_known_parts() -> None:
    assert in_parts("first: reading the model; 3 of 4") == f"first: {say('reading the model')}; 3 of 4"


def test_notices_of_parts_remain_messages() -> None:
    notice = no_descriptions(message("none of the {clips}", clips=counted(8, "clip")))
    assert translated((Outcome(notice=notice) + Outcome()).notice) == translated(notice)
    assert translated((Outcome() + Outcome(notice=notice)).notice) == translated(notice)


def test_an_error_of_this_project_is_in_the_users_language(tmp_path: object) -> None:
    with pytest.raises(MusicgenError) as refused:
        choose_archives(f"{tmp_path}/none")
    assert shown(str(refused.value)).startswith(f"{tmp_path}/none にアーカイブが見つかりません。")
