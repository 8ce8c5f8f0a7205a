"""From a summary to the form of the next run, filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from playwright.sync_api import Page, expect

if TYPE_CHECKING:
    from tests.browser.site import Site
    from tests.browser.ui import Ui

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2400)]
LINK = "open the form, filled in"


def test_a_summary_ends_with_outputs_and_a_filled_in_form(site: Site, ui: Ui, finetuned: UUID) -> None:
    ui.open_artifact(finetuned, "summary")
    expect(ui.page.get_by_role("heading", name="What next")).to_be_visible()
    headings = ui.page.locator("article").get_by_role("heading").all_inner_texts()
    assert headings[-2:] == ["What was made", "What next"]
    run_dir = site.folder / "runs" / "demo"
    expect(ui.page.get_by_text(str(run_dir / "lora_weights" / "best_lora.pt")).last).to_be_visible()
    assert "<!--" not in ui.page.locator("body").inner_text()
    ui.screenshot("next-step", height=2600)
    links = ui.page.get_by_role("link", name=LINK)
    expect(links).to_have_count(2)  # to make music, and to export
    link = links.first
    address = link.get_attribute("href")
    assert address is not None and address.startswith("/deployments/deployment/")
    with ui.page.context.expect_page() as opened:  # in a new tab
        link.click()
    expect(opened.value.get_by_role("heading", name="Parameters")).to_be_visible()
    for value in (str(run_dir), "chill lofi beats with rhodes", "cpu"):
        assert_filled(opened.value, value)
    opened.value.screenshot(path=ui.screenshots / "next-step-form.png")
    ui.open(f"v2{address}")
    expect(ui.page.get_by_text("Switch to V1 UI", exact=True)).to_be_visible()
    assert_filled(ui.page, str(run_dir))
    ui.screenshot("next-step-form-v2")


def assert_filled(page: Page, value: str) -> None:
    """A field of the form holds the value, or shows it as the choice that is made."""
    page.wait_for_function(
        """value => [...document.querySelectorAll('input, textarea, button, select')].some(
            field => (field.value || field.innerText || '').includes(value))""",
        arg=value,
    )
