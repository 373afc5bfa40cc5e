"""From a module to a :class:`torch.export.ExportedProgram`, with the shapes that can vary."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.export import Dim

from reparam._support.spelling import advice
from reparam._support.untouched import untouched
from reparam.deploy.engines._inputs import with_batch
from reparam.deploy.engines._quiet import first_line, quiet
from reparam.errors import ExportError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

Axes: TypeAlias = tuple[dict[int, str], ...]
"""For each input, the names of its variable dimensions by position."""

_MORE_PIXELS = 16
"""How much larger the maps are on which a variable size is tried."""
_SPATIAL = ("depth", "height", "width")


class Dynamic(enum.Enum):
    """Which input dimensions may vary in an exported model.

    ``AUTO`` is the batch, and the height and width where the model allows it; ``SIZE`` insists on
    the latter.
    """

    NONE = "none"
    BATCH = "batch"
    SIZE = "size"
    AUTO = "auto"

    @classmethod
    def of(cls, value: bool | str | Dynamic) -> Dynamic:  # noqa: FBT001 - the public spelling
        """Read the argument of the public functions: a boolean or one of the names.

        >>> Dynamic.of(True), Dynamic.of(False), Dynamic.of("batch")
        (<Dynamic.AUTO: 'auto'>, <Dynamic.NONE: 'none'>, <Dynamic.BATCH: 'batch'>)
        """
        if isinstance(value, bool):
            return cls.AUTO if value else cls.NONE
        try:
            return cls(value)
        except ValueError:
            known = ", ".join(repr(member.value) for member in cls)
            raise InputError(f"dynamic is {value!r}; use True, False or one of {known}") from None


@dataclass(frozen=True)
class Program:
    """An exported program and what may vary in its inputs.

    Attributes:
        exported: The program.
        axes: For each input, the names of its variable dimensions by position.
        inputs: The inputs it was traced with.
        shapes: The ``dynamic_shapes`` it was traced with.
    """

    exported: torch.export.ExportedProgram
    axes: Axes
    inputs: tuple[torch.Tensor, ...]
    shapes: tuple[dict[int, Any], ...] | None = None

    @property
    def hint(self) -> str:
        """What to do where a converter for phones does not take the shapes that vary."""
        fixed = "; {dynamic} writes it for one sample of fixed size"
        return advice(fixed, dynamic=True) if self.shapes else ""


@dataclass(frozen=True, eq=False)
class Conversion:
    """What the file of an engine is written from.

    Attributes:
        model: A module in eval mode; it is not changed.
        inputs: Its positional inputs, in float32; dimension 0 is the batch, those after 1 are
            sizes.
        dynamic: What may vary in the file.
        metadata: What the file is to say about itself, where its format can.
    """

    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    dynamic: Dynamic = Dynamic.NONE
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the model is called in messages."""
        return type(self.model).__name__

    def of_one_sample(self) -> Conversion:
        """What phones take unless more is asked for: one sample, with every shape fixed."""
        if self.dynamic is not Dynamic.AUTO:
            return self
        inputs = tuple(x[:1] if x.dim() else x for x in self.inputs)
        return replace(self, inputs=inputs, dynamic=Dynamic.NONE)

    def program(self, *, bounded: bool = False) -> Program:
        """Trace the model with :func:`torch.export.export`.

        Args:
            bounded: Whether what varies has an upper bound, for engines that plan memory ahead: a
                batch of at least 16 and twice the example's, sizes twice the example's.

        Raises:
            ExportError: The model cannot be traced, or not with what may vary.
        """
        failure: Exception | None = None
        attempts = _ATTEMPTS[self.dynamic]
        for attempt in attempts:
            try:
                return _trace(self.model, self.inputs, attempt, bounded=bounded)
            except Exception as error:  # noqa: BLE001 - torch.export raises errors of many kinds
                failure = error
        wanted = hint = ""
        if self.dynamic is not Dynamic.NONE:
            wanted = f" with a variable {attempts[-1].what}"
            hint = advice("; {dynamic} exports it for one fixed shape", dynamic=False)
        raise ExportError(
            f"torch.export could not trace {self.name}{wanted}: {first_line(failure)}{hint}"
        ) from failure


@dataclass(frozen=True)
class _Attempt:
    """What may vary in one attempt, and the smallest size as a fraction of the example's."""

    what: str
    smallest: float = 1.0


# torch.export specialises on maps that shrink to one pixel, so a size needs a lower bound; how low
# it can be depends on the strides of the model.
_SIZE = (_Attempt("size", 0.5), _Attempt("size", 1.0))
_BATCH = (_Attempt("batch"),)
_ATTEMPTS = {
    Dynamic.NONE: (_Attempt(""),),
    Dynamic.BATCH: _BATCH,
    Dynamic.SIZE: _SIZE,
    Dynamic.AUTO: _SIZE + _BATCH,
}


def _trace(
    model: nn.Module, inputs: tuple[torch.Tensor, ...], attempt: _Attempt, *, bounded: bool
) -> Program:
    if attempt.what:
        # A batch of one would be taken for a constant.
        inputs = with_batch(inputs, max(2, inputs[0].shape[0]))
    axes = tuple(_axes(value, attempt.what) for value in inputs)
    dims: dict[str, Any] = {}
    for value, each in zip(inputs, axes, strict=True):
        for position, name in each.items():
            dims.setdefault(name, _dim(name, value.shape[position], attempt, bounded=bounded))
    shapes: Any = tuple({i: dims[name] for i, name in each.items()} for each in axes)
    with torch.no_grad(), quiet():
        exported = torch.export.export(
            model, inputs, dynamic_shapes=shapes if attempt.what else None, strict=False
        )
        program = Program(exported, axes, inputs, shapes if attempt.what else None)
        if attempt.what:
            # A shape that cannot vary may be noticed only by a program that runs with another one.
            module = exported.module()
            with untouched([module]):
                module(*other_shapes(inputs, axes))
    return program


def _dim(name: str, size: int, attempt: _Attempt, *, bounded: bool) -> Dim:
    """Return a variable dimension, with the bounds that tracing or the engine needs."""
    least = 1 if name == "batch" else max(2, int(size * attempt.smallest))
    most = max(2 * size, 16 if name == "batch" else size + _MORE_PIXELS)
    return Dim(name, min=least, max=most) if bounded else Dim(name, min=least)


def other_shapes(
    inputs: Sequence[torch.Tensor], axes: Sequence[dict[int, str]]
) -> tuple[torch.Tensor, ...]:
    """Return the inputs with one sample more, and larger maps where those may vary.

    >>> other_shapes((torch.zeros(2, 3, 8, 8),), ({0: "batch", 3: "width"},))[0].shape
    torch.Size([3, 3, 8, 24])
    """
    changed = []
    for value, names in zip(with_batch(inputs, inputs[0].shape[0] + 1), axes, strict=True):
        for position, name in names.items():
            if name != "batch":
                old = value.shape[position]
                index = torch.arange(old + _MORE_PIXELS, device=value.device) % old
                value = value.index_select(position, index)  # noqa: PLW2901 - one axis at a time
        changed.append(value)
    return tuple(changed)


def _axes(value: torch.Tensor, what: str) -> dict[int, str]:
    """Name the variable dimensions of one input."""
    if not what or value.dim() == 0:
        return {}
    axes = {0: "batch"}
    spatial = value.dim() - 2
    if what == "size" and 0 < spatial <= len(_SPATIAL):
        axes |= {2 + i: name for i, name in enumerate(_SPATIAL[-spatial:])}
    return axes
