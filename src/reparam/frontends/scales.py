"""Which constants act on each channel by itself."""

from __future__ import annotations

import math

from reparam.reasons import Reason, Why


def doubt(
    shape: tuple[int, ...], channels: int | None, axis: int | None, rank: int | None = None
) -> Reason | None:
    """Why a constant of this shape may not act on each channel of a value by itself."""
    if channels is None or axis is None:
        # Several numbers along one axis look like one for each channel, others do not.
        vector = math.prod(shape) == max(shape, default=1) > 1
        return Why.UNKNOWN_CHANNELS(shape=str(tuple(shape))) if vector else None
    if is_per_channel(shape, channels, axis, rank):
        return None
    return Why.NOT_PER_CHANNEL(shape=str(tuple(shape)))


def is_per_channel(
    shape: tuple[int, ...], channels: int, axis: int, rank: int | None = None
) -> bool:
    """Whether a constant of this shape acts on each channel by itself and broadcasts nothing.

    Where the number of dimensions of the value is not known, there is a batch before the channels.
    """
    if len(shape) > (1 - axis if rank is None else rank):
        return False
    if all(size == 1 for size in shape):
        return True
    if len(shape) < -axis or shape[axis] != channels:
        return False
    lead = shape[:axis]
    rest = shape[axis + 1 :] if axis != -1 else ()
    return all(size == 1 for size in (*rest, *lead))
