"""Untrusted names and texts in the Prefect UI are shown verbatim: nothing is fetched, nothing is a link."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from bench.servers import prefect_server
from musicgen_core.escaping import markdown_code, markdown_link, markdown_text, one_line
from tasks.artifacts import Artifacts, markdown_table
from tests.hostile import ALL, TEXTS, TRACKER

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
LINKED = ["/data/runs_/epoch_000_00.wav", "/data/a_/b_/c.wav", "/data/_runs/a_b.wav", "music_/報告_.html"]


def test_hostile_texts_are_nothing_but_text_in_artifacts(chromium: Browser, tmp_path: Path) -> None:
    settings = {"PREFECT_SERVER_UI_API_URL": "/api", "PREFECT_SERVER_UI_V2_ENABLED": "false"}
    with prefect_server(tmp_path / "server", settings) as api, temporary_settings({PREFECT_API_URL: api}):
        artifacts = Artifacts()
        cells = [[markdown_text(text), markdown_code(text)] for text in TEXTS]
        links = [markdown_link(text, f"http://127.0.0.1:9/{number}") for number, text in enumerate(LINKED)]
        parts = [*(f"- {markdown_text(text)}" for text in TEXTS), markdown_table(("a", "b"), cells), *links]
        page_text = "\n\n".join(parts)
        artifacts.table("hostile-table", [{"text": text} for text in TEXTS], ALL)
        artifacts.markdown("hostile-page", lambda: page_text, ALL)
        artifacts.close(120)
        with get_client(sync_client=True) as client:
            found = {str(one.key): one.id for one in client.read_artifacts()}
        context = chromium.new_context()
        context.set_default_timeout(120_000)  # a busy machine loads a page slowly
        page, asked = context.new_page(), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: asked.append(f"dialog {dialog.message}"))
        linked: dict[int, str] = {}
        for identifier in found.values():
            page.goto(f"{api.removesuffix('/api')}/artifacts/artifact/{identifier}")
            main = page.locator(".artifact-data-view")
            for text in TEXTS:
                expect(main).to_contain_text(one_line(text), timeout=120_000)
            page.wait_for_load_state("networkidle")
            for link in page.locator("a[href*='127.0.0.1:9/']").all():
                number = int(str(link.get_attribute("href")).rpartition("/")[2])
                linked[number] = link.inner_text()
            assert page.locator(f"a[href*='{TRACKER}'], a[href*='example.com'], img[src*='pixel']").count() == 0
        assert linked == dict(enumerate(LINKED))
        assert not [url for url in asked if "pixel.png" in url or "dialog" in url]
        context.close()
