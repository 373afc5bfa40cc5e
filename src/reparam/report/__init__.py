"""Pages people look at, drawn from stored results; this room measures nothing."""

from __future__ import annotations

from reparam.report.benchmarks import from_benchmark
from reparam.report.loading import load_results, merge
from reparam.report.page import page_html, render, sentence
from reparam.report.recording import from_diff, from_plan, from_prune, from_quantize
from reparam.report.results import Results, to_json

__all__ = [
    "Results",
    "from_benchmark",
    "from_diff",
    "from_plan",
    "from_prune",
    "from_quantize",
    "load_results",
    "merge",
    "page_html",
    "render",
    "sentence",
    "to_json",
]
