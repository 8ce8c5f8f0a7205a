"""Pages that are opened without the site of the other tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page

PAGE_SECONDS = 120
"""For a page to show what is there already."""


@dataclass
class Opened:
    """Opens pages, and has what the browser reports of them: complaints, and the requests of those from files."""

    browser: Browser
    contexts: list[BrowserContext] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __call__(self, file: Path | None = None, **options: Any) -> Page:
        """Open a file, if one is given, in a window of its own, with options of `new_context`."""
        context = self.browser.new_context(**{"viewport": {"width": 1200, "height": 900}, "locale": "en-US", **options})
        self.contexts.append(context)
        context.set_default_timeout(PAGE_SECONDS * 1000)  # a busy machine loads a page slowly
        page = context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        if file is not None:
            page.on("request", lambda request: self.requests.append(request.url))
            page.goto(file.as_uri())
        return page
