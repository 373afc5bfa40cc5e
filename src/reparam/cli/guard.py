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

DEBUG_FLAG = "--debug"

_USER_ERRORS = (InputError, MissingExtraError, TrainingModeError, ExportError)
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE, errno.EBADF)
_DIFFERENT, _BAD_INPUT, _FAULT, _BROKEN_PIPE = 1, 2, 70, 141
_ENDING = (signal.SIGINT, signal.SIGTERM)


def guarded(command: Callable[[list[str]], None], arguments: list[str], terminal: Terminal) -> int:
    """Run `command` with `arguments` and return the exit code; no error leaves as a traceback.

    The exception is the one the user asks for, with ``--debug`` anywhere on the line or
    ``REPARAM_DEBUG=1`` in the environment: the traceback is printed ahead of the message then.
    """
    debug = DEBUG_FLAG in arguments or os.environ.get("REPARAM_DEBUG", "") not in ("", "0")
    told: list[int] = []
    try:
        with _ends_when_told(told):
            command([argument for argument in arguments if argument != DEBUG_FLAG])
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - the last line of defence before the user
        # A library whose callback was running may make an error of its own of a signal.
        if told and not isinstance(error, SystemExit):
            return _told(terminal, "stopped", debug=debug, code=128 + told[0])
        return _ended(terminal, error, debug=debug)
    return 0


def _ended(terminal: Terminal, error: BaseException, *, debug: bool) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, ReparamError):
        return _told(terminal, str(error), debug=debug, code=_code(error))
    if not isinstance(error, Exception):
        raise error
    return _lost_output(error) or _fault(terminal, error, debug=debug)


class _Stopped(BaseException):
    """A signal asked the process to end."""


@contextmanager
def _ends_when_told(told: list[int]) -> Iterator[None]:
    """Let a signal end a command as an error does, so that nothing half-done is left behind.

    Its number is noted in ``told``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        del frame
        signal.signal(number, signal.SIG_IGN)  # once is enough: what follows tidies up
        told.append(number)
        raise _Stopped

    former = {number: signal.signal(number, stop) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


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
