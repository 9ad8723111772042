"""A browser without a window, for tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 120
"""Patience with WebGL drawn by the processor."""


@contextmanager
def opened(path: Path, width: int = 1400, height: int = 900) -> Iterator[Any]:
    """Open a page without network; check at the end that there were no errors and no requests.

    The test is skipped where there is no playwright or no browser, and with LKM_BROWSER=none.
    """
    if os.environ.get("LKM_BROWSER") == "none":
        pytest.skip("LKM_BROWSER is none")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = os.environ.get("LKM_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
        if found is None and not own.exists():
            pytest.skip("no Chromium found: install it, or set LKM_BROWSER to its executable")
        browser = playwright.chromium.launch(
            executable_path=found, args=["--enable-unsafe-swiftshader", "--no-sandbox"]
        )
        try:
            context = browser.new_context(offline=True, viewport={"width": width, "height": height})
            page = context.new_page()
            page.set_default_timeout(1000 * SECONDS)
            errors, requests = [], []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
            page.on("request", lambda request: requests.append(request.url))
            page.goto(path.absolute().as_uri())
            yield page
            assert not errors
            local = (path.absolute().as_uri(), "blob:", "data:")
            assert all(url.startswith(local) for url in requests), requests
        finally:
            browser.close()
