"""Findings of `doctor` show no key and no login; equal fixes are listed once."""

from __future__ import annotations

import base64

import pytest

from deployments.checks.finding import Check, Finding, attempt, redact
from deployments.doctor import show
from tests.deployments.doctor.printed import SECRET, fixes


class TestSecrets:
    @pytest.mark.parametrize("secret", [SECRET, f"{SECRET}\n", f" two\twords {SECRET} ", "päss'wörd-" + SECRET])
    def test_no_form_of_a_key_is_shown(
        self, secret: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_API_KEY", secret)
        encoded = base64.b64encode(secret.encode()).decode()

        def leaks() -> Finding:
            raise RuntimeError(f"Illegal header value {f'Bearer {secret}'!r}, {secret}, Basic {encoded} {'x' * 300}")

        found = attempt(5, Check("network", leaks))
        show([found, Finding("other", "warning", f"found {secret}", f"run it with {secret}")])
        printed = capsys.readouterr().out
        assert "not-to-be-seen" not in printed and encoded not in printed
        assert "Illegal header value" in printed

    def test_equal_fixes_are_listed_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        show([Finding(name, "problem", "missing", "run uv sync") for name in ("packages", "keys")])
        assert fixes(capsys.readouterr().out) == ["packages, keys: run uv sync"]

    def test_the_login_in_a_url_is_not_shown(self) -> None:
        assert (
            redact("at https://user:pass@host/folder, and gs://bucket/a@b")
            == "at https://…@host/folder, and gs://bucket/a@b"
        )
