"""What the code of a rewritten forward checks of its arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from reparam.errors import InputError


def planned_for(value: Any, planned: Any, what: str) -> None:
    """Raise where a rewritten forward is called in another way than it was planned for.

    Raises:
        InputError: ``value`` is not ``planned``.

    """
    if isinstance(value, fx.Proxy):
        return
    if isinstance(planned, bool) and isinstance(value, Tensor):
        value = bool(value)
    if value is not planned and (type(value) is not type(planned) or value != planned):
        msg = (
            f"this fused module was planned for {what} = {planned!r} and got {_short(value)}; "
            f"fuse the original with example_inputs for which it is called so"
        )
        raise InputError(msg)


def given(value: Any, what: str) -> None:
    """Raise where an optional tensor is missing that a rewritten forward was planned with.

    Raises:
        InputError: ``value`` is no tensor.

    """
    if not isinstance(value, Tensor | fx.Proxy):
        msg = (
            f"this fused module was planned for a tensor as {what} and got {_short(value)}; "
            f"fuse the original with example_inputs for which it is called so"
        )
        raise InputError(msg)


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) < 60 else f"a {type(value).__name__}"
