"""Measure models on this machine: what was asked for, measured, told, and the fastest picked."""

from __future__ import annotations

from reparam.cli.bench.measuring import measure
from reparam.cli.bench.picking import picked, tell_picked
from reparam.cli.bench.request import FIGURE1_MODELS, MeasureOptions, Request
from reparam.cli.bench.summary import summary, tell

__all__ = [
    "FIGURE1_MODELS",
    "MeasureOptions",
    "Request",
    "measure",
    "picked",
    "summary",
    "tell",
    "tell_picked",
]
