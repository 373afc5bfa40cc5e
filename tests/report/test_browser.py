"""The page in real headless Chromium: silent, offline, drawn, and usable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import browser
from reparam.lab.quantizing.diagnosing import LayerDiagnosis
from reparam.report import from_benchmark, merge, render

from . import compressed_cases, difference_cases

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from reparam.deploy.benchmarking import BenchmarkResult
    from reparam.report.results import Results

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())

WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}

# Drawings that a screen reader would pass over, and the least contrast of any text.
SILENT_DRAWINGS = """[...document.querySelectorAll('svg')].filter(drawing =>
  !drawing.closest('[role=img][aria-label]')).length"""
CONTRAST = """() => {
      const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const seen = (e) => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor;
        if (!/, 0\\)$/.test(c)) return light(c); } };
      return Math.min(...[...document.querySelectorAll('main *:not(title)')]
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .map(e => { const s = getComputedStyle(e);
          const ink = light(e instanceof SVGElement ? s.fill : s.color), paper = seen(e);
          return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); })); }"""


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
    widths = page.locator("#latency .bar").evaluate_all(
        "bars => bars.map(bar => bar.getBoundingClientRect().width)"
    )
    medians = [4.1, 2.0, 2.6, 1.1, 0.8, 0.7]
    assert [width / widths[0] for width in widths] == pytest.approx(
        [median / medians[0] for median in medians], abs=0.01
    )


def test_memory_steps_share_one_scale_from_zero(chromium: Any, page_file: Path) -> None:
    page, _ = browser.opened(chromium, page_file, viewport=WIDE)
    longest = page.locator("#memory .panel").evaluate_all(
        "panels => panels.map(panel => Math.max(...[...panel.querySelectorAll('.bar')]"
        ".map(step => step.getBoundingClientRect().width)))"
    )
    assert [width / longest[2] for width in longest] == pytest.approx([2.0, 1.5, 1.0], abs=0.01)


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
    page.wait_for_timeout(500)  # a browser takes a moment to store what is to be kept
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


def test_the_reason_why_a_place_stays_is_shown_on_hover_and_on_focus(
    chromium: Any, page_file: Path
) -> None:
    page, _ = browser.opened(chromium, page_file, viewport=WIDE)
    boxes = page.locator(".column .operation")
    assert boxes.count() == 3
    tops = [box.bounding_box()["y"] for box in boxes.all()]
    assert tops == sorted(tops)
    why = page.locator(".column .tip")
    assert not why.is_visible()
    page.locator(".operation.stays").focus()
    assert why.is_visible()
    assert why.inner_text() == "alone <it> costs less"
    page.locator(".operation.stays").evaluate("box => box.blur()")
    assert not why.is_visible()
    page.locator(".operation.stays").hover()
    assert why.is_visible()


def test_every_drawing_has_a_text_alternative(chromium: Any, page_file: Path) -> None:
    page, _ = browser.opened(chromium, page_file, viewport=WIDE)
    assert page.evaluate(SILENT_DRAWINGS) == 0


def test_text_contrast_is_at_least_wcag_aa(chromium: Any, page_file: Path) -> None:
    for scheme in ("light", "dark"):
        page, _ = browser.opened(chromium, page_file, viewport=WIDE, color_scheme=scheme)
        assert page.evaluate(CONTRAST) >= 4.5


def test_prints_in_light_colours_with_the_tools_hidden(chromium: Any, page_file: Path) -> None:
    page, _ = browser.opened(chromium, page_file, viewport=WIDE, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()


@pytest.fixture
def figure_file(benchmark: BenchmarkResult, tmp_path: Path) -> Path:
    return render(from_benchmark(benchmark), tmp_path / "figure.html")


def test_tradeoff_loads_silently_and_shows_one_engine(chromium: Any, figure_file: Path) -> None:
    page, faults = browser.opened(chromium, figure_file, viewport=WIDE)
    assert faults == []
    assert page.locator(".choice:visible").count() == 1
    assert page.locator(".choice:visible .point").count() == 4


def test_engine_is_switched_from_the_keyboard(chromium: Any, figure_file: Path) -> None:
    page, _ = browser.opened(chromium, figure_file, viewport=WIDE)
    page.locator(".switch input").first.focus()
    assert "In eager PyTorch re-parameterized nets, in 2 pairs, win 2" in page.inner_text(
        "#tradeoff"
    )
    page.keyboard.press("ArrowRight")
    shown = page.inner_text(".choice:visible .verdict")
    assert shown.startswith("In ONNX Runtime re-parameterized nets, in 2 pairs, win 1")
    page.locator(".switch label").first.click()
    assert page.inner_text(".choice:visible .verdict").startswith("In eager PyTorch")


def test_points_stand_where_their_values_are(chromium: Any, figure_file: Path) -> None:
    page, _ = browser.opened(chromium, figure_file, viewport=WIDE)
    at = page.locator(".choice:visible").evaluate(
        """choice => { const area = choice.querySelector('.scatter-area').getBoundingClientRect();
          return Object.fromEntries([...choice.querySelectorAll('.point')].map(point => {
            const box = point.querySelector('.mark').getBoundingClientRect();
            return [point.querySelector('.tip b').textContent,
              [(box.x + box.width / 2 - area.x) / area.width,
               (box.y + box.height / 2 - area.y) / area.height]]; })); }"""
    )
    times = {"RepVGG-A0": 10.0, "RepVGG-A2": 15.0, "ResNet-18": 16.0, "ResNet-50": 35.0}
    for name, milliseconds in times.items():
        assert at[name][0] / at["RepVGG-A0"][0] == pytest.approx(milliseconds / 10.0, rel=0.02)
    higher = [name for name, _ in sorted(at.items(), key=lambda item: item[1][1])]
    assert higher == ["RepVGG-A2", "ResNet-50", "RepVGG-A0", "ResNet-18"]


@pytest.mark.parametrize("how", ["hover", "focus"])
def test_a_point_tells_its_numbers(chromium: Any, figure_file: Path, how: str) -> None:
    page, _ = browser.opened(chromium, figure_file, viewport=WIDE)
    point = page.locator(".choice:visible .point").first
    tip = point.locator(".tip")
    assert not tip.is_visible()
    getattr(point, how)()
    assert tip.is_visible()
    assert "72.41 % published" in tip.inner_text()
    assert "10.0 ms (9.75 to 10.2)" in tip.inner_text()
    assert "8.30 M parameters" in point.get_attribute("aria-label")


def test_without_script_every_engine_is_shown(chromium: Any, figure_file: Path) -> None:
    page, _ = browser.opened(chromium, figure_file, viewport=WIDE, java_script_enabled=False)
    assert page.locator(".choice:visible").count() == 2
    assert page.locator(".switch:visible").count() == 0


def test_tradeoff_on_a_phone(chromium: Any, figure_file: Path) -> None:
    page, _ = browser.opened(chromium, figure_file, viewport=PHONE)
    points = page.locator(".choice:visible .point")
    for index in range(points.count()):
        points.nth(index).focus()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        box = points.nth(index).locator(".tip").bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= PHONE["width"]


def test_tradeoff_prints_every_engine(chromium: Any, figure_file: Path) -> None:
    page, _ = browser.opened(chromium, figure_file, viewport=WIDE)
    page.emulate_media(media="print")
    assert page.locator(".choice:visible").count() == 2
    assert not page.locator(".switch").is_visible()


def test_marks_of_engines_lie_at_their_times(chromium: Any, figure_file: Path) -> None:
    page, _ = browser.opened(chromium, figure_file, viewport=WIDE)
    places = page.locator("#engines .row:not(.row-axis)").evaluate_all(
        """rows => rows.map(row => { const track = row.querySelector('.track')
          .getBoundingClientRect(); return [...row.querySelectorAll('.dotmark')].map(mark => {
            const box = mark.getBoundingClientRect();
            return (box.x + box.width / 2 - track.x) / track.width; }); })"""
    )
    assert places[0][0] / places[0][1] == pytest.approx(10 / 6, rel=0.02)
    assert places[3][0] / places[0][0] == pytest.approx(35 / 10, rel=0.02)


def test_figure_keeps_contrast_and_text_alternatives(chromium: Any, figure_file: Path) -> None:
    for scheme in ("light", "dark"):
        page, _ = browser.opened(chromium, figure_file, viewport=WIDE, color_scheme=scheme)
        assert page.evaluate(CONTRAST) >= 4.5
    assert page.evaluate(SILENT_DRAWINGS) == 0


@pytest.fixture
def compressed_file(tmp_path: Path) -> Path:
    """Many layers of an invented net in eight bits, and an invented pruned net."""
    layers = tuple(
        LayerDiagnosis(
            f"stages.{index // 8}.{index % 8}.a_rather_long_name_of_a_layer", "3x3 conv 64->64",
            -1.0, 1.0, 1.0 + index, 0.0, 8.0, 1.5, 35.0, 40.0, 60.0 - index, 0.01,
        )
        for index in range(30)
    )  # fmt: skip
    eight_bits = compressed_cases.quantization_page(
        layers=layers, simulated_db=30.0, simulated_on=64, kept_float=(layers[29].name,)
    )
    return render(merge([eight_bits, compressed_cases.pruning_page()]), tmp_path / "page.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_compressed_loads_silently_with_contrast_and_alternatives(
    chromium: Any, compressed_file: Path, scheme: str
) -> None:
    page, faults = browser.opened(chromium, compressed_file, viewport=WIDE, color_scheme=scheme)
    assert faults == []
    assert page.evaluate(CONTRAST) >= 4.5
    assert page.evaluate(SILENT_DRAWINGS) == 0


def test_compressed_on_a_phone(chromium: Any, compressed_file: Path) -> None:
    page, _ = browser.opened(chromium, compressed_file, viewport=PHONE)
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_layers_stand_at_their_decibels_worst_first(chromium: Any, compressed_file: Path) -> None:
    page, _ = browser.opened(chromium, compressed_file, viewport=WIDE)
    at = (
        page.locator(".ranks")
        .first.locator(".row:not(.row-axis)")
        .evaluate_all(
            """rows => rows.map(row => { const track = row.querySelector('.track')
          .getBoundingClientRect(); const middle = (mark) => { const box =
            mark.getBoundingClientRect(); return (box.x + box.width / 2 - track.x) / track.width; };
          return [middle(row.querySelector('.dotmark')), ...[...row.querySelectorAll('.across')]
            .map(middle)]; })"""
        )
    )
    # The axis reaches from 20 to 60 dB; the file is at 28, the simulation at 30, the worst at 31.
    assert len(at) == 24
    assert [mark for mark, *_ in at] == pytest.approx(
        [(31 + index - 20) / 40 for index in range(24)], abs=0.005
    )
    assert at[0][1:] == pytest.approx([8 / 40, 10 / 40], abs=0.005)


def test_the_other_layers_unfold(chromium: Any, compressed_file: Path) -> None:
    page, _ = browser.opened(chromium, compressed_file, viewport=WIDE)
    rest = page.locator("#int8 .ranks").nth(1)
    assert not rest.is_visible()
    page.locator("#int8 summary", has_text="6 more layers").click()
    assert rest.is_visible()
    assert rest.locator(".row:not(.row-axis)").count() == 6


def test_layers_kept_in_float_have_a_mark_of_their_own(
    chromium: Any, compressed_file: Path
) -> None:
    page, _ = browser.opened(chromium, compressed_file, viewport=WIDE)
    assert page.locator("#int8 .ranks .ring").count() == 1
    assert page.locator("#int8 .legend").inner_text().count("left in float") == 1


def test_layer_table_sorts_by_number(chromium: Any, compressed_file: Path) -> None:
    page, _ = browser.opened(chromium, compressed_file, viewport=WIDE)
    page.locator("#int8 summary", has_text="All 30 layers in numbers").click()
    table = page.locator("#int8 .whole table")
    table.locator("thead button", has_text="Output dB").click()
    table.locator("thead button", has_text="Output dB").click()
    column = table.locator("tbody td:nth-child(8)").all_inner_texts()
    assert column == [f"{60 - index:.1f}" for index in range(30)]


def test_widths_are_pairs_of_bars_from_zero(chromium: Any, compressed_file: Path) -> None:
    page, _ = browser.opened(chromium, compressed_file, viewport=WIDE)
    pairs = page.locator("#pruning .widths .row:not(.row-axis)").evaluate_all(
        """rows => rows.map(row => [...row.querySelectorAll('.wide')]
          .map(bar => bar.getBoundingClientRect().width))"""
    )
    widest = pairs[0][0]
    expected = [(32, 16), (32, 16), (10, 10)]
    for (before, after), (wide, narrow) in zip(pairs, expected, strict=True):
        assert before / widest == pytest.approx(wide / 32, abs=0.01)
        assert after / widest == pytest.approx(narrow / 32, abs=0.01)
    assert page.locator("#pruning .widths .tag-of").all_inner_texts() == ["A", "A"]


def test_the_target_is_drawn_where_it_is(chromium: Any, compressed_file: Path) -> None:
    page, _ = browser.opened(chromium, compressed_file, viewport=WIDE)
    goal, width = page.locator("#pruning .goal").first.evaluate(
        "line => [line.getBoundingClientRect().x - line.parentElement.getBoundingClientRect().x,"
        "line.parentElement.getBoundingClientRect().width]"
    )
    assert goal / width == pytest.approx(0.5, abs=0.01)


@pytest.fixture
def difference_file(tmp_path: Path) -> Path:
    """Two networks that part at a tap of a kernel."""
    return render(difference_cases.page(difference_cases.parted("weight")), tmp_path / "page.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_difference_loads_silently_with_contrast_and_alternatives(
    chromium: Any, difference_file: Path, scheme: str
) -> None:
    page, faults = browser.opened(chromium, difference_file, viewport=WIDE, color_scheme=scheme)
    assert faults == []
    assert page.evaluate(CONTRAST) >= 4.5
    assert page.evaluate(SILENT_DRAWINGS) == 0


def test_networks_stand_side_by_side_and_on_a_phone_below_one_another(
    chromium: Any, difference_file: Path
) -> None:
    sides = "[...document.querySelectorAll('.parting figure')].map(e => e.getBoundingClientRect())"
    page, _ = browser.opened(chromium, difference_file, viewport=WIDE)
    first, second = page.evaluate(f"{sides}.map(b => [b.left, b.right, b.top])")
    assert first[1] <= second[0]
    assert first[2] == second[2]
    page, _ = browser.opened(chromium, difference_file, viewport=PHONE)
    first, second = page.evaluate(f"{sides}.map(b => [b.top, b.bottom])")
    assert first[1] <= second[0]
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_squares_are_as_large_as_the_numbers_below_them(
    chromium: Any, difference_file: Path
) -> None:
    page, _ = browser.opened(chromium, difference_file, viewport=WIDE)
    drawn = page.evaluate("""[...document.querySelectorAll('.parting figure')].map(side =>
      [...side.querySelectorAll('.kernel td:has(i)')].map(cell => [
        Number(cell.innerText),
        getComputedStyle(cell.querySelector('i'), '::before').width.slice(0, -2) ** 2]))""")
    for cells in drawn:
        largest = max(abs(number) for number, _ in cells)
        area = max(area for _, area in cells)
        for number, size in cells:
            assert size / area == pytest.approx(abs(number) / largest, abs=0.02)
    marked = page.locator(".kernel td.at").all_inner_texts()
    assert marked[0] != marked[1]
