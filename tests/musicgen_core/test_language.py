"""The user's language: how it is chosen, and that messages are English wherever no person is asked."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from musicgen_core.language import VARIABLE, language, message, say, translated
from musicgen_core.wording import counted, lasting, sized


@pytest.fixture
def japanese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "ja")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_MESSAGES": "C"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "en_US", "LC_ALL": "ja_JP.utf8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_ALL": ""}, "ja"),
        ({"LANG": "ja_JP.UTF-8", VARIABLE: "en"}, "en"),
        ({"LANG": "C.UTF-8", VARIABLE: "ja"}, "ja"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
        ({"LANG": "../../ja"}, "en"),
    ],
)
def test_the_language_is_that_of_the_option_else_of_the_locale(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


@pytest.mark.usefixtures("japanese")
def test_a_message_is_english_until_it_is_translated() -> None:
    text = message("After epoch {epoch}", epoch=3)
    assert (text, f"{text}!", translated(text)) == ("After epoch 3", "After epoch 3!", "エポック 3 の後")
    assert say("After epoch {epoch}", epoch="{epoch}") == "エポック {epoch} の後"


@pytest.mark.usefixtures("japanese")
def test_values_that_are_messages_are_translated_too() -> None:
    text = message("{pieces} from {prompts}", pieces=counted(2000, "piece"), prompts=counted(1, "prompt"))
    assert (text, translated(text)) == ("2,000 pieces from 1 prompt", "1 個のプロンプトから 2,000 曲")
    assert [translated(one) for one in (lasting(90), sized(10), sized(2e6))] == ["1.5 分", "10 バイト", "2.0 MB"]


@pytest.mark.usefixtures("japanese")
def test_a_message_from_another_process_can_still_be_translated() -> None:
    text = pickle.loads(pickle.dumps(message("After epoch {epoch}", epoch=3)))
    assert (text, translated(text)) == ("After epoch 3", "エポック 3 の後")


@pytest.mark.usefixtures("japanese")
def test_a_text_that_is_no_message_stays_as_it_is() -> None:
    assert translated("Base model") == "Base model" and say("With adapter") == "アダプタあり"


def test_english_needs_no_catalogue() -> None:
    code = "import sys; from musicgen_core.language import say; say('With adapter'); sys.exit('babel' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={VARIABLE: "en"}, check=False).returncode == 0
