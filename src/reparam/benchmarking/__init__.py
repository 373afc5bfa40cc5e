"""Measure models on the user's own machine: latency, memory, and what they compute and move."""

from __future__ import annotations

from reparam.benchmarking.memory import MemoryTrace, peak_activation_memory
from reparam.benchmarking.profiling import Profile, profile
from reparam.benchmarking.results import BenchmarkResult, Case, Measurement, Ratio, Skipped
from reparam.benchmarking.runner import benchmark

__all__ = [
    "BenchmarkResult",
    "Case",
    "Measurement",
    "MemoryTrace",
    "Profile",
    "Ratio",
    "Skipped",
    "benchmark",
    "peak_activation_memory",
    "profile",
]
