"""Run what others wrote: silently, and with errors that are told in one way."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reparam.errors import ExportError, ReparamError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TALKATIVE = ("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes", "onnxscript")
"""Loggers that tell the terminal what the errors say."""


@contextlib.contextmanager
def converting(what: str, hint: str = "", *, briefly: bool = False) -> Iterator[None]:
    """Run a converter without gradients and in silence, and explain its errors."""
    with explained(what, hint, briefly=briefly), quiet(), torch.no_grad():
        yield


@contextlib.contextmanager
def explained(what: str, hint: str = "", *, briefly: bool = False) -> Iterator[None]:
    """Turn an error of any kind into an :class:`ExportError`.

    Args:
        what: What could not be done, ahead of the message.
        hint: What to do, behind it.
        briefly: Whether the first line of the message says it all.
    """
    try:
        yield
    except ReparamError:
        raise
    except Exception as error:
        why = first_line(error) if briefly else str(error).strip() or type(error).__name__
        raise ExportError(f"{what}: {why}{hint}") from error


def first_line(error: Exception | None) -> str:
    """The first line of a message, or the kind of an error that has none."""
    text = str(error).strip() or type(error).__name__
    # What follows is about torch's own logs.
    return text.splitlines()[0].partition(" For more information")[0]


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keep exporters, or what has loggers of these names, from writing into the terminal."""
    loggers = [logging.getLogger(name) for name in names or _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Send what libraries write to the error streams of Python and of the process nowhere."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stderr(nowhere),
        _silent_process(nowhere.fileno()),
    ):
        yield


@contextlib.contextmanager
def _silent_process(nowhere: int) -> Iterator[None]:
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # no error stream: nothing to keep silent
        yield
        return
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
