"""What a measurement ran on: the processor and the versions, and nothing that names the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from reparam._support.processor import instruction_sets
from reparam._support.version import __version__
from reparam.deploy.engines import engine_names, get_engine


def describe_environment() -> dict[str, Any]:
    """Return processor, cores, memory, system and package versions.

    >>> sorted(describe_environment())[:3]
    ['cores', 'cpu', 'cpu_capability']
    """
    versions = {name: _version(name) for name in _packages()}
    versions |= {"reparam": __version__, "python": platform.python_version()}
    return {
        "cpu": _cpu_model(),
        "instruction_sets": list(instruction_sets()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cpu_count(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version for name, version in sorted(versions.items()) if version},
    }


def _packages() -> set[str]:
    engines = map(get_engine, engine_names())
    needed = (module for engine in engines for module in engine.requirements)
    return {"torch", *(module.replace("_", "-") for module in needed)}


def cpu_count() -> int:
    """Return the number of CPU cores this process may use.

    >>> cpu_count() >= 1
    True
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def process_peak_bytes() -> int | None:
    """Return the largest resident size the process has had, where the system tells it."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
