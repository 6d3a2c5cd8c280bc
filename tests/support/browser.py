"""A real browser for tests: Playwright with the Chromium that is installed."""

import os
import shutil
import time

import pytest

NEEDS = "pip install 'budgettune[browser]' and a Chromium (Debian: apt-get install chromium) run this test"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE_MS = 300_000
"""For whatever the tests wait for: Playwright's own 30 s pass on a busy machine before a page of 5 MB has drawn all."""


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason=NEEDS)
    found = os.environ.get("BUDGETTUNE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip(NEEDS)
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=FLAGS, timeout=PATIENCE_MS)
        yield chromium
        chromium.close()


def until(page, expression):
    """Wait for a condition (Playwright's own waiting evaluates texts, which the page's policy forbids)."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not _holds(page, expression):
        assert time.monotonic() < deadline, f"never so: {expression}"
        page.wait_for_timeout(50)


def _holds(page, expression):
    from playwright.sync_api import Error

    try:
        return page.evaluate(expression)
    except Error as error:
        if "context was destroyed" not in str(error):  # by the next page, which is just coming
            raise
        return False
