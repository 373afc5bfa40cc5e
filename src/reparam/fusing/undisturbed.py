"""What is paused while a model is read and written: Python's garbage collector, torch.compile."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Read and write models without what else would run meanwhile."""
    with _paused_collector(), _uncompiled():
        yield


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause the collector; reading a large model otherwise spends a quarter of its time in it.

    Traces hold nearly all that is made until the work is done, so that there is little to collect.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Run what ``torch.compile`` has wrapped as it was: code is read, not compiled, here."""
    if "torch._dynamo" not in sys.modules:  # it takes a second to import, and nothing is wrapped
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
