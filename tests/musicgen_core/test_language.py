"""The user's language: its selection, and that messages are English everywhere but in user interfaces."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from musicgen_core.language import VARIABLE, language, message, say, stored_message, translated
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
    text = message("{pieces} from {prompts}", pieces=counted(2000, "sample"), prompts=counted(1, "prompt"))
    assert (text, translated(text)) == ("2,000 samples from 1 prompt", "1 個のプロンプトから 2,000 曲")
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


@pytest.mark.usefixtures("japanese")
def test_a_text_stored_in_english_is_translated_with_values() -> None:
    stored = str(
        message(
            "it breaks off: its header declares {declared:,} frames, {present:,} are there", declared=16000, present=9
        )
    )
    assert translated(stored_message(stored)) == (
        "途中で切れています。ヘッダでは 16,000 フレームですが、9 フレームしかありません"
    )
    damaged = "damaged in the archive (its CRC-32 is not the one of the directory)"
    assert (
        translated(stored_message(damaged))
        == "アーカイブの中で壊れています（CRC-32 がディレクトリのものと一致しません）"
    )
    joined = "it is several sound files joined into one: another begins at byte 44. Split it, or encode it as one file"
    assert translated(stored_message(joined)) == (
        "複数の音声ファイルがつながっています（44 バイト目から次のファイル）。"
        "分割するか、1 つのファイルとしてエンコードし直してください"
    )


@pytest.mark.usefixtures("japanese")
@pytest.mark.parametrize(
    "text", ["", "music", "a. b", "some other program's words {and} braces. More of them", "%s: %s"]
)
def test_a_stored_text_that_no_message_made_stays_as_it_is(text: str) -> None:
    assert translated(stored_message(text)) == text
