"""From exceptions to exit codes and one message each."""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING

from reparam.errors import (
    ExportError,
    InputError,
    MissingExtraError,
    ReparamError,
    TrainingModeError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from reparam.cli.terminal import Terminal

__all__ = ["DEBUG_FLAG", "guarded"]

DEBUG_FLAG = "--debug"

_USER_ERRORS = (InputError, MissingExtraError, TrainingModeError, ExportError)
_DIFFERENT, _BAD_INPUT, _FAULT, _INTERRUPTED = 1, 2, 70, 130


def guarded(command: Callable[[list[str]], None], arguments: list[str], terminal: Terminal) -> int:
    """Run `command` with `arguments` and return the exit code; no error leaves as a traceback.

    The exception is the one the user asks for, with ``--debug`` anywhere on the line or
    ``REPARAM_DEBUG=1`` in the environment: the traceback is printed ahead of the message then.
    """
    debug = DEBUG_FLAG in arguments or os.environ.get("REPARAM_DEBUG", "") not in ("", "0")
    try:
        command([argument for argument in arguments if argument != DEBUG_FLAG])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        terminal.error("stopped")
        return _INTERRUPTED
    except ReparamError as error:
        return _told(terminal, str(error), debug=debug, code=_code(error))
    except Exception as error:  # noqa: BLE001 - the last line of defence before the user
        message = (
            f"{type(error).__name__}: {error}\nThis should not happen. "
            f"Run it again with {DEBUG_FLAG} to see where, and please report it"
        )
        return _told(terminal, message, debug=debug, code=_FAULT)
    return 0


def _code(error: ReparamError) -> int:
    return _BAD_INPUT if isinstance(error, _USER_ERRORS) else _DIFFERENT


def _told(terminal: Terminal, message: str, *, debug: bool, code: int) -> int:
    if debug:
        terminal.note(traceback.format_exc().rstrip())
    terminal.error(message)
    return code
