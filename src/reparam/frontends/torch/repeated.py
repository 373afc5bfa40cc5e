"""Calls of modules that do in one trace what they do in another, so that they are not traced again.

Of the ways that the code of a model may go, most of the calls are the same. One that decides
nothing, hides nothing and is called alike stands in the trace of another way as one operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from reparam.frontends.torch.frames import Call, Frame, Key
from reparam.frontends.torch.structures import leaves


class Repeated:
    """A call of a module that does what it does in another trace, as one operation.

    Args:
        frame: The call there.
        result: What it returns there: the identity of that operation.
        values: What is known there of the values.

    """

    __name__ = "repeated"

    def __init__(
        self, frame: Frame, result: tuple[Call, Key], values: Mapping[fx.Node, Any]
    ) -> None:
        """Remember what it reads and returns."""
        self.frame, self.result, self._values = frame, result, values
        self._arguments = list(leaves(frame.arguments))

    @property
    def reads(self) -> list[fx.Node]:
        """The traced values among its arguments there, each once."""
        return list(dict.fromkeys(n for _, n in self._arguments if isinstance(n, fx.Node)))

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        """What it returns for the example; a LookupError where that is not known."""
        return self._values[self.frame.result.node]

    def fits(self, arguments: dict[str, Any], values: Mapping[fx.Node, Any]) -> bool:
        """Whether it is called alike: with the same numbers, and values as far as they are known.

        Args:
            arguments: What it is called with, by the names of forward's parameters.
            values: What is known of the traced values there.

        """
        given = list(leaves(arguments))
        if [steps for steps, _ in given] != [steps for steps, _ in self._arguments]:
            return False
        stands_for: dict[fx.Node, fx.Node] = {}
        for (_, there), (_, here) in zip(self._arguments, given, strict=True):
            if not (isinstance(there, fx.Node) and isinstance(here, fx.Node)):
                if not _same(there, here):
                    return False
            elif stands_for.setdefault(there, here) is not here or not (
                (there.op == "get_attr") == (here.op == "get_attr")
                and (there in self._values) == (here in values)
                and _same(self._values.get(there), values.get(here))
            ):
                return False
        return True


def _same(there: object, here: object) -> bool:
    """Whether two plain values are the same, or two tensors without numbers are alike."""
    if isinstance(there, Tensor) and isinstance(here, Tensor):
        alike = there.is_meta and here.is_meta and there.dtype == here.dtype
        return there is here or (alike and there.shape == here.shape)
    return there is here or (type(there) in PLAIN and type(there) is type(here) and there == here)


PLAIN = (bool, int, float, str, type(None))
"""Kinds of arguments that are the same where they are equal."""
