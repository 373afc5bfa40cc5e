"""The page: stored results in, one self-contained HTML file out.

Numbers are computed and charts and tables described in this room's modules; all words and all
markup are in ``assets/*.html.j2``.
"""

from __future__ import annotations

from functools import cache
from html import unescape
from importlib import resources
from inspect import getmembers, isfunction
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reparam._support import files
from reparam._support.optional import require
from reparam.report import forms, int8, networks, numbers, pruned, timing, tradeoff
from reparam.report.benchmarks import engine_label
from reparam.report.loading import Source, load_results
from reparam.report.results import Results
from reparam.report.sections import sections, tables
from reparam.report.tables import to_csv

_WITH_SECTIONS = (forms, int8, networks, pruned, timing)
"""Modules of which importing puts sections on the page."""

_FILTERS = {
    **{name: found for name, found in getmembers(numbers, isfunction) if name[0] != "_"},
    "away": lambda factor: numbers.ratio(max(factor, 1 / factor)),
    "capital": lambda words: words[:1].upper() + words[1:],
    "engine_label": engine_label,
    "in_engine": tradeoff.in_engine,
    "int8_lost": int8.points_lost,
    "macs_left": pruned.macs_left,
    "pruned_lost": pruned.points_lost,
    "short_label": tradeoff.short_label,
    "target_met": pruned.target_met,
    "weight_sizes": networks.weight_sizes,
    "width": lambda share: f"{100 * share:.2f}%",
}
_TESTS = {
    "level": lambda factor: abs(factor - 1) <= 0.03,
    "reduced": lambda engine: engine.endswith((" bf16", " int8")),
}


def render(results: Source, out: str | Path) -> Path:
    """Write the page of stored results; nothing is measured, nothing is fetched.

    Args:
        results: a :class:`Results`, its JSON object, or the path of a ``results.json``.
        out: the HTML file to write (whole or not at all).

    Returns:
        The path of the page.

    Raises:
        InputError: `results` is not a results file, or `out` cannot be written.
        MissingExtraError: jinja2 is not installed.
    """
    path = Path(out)
    files.write_text(path, page_html(load_results(results)))
    return path


def page_html(results: Results) -> str:
    """The page as text: styles, script, drawings and numbers inlined.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    made = sections(results)
    html = (
        _environment()
        .get_template("page.html.j2")
        .render(
            results=results,
            key=forms.key_facts(results),
            compared=tradeoff.tradeoffs(results),
            sections=made,
            csv=quote(to_csv(tables(made))),
            csv_name="reparam-results.csv",
            style=_asset("style.css"),
            script=_asset("page.js"),
        )
    )
    return f"{html}\n"


def sentence(name: str, *of: Any) -> str:
    """What the page says of something, as plain text: a macro of ``assets/words.html.j2``.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    macro = getattr(_environment().get_template("words.html.j2").module, name)
    return " ".join(unescape(macro(*of).striptags()).split())


@cache
def _environment() -> Any:
    jinja2 = require("jinja2", extra="report", purpose="Drawing the report page")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset_or_none),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    environment.tests |= _TESTS
    environment.globals |= {
        "far_better": f"{tradeoff.FAR_BETTER:g}",
        "harmless": int8.HARMLESS,
        "interval": numbers.wilson_interval,
    }
    for name in ("draw", "words"):
        environment.globals[name] = environment.get_template(f"{name}.html.j2").module
    return environment


def _asset_or_none(name: str) -> str | None:
    asset = resources.files("reparam.report") / "assets" / name
    return asset.read_text(encoding="utf-8") if asset.is_file() else None


def _asset(name: str) -> str:
    return (resources.files("reparam.report") / "assets" / name).read_text(encoding="utf-8")
