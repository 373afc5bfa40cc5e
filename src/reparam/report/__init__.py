"""Pages people look at, drawn from stored results; this room measures nothing."""

from __future__ import annotations

from reparam.report.page import page_html, render
from reparam.report.results import Results, load_results, to_json

__all__ = ["Results", "load_results", "page_html", "render", "to_json"]
