"""A real browser for the tests of the page, or the reason why there is none."""

from __future__ import annotations

import importlib.util
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Chromium as root in a container, without its own calls to the network.
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str | None:
    """Where Chromium is: ``$REPARAM_CHROMIUM``, or one of its usual names on the path."""
    named = os.environ.get("REPARAM_CHROMIUM")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


def missing() -> str:
    """Why no browser test can run here; empty if it can."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed (pip install playwright)"
    if chromium() is None:
        return "no Chromium found (apt-get install chromium, or set REPARAM_CHROMIUM)"
    return ""


@contextmanager
def launched() -> Iterator[Any]:
    """Headless Chromium; starting it takes a second, so share it among tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(_ARGUMENTS))
        yield browser
        browser.close()


def opened(browser: Any, file: Path, **context: Any) -> tuple[Any, list[str]]:
    """The page of `file` in a fresh context of `browser`, and a list of what it should not do.

    The list collects console messages, uncaught errors and requests for anything but the file.
    """
    faults: list[str] = []
    address = file.resolve().as_uri()

    def note_request(request: Any) -> None:
        if request.url != address:
            faults.append(f"request: {request.url}")

    page = browser.new_context(**context).new_page()
    page.on("console", lambda message: faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on("request", note_request)
    page.goto(address)
    return page, faults
