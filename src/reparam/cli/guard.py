"""From exceptions to exit codes and one message each."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

from reparam.errors import (
    ExportError,
    InputError,
    MissingExtraError,
    ReparamError,
    TrainingModeError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reparam.cli.terminal import Terminal

__all__ = ["DEBUG_FLAG", "guarded"]

DEBUG_FLAG = "--debug"

_USER_ERRORS = (InputError, MissingExtraError, TrainingModeError, ExportError)
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE, errno.EBADF)
_DIFFERENT, _BAD_INPUT, _FAULT, _INTERRUPTED, _BROKEN_PIPE = 1, 2, 70, 130, 141


def guarded(command: Callable[[list[str]], None], arguments: list[str], terminal: Terminal) -> int:
    """Run `command` with `arguments` and return the exit code; no error leaves as a traceback.

    The exception is the one the user asks for, with ``--debug`` anywhere on the line or
    ``REPARAM_DEBUG=1`` in the environment: the traceback is printed ahead of the message then.
    """
    debug = DEBUG_FLAG in arguments or os.environ.get("REPARAM_DEBUG", "") not in ("", "0")
    try:
        with _ends_when_told():
            command([argument for argument in arguments if argument != DEBUG_FLAG])
        sys.stdout.flush()
    except _Stopped as stop:
        return _told(terminal, "stopped", debug=debug, code=128 + stop.number)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        terminal.error("stopped")
        return _INTERRUPTED
    except ReparamError as error:
        return _told(terminal, str(error), debug=debug, code=_code(error))
    except Exception as error:  # noqa: BLE001 - the last line of defence before the user
        return _lost_output(error) or _fault(terminal, error, debug=debug)
    return 0


class _Stopped(BaseException):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _ends_when_told() -> Iterator[None]:
    """Let SIGTERM end a command as an error does, so that nothing half-done is left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        del frame
        signal.signal(number, signal.SIG_IGN)  # once is enough: what follows tidies up
        raise _Stopped(number)

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _lost_output(error: Exception) -> int:
    """Say that what was printed could not be written; 0 if that is not what went wrong.

    What is written elsewhere names its file when it fails.
    """
    if not isinstance(error, OSError) or error.filename or error.errno not in _UNWRITABLE:
        return 0
    # Else the interpreter tries once more when it ends, and complains again.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return _BROKEN_PIPE  # whoever read has seen enough
    with suppress(OSError):
        sys.stderr.write(f"reparam: cannot write to the standard output: {error.strerror}\n")
    return _BAD_INPUT


def _fault(terminal: Terminal, error: Exception, *, debug: bool) -> int:
    message = (
        f"{type(error).__name__}: {error}\nThis should not happen. "
        f"Run it again with {DEBUG_FLAG} to see where, and please report it"
    )
    return _told(terminal, message, debug=debug, code=_FAULT)


def _code(error: ReparamError) -> int:
    return _BAD_INPUT if isinstance(error, _USER_ERRORS) else _DIFFERENT


def _told(terminal: Terminal, message: str, *, debug: bool, code: int) -> int:
    if debug:
        terminal.note(traceback.format_exc().rstrip())
    terminal.error(message)
    return code
