"""Actions of a person in the Prefect UI."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from PIL import Image
from playwright.sync_api import Locator, Page, TimeoutError, ViewportSize, expect

from tests.browser.site import PATIENCE_SECONDS, Site

WINDOW: ViewportSize = {"width": 1200, "height": 900}


class Ui:
    """Actions of a person in the pages of a site."""

    def __init__(self, page: Page, site: Site, screenshots: Path) -> None:
        self.page = page
        self._site = site
        self.screenshots = screenshots

    def open(self, path: str) -> None:
        self.page.goto(f"{self._site.url}/{path}")

    def screenshot(self, name: str, height: int = WINDOW["height"]) -> None:
        """Save the window, after all loading has ended, as a PNG with few enough colours for a README.

        Args:
            height: temporary height of the window, for a page that is longer than others.
        """
        self.page.set_viewport_size({**WINDOW, "height": height})
        self.page.wait_for_load_state("networkidle")
        file = self.screenshots / f"{name}.png"
        self.page.screenshot(path=file, animations="disabled")
        self.page.set_viewport_size(WINDOW)
        Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)

    def open_deployment(self, name: str) -> None:
        self.open("deployments")
        self.page.get_by_role("link", name=name).first.click()
        expect(self.page.get_by_text("Schedules", exact=True)).to_be_visible()

    def open_run_form(self, deployment: str) -> None:
        self.open_deployment(deployment)
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run").click()
        expect(self.page.get_by_role("heading", name="Parameters")).to_be_visible()

    def parameter(self, name: str) -> Locator:
        """Return a parameter's part of the run form: label, description and fields."""
        label = self.page.get_by_text(re.compile(rf"^{name}( \(Optional\))?$"))
        return self.page.locator(".schema-form-property").filter(has=label).last  # the first may be its group

    def fill(self, name: str, text: str) -> None:
        parameter = self.parameter(name)
        expect(parameter).to_be_visible()
        parameter.locator("input, textarea").fill(text)

    def open_choices(self, name: str) -> Locator:
        """Unfold the choices of a parameter."""
        self.parameter(name).get_by_role("group").get_by_role("button").press("Space")
        return self.page.get_by_role("option")

    def choose(self, name: str, choice: str) -> None:
        self.open_choices(name).get_by_text(choice, exact=True).click()

    def submit(self) -> UUID:
        """Press Submit, open the page of the new run, and return its id."""
        with self.page.expect_response("**/create_flow_run") as response:
            self.page.get_by_role("button", name="Submit").click()
        assert response.value.ok, response.value.text() + (self._site.folder / "up.log").read_text()[-5000:]
        run = UUID(response.value.json()["id"])
        self.open(f"runs/flow-run/{run}")
        return run

    def open_run(self, run: UUID, tab: str) -> None:
        """Open one of a run's tabs. Clicks are lost until the page has set its URL, which then has the tab."""
        self.open(f"runs/flow-run/{run}")
        for attempt in range(4):
            self.page.get_by_role("tablist").get_by_text(tab, exact=True).click()
            try:
                self.page.wait_for_url(lambda url: parse_qs(urlsplit(url).query).get("tab") == [tab], timeout=5000)
                return
            except TimeoutError:
                if attempt == 3:
                    raise

    def artifact(self, key: str) -> Locator:
        """Return an artifact's entry on the Artifacts tab."""
        return self.page.get_by_role("link", name=re.compile(rf"^\w+ {key} "))

    def open_artifact(self, run: UUID, key: str) -> None:
        self.open_run(run, "Artifacts")
        self.artifact(key).click()
        self.page.wait_for_url("**/artifacts/artifact/*")

    def expect_state(self, state: str) -> None:
        """Expect the page of a run to show its state without being reloaded."""
        badge = self.page.get_by_role("banner").get_by_text(state, exact=True)
        expect(badge).to_be_visible(timeout=PATIENCE_SECONDS * 1000)

    def retry(self, run: UUID) -> None:
        # A worker that is offered a run while it still puts away the last attempt ends with a RuntimeError.
        self._site.wait_until(lambda: self._site.is_put_away(run), lambda: "the worker")
        self.open(f"runs/flow-run/{run}")
        self.page.get_by_role("button", name="Retry").click()
        self.page.get_by_role("dialog").get_by_role("button", name="Retry").click()
        expect(self.page.get_by_role("dialog")).not_to_be_visible()

    def cancel(self) -> None:
        """Press Cancel on the page of a run."""
        self.page.get_by_role("button", name="Cancel").click()
        self.page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
        expect(self.page.get_by_role("dialog")).not_to_be_visible()

    def switch(self, name: str) -> Locator:
        """Return the switch beside a name."""
        named = self.page.get_by_text(name, exact=True)
        return named.locator("xpath=ancestor::*[.//*[@role='switch']][1]").get_by_role("switch")
