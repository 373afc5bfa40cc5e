"""What a person reads on a page."""

from __future__ import annotations

import csv
import html
import io
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from reparam.report import page_html

if TYPE_CHECKING:
    from reparam.report.results import Results


def words(markup: str) -> str:
    """The words, without styles, scripts and tags."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", markup, flags=re.DOTALL)
    plain = re.sub(r"</?b>", "", body)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", plain))).strip()


def headline(results: Results) -> str:
    """The one sentence."""
    return words(re.search(r"<h1>(.*?)</h1>", page_html(results), flags=re.DOTALL)[1])


def further(results: Results) -> list[str]:
    """The sentences below it."""
    lede = page_html(results).partition('<section class="lede"')[2].partition("</section>")[0]
    return [words(told) for told in re.findall(r'<p class="lead">(.*?)</p>', lede)]


def figures(results: Results) -> dict[str, tuple[str, str]]:
    """The key numbers and what stands below them, by what they count."""
    entry = r'<dt>(.*?)</dt><dd><span class="value">(.*?)</span>(.*?)</dd>'
    return {
        words(label): (words(value), words(detail))
        for label, value, detail in re.findall(entry, page_html(results))
    }


def table(results: Results, name: str) -> list[list[str]]:
    """The lines of the table of that name, the head among them."""
    start = page_html(results).partition(f'aria-label="{html.escape(name)}"')[2]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", start.partition("</table>")[0], flags=re.DOTALL)
    return [[words(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", r)] for r in rows]


def numbers(results: Results) -> list[list[str]]:
    """What the page hands out for a spreadsheet."""
    data = re.search(r'data:text/csv;charset=utf-8,([^"]*)"', page_html(results))[1]
    return list(csv.reader(io.StringIO(unquote(data))))
