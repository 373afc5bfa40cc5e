"""Inference engines: one small adapter each, used both to measure and to check what was exported.

An engine turns a module, or a file in a format it reads, into a :class:`Runner`. Engines are looked
up by name with :func:`get_engine`; a new one is a subclass of :class:`Engine` passed to
:func:`register`.
"""

from __future__ import annotations

from reparam.deploy.engines.base import (
    PRECISIONS,
    Engine,
    Runner,
    Settings,
    UnsupportedCaseError,
    engine_names,
    get_engine,
    register,
)

__all__ = [
    "PRECISIONS",
    "Engine",
    "Runner",
    "Settings",
    "UnsupportedCaseError",
    "engine_names",
    "get_engine",
    "register",
]
