"""The page in real headless Chromium: silent, offline, drawn, and usable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from reparam.report import render

from . import browser

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reparam.report.results import Results

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())

WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.launched() as started:
        yield started


@pytest.fixture
def page_file(results: Results, tmp_path: Path) -> Path:
    return render(results, tmp_path / "page with a space.html")


def test_loads_without_network_or_console_message(chromium: Any, page_file: Path) -> None:
    page, faults = browser.opened(chromium, page_file, viewport=WIDE)
    assert page.locator("h1").is_visible()
    assert faults == []


def test_bars_are_as_long_as_their_values(chromium: Any, page_file: Path) -> None:
    page, _ = browser.opened(chromium, page_file, viewport=WIDE)
    widths = page.locator("#latency rect.bar").evaluate_all(
        "bars => bars.map(bar => bar.getBoundingClientRect().width)"
    )
    medians = [4.1, 2.0, 2.6, 1.1, 0.8, 0.7]
    assert [width / widths[0] for width in widths] == pytest.approx(
        [median / medians[0] for median in medians], abs=0.01
    )


def test_memory_steps_share_one_scale_from_zero(chromium: Any, page_file: Path) -> None:
    page, _ = browser.opened(chromium, page_file, viewport=WIDE)
    heights = page.locator("#memory .panel").evaluate_all(
        "panels => panels.map(panel => Math.max(...[...panel.querySelectorAll('.step')]"
        ".map(step => step.getBBox().height)))"
    )
    assert [height / heights[2] for height in heights] == pytest.approx([2.0, 1.5, 1.0], abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system_and_the_toggle(
    chromium: Any, page_file: Path, scheme: str
) -> None:
    paper = "() => getComputedStyle(document.body).backgroundColor"
    page, faults = browser.opened(chromium, page_file, viewport=WIDE, color_scheme=scheme)
    before = page.evaluate(paper)
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    after = page.evaluate(paper)
    page.reload()
    kept = page.evaluate(paper)
    luminous = {colour: sum(map(int, colour[4:-1].split(","))) > 384 for colour in (before, after)}
    assert luminous[before] == (scheme == "light")
    assert luminous[after] != luminous[before]
    assert kept == after
    assert [fault for fault in faults if not fault.startswith("request")] == []


def test_a_phone_needs_no_sideways_scrolling(chromium: Any, page_file: Path) -> None:
    page, _ = browser.opened(chromium, page_file, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_tables_sort_by_number_from_the_keyboard(chromium: Any, page_file: Path) -> None:
    page, _ = browser.opened(chromium, page_file, viewport=WIDE)
    header = page.locator("#plan thead button", has_text="Stored numbers")
    header.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    order = page.locator("#plan table").first.locator("tbody th").all_inner_texts()
    sorting = page.locator("#plan th[aria-sort]").first.get_attribute("aria-sort")
    assert sorting == "descending"
    assert order == [f"stages.{i // 4}.{i % 4}" for i in reversed(range(11))]


def test_every_drawing_has_a_text_alternative(chromium: Any, page_file: Path) -> None:
    page, _ = browser.opened(chromium, page_file, viewport=WIDE)
    silent = page.evaluate(
        "[...document.querySelectorAll('svg')].filter(drawing =>"
        " !drawing.closest('[role=img][aria-label]')).length"
    )
    assert silent == 0


def test_text_contrast_is_at_least_wcag_aa(chromium: Any, page_file: Path) -> None:
    script = """() => {
      const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      return Math.min(...[...document.querySelectorAll('main *:not(title)')]
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .map(e => { const s = getComputedStyle(e);
          const ink = light(e instanceof SVGElement ? s.fill : s.color);
          return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); })); }"""
    for scheme in ("light", "dark"):
        page, _ = browser.opened(chromium, page_file, viewport=WIDE, color_scheme=scheme)
        assert page.evaluate(script) >= 4.5


def test_prints_in_light_colours_with_the_tools_hidden(chromium: Any, page_file: Path) -> None:
    page, _ = browser.opened(chromium, page_file, viewport=WIDE, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
