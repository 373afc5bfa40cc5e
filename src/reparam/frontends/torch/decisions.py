"""Where a forward turns a traced value into a plain one, and which way it goes on from there."""

from __future__ import annotations

import bisect
import dis
import enum
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType

import torch

_OURS = f"{Path(__file__).parent}{os.sep}"
_TORCHS = f"{Path(torch.__file__).parent}{os.sep}"
_BRANCHES = ("POP_JUMP", "JUMP_IF")


class Level(enum.IntEnum):
    """What a value of a trace depends on; of several, the highest counts."""

    CONSTANT = 0
    """Parameters, buffers and literals, or their sizes."""
    KIND = 1
    """Rank, type or device of the inputs: the same in every sensible call."""
    ARGUMENT = 2
    """A number that a caller passes."""
    SIZE = 3
    """The sizes of the inputs."""
    DATA = 4
    """The numbers in the inputs."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the code of a model: the same in every trace of it."""

    code: CodeType
    instruction: int

    def __str__(self) -> str:
        """Name the function and the line."""
        lines = self.code.co_lines()
        line = next((n for start, stop, n in lines if start <= self.instruction < stop), None)
        return f"{self.code.co_qualname}, line {line}"


@dataclass(frozen=True, slots=True)
class Decision:
    """One value that the code of a model has looked at.

    Attributes:
        place: Where.
        level: What the value depends on.
        taken: What it was; True or False where the code asked for no more.
        other_raises: Whether the code does nothing but raise where it is another.

    """

    place: Place
    level: Level
    taken: object
    other_raises: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the model may well go another way in another call."""
        return self.level > Level.KIND and not self.other_raises


def goes_another_way(place: Place) -> str:
    """Say that a forward cannot be written down, since it has more than one way to go."""
    return f"its code goes another way for other inputs ({place})"


def caller() -> Place:
    """The place in the model's code that is being run."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 (what inspect.currentframe returns)
    while frame is not None and frame.f_code.co_filename.startswith((_OURS, _TORCHS)):
        frame = frame.f_back
    frame = frame or sys._getframe(1)  # noqa: SLF001
    return Place(frame.f_code, frame.f_lasti)


@functools.lru_cache(maxsize=1024)
def way_that_raises(place: Place) -> bool | None:
    """Which truth value leads straight to a ``raise``, as in ``assert``; None if neither does."""
    code = steps_of(place.code)
    at = next((k for k, step in enumerate(code) if step.offset >= place.instruction), len(code))
    while at < len(code) and not code[at].opname.startswith(_BRANCHES):
        if code[at].opname not in {"TO_BOOL", "UNARY_NOT", "CACHE", "NOP"}:
            return None
        at += 1
    if at == len(code) or "NONE" in code[at].opname:
        return None
    jumps_on = "IF_TRUE" in code[at].opname
    if _raises_from(code, at + 1):
        return not jumps_on
    target = next((k for k, s in enumerate(code) if s.offset == code[at].argval), len(code))
    return jumps_on if _raises_from(code, target) else None


@functools.lru_cache(maxsize=256)
def steps_of(code: CodeType) -> tuple[dis.Instruction, ...]:
    """The instructions of a function; listing them takes longer than most that is asked of them."""
    return tuple(dis.get_instructions(code))


def unpacked(place: Place) -> int | None:
    """Into how many variables a value is taken apart at a place, if it is, as in ``a, b = x``."""
    steps = steps_of(place.code)
    step = steps[bisect.bisect_left(steps, place.instruction, key=lambda step: step.offset)]
    return int(step.argval) if step.opname == "UNPACK_SEQUENCE" else None


def _raises_from(code: Sequence[dis.Instruction], at: int) -> bool:
    """Whether running on from an instruction raises without a further branch."""
    for step in code[at:]:
        if step.opname == "RAISE_VARARGS":
            return True
        if "JUMP" in step.opname or step.opname.startswith(("RETURN", "FOR_ITER", "STORE_ATTR")):
            return False
    return False


def raised_by_the_model(error: BaseException) -> bool:
    """Whether an exception comes from a ``raise`` or ``assert`` in the model's own code."""
    at = error.__traceback__
    if at is None:
        return False
    while at.tb_next is not None:
        at = at.tb_next
    code = at.tb_frame.f_code
    if code.co_filename.startswith((_OURS, _TORCHS)):
        return False
    steps = steps_of(code)
    return any(s.offset == at.tb_lasti and s.opname == "RAISE_VARARGS" for s in steps)
