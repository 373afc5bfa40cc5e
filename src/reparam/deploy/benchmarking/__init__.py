"""Measure models on the user's own machine: latency, memory, and what they compute and move."""

from __future__ import annotations

from reparam.deploy.benchmarking.choosing import (
    ParityRow,
    Pick,
    installed_engines,
    parity_table,
    pick,
)
from reparam.deploy.benchmarking.memory import MemoryTrace, peak_activation_memory
from reparam.deploy.benchmarking.profiling import Profile, profile
from reparam.deploy.benchmarking.results import BenchmarkResult, Case, Measurement, Ratio, Skipped
from reparam.deploy.benchmarking.runner import benchmark

__all__ = [
    "BenchmarkResult",
    "Case",
    "Measurement",
    "MemoryTrace",
    "ParityRow",
    "Pick",
    "Profile",
    "Ratio",
    "Skipped",
    "benchmark",
    "installed_engines",
    "parity_table",
    "peak_activation_memory",
    "pick",
    "profile",
]
