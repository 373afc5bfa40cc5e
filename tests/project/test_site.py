"""The built site in a real browser, at the widths of a desk and of a phone: `make look`."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from browser import launched, missing

ROOT = Path(__file__).parents[2]
WIDTHS = {"desktop": 1280, "phone": 390}
# What reaches beyond the right edge and lies in nothing that scrolls: it is cut off, or the page is
# to be pushed sideways.
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  const wide = (node) => node.getBoundingClientRect().right > width + 1;
  const scrolls = (node) => !node.matches('article') && (scrolls(node.parentElement)
    || ['auto', 'scroll'].includes(getComputedStyle(node).overflowX));
  return [...document.querySelectorAll('article *')]
    .filter((node) => wide(node) && !scrolls(node.parentElement))
    .slice(0, 3).map((node) => node.outerHTML.slice(0, 120));
}"""

pytestmark = pytest.mark.slow


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and tells nobody."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the site on this machine, and its pages."""
    pytest.importorskip("mkdocs")
    folder = Path(os.environ.get("REPARAM_SITE") or tmp_path_factory.mktemp("site")).resolve()
    if not (folder / "index.html").is_file():
        build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
        environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
        subprocess.run(build, cwd=ROOT, check=True, env=environment)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pages = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.html"))
        yield f"http://127.0.0.1:{server.server_address[1]}", pages
        server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    if missing():
        pytest.skip(missing())
    with launched() as found:
        yield found


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_are_whole_and_ask_nobody_else(width, site, chromium) -> None:
    address, pages = site
    assert len(pages) > 20
    faults: list[str] = []
    context = chromium.new_context(viewport={"width": WIDTHS[width], "height": 844})
    page = context.new_page()
    page.on("console", lambda m: faults.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    page.on(
        "request",
        lambda r: None if r.url.startswith((address, "data:", "blob:")) else faults.append(r.url),
    )
    for name in pages:
        before = len(faults)
        page.goto(f"{address}/{name}", wait_until="load")
        faults += [f"too wide: {found}" for found in page.evaluate(OVERFLOW)]
        faults[before:] = [f"{name}: {fault}" for fault in faults[before:]]
    context.close()
    assert not faults, "\n".join(faults)


def test_search_finds_a_public_name(site, chromium) -> None:
    address, _ = site
    page = chromium.new_page()
    page.goto(f"{address}/index.html", wait_until="load")
    page.fill("input.md-search__input", "load_fused")
    page.wait_for_selector(".md-search-result__item a", timeout=60_000)
    found = page.eval_on_selector_all(
        ".md-search-result__item a", "links => links.map(a => a.href)"
    )
    assert any("reference/api.html" in link for link in found)
    page.close()
