"""Inference engines: one small adapter each, used both to measure and to check what was exported.

An engine turns a module, or a file in a format it reads, into a :class:`Runner`. Engines are looked
up by name with :func:`get_engine`. A new one is a module here with a subclass of :class:`Engine`
that is passed to :func:`register`: that is all, with the formats of its files (:class:`Format`) and
the name on a page in its class.
"""

from __future__ import annotations

from reparam.deploy.engines.base import (
    PRECISIONS,
    Engine,
    Format,
    Runner,
    Settings,
    UnsupportedCaseError,
    declared_sizes_of,
    engine_names,
    get_engine,
    register,
)

__all__ = [
    "PRECISIONS",
    "Engine",
    "Format",
    "Runner",
    "Settings",
    "UnsupportedCaseError",
    "declared_sizes_of",
    "engine_names",
    "get_engine",
    "register",
]
