"""Pages people look at, drawn from stored results; this room measures nothing."""

from __future__ import annotations

from reparam.report.benchmarks import from_benchmark
from reparam.report.from_diff import from_diff
from reparam.report.from_plan import from_plan
from reparam.report.from_pruning import from_prune
from reparam.report.from_quantizing import from_quantize
from reparam.report.loading import load_results, merge
from reparam.report.page import page_html, render, sentence
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
