"""What an ONNX model reads from outside: inputs with their declared sizes, and defaults of some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto

FIRST_SEPARATE_INITIALIZERS = 4
"""IR version from which an initializer that is also an input is a default, not a constant."""


def required_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """The inputs that a caller has to give: those without an initializer."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def overridable(model: ModelProto) -> set[str]:
    """Initializers that are inputs, too: a caller may give other numbers in their place."""
    if model.ir_version < FIRST_SEPARATE_INITIALIZERS:
        return set()
    inputs = {value.name for value in model.graph.input}
    return {tensor.name for tensor in model.graph.initializer} & inputs


def freeze_inputs(model: ModelProto) -> ModelProto:
    """Copy a model so that callers can no longer give other numbers for its initializers.

    Old exporters list weights as inputs, too (``keep_initializers_as_inputs``). As they may change
    from call to call then, nothing can be folded into them.

    Args:
        model: It is only read; a model without such inputs is returned as it is.

    """
    taken = overridable(model)
    if not taken:
        return model
    twin: ModelProto = type(model)()
    twin.CopyFrom(model)
    kept = [value for value in model.graph.input if value.name not in taken]
    del twin.graph.input[:]
    twin.graph.input.extend(kept)
    return twin


def declared_sizes(value: ValueInfoProto) -> list[int | str | None] | None:
    """The sizes that a file declares of a value: numbers, names, or None; None for no rank.

    Some converters write -1 or 0 for a size that varies.
    """
    if not value.type.tensor_type.HasField("shape"):
        return None
    return [
        d.dim_value if d.dim_value > 0 else d.dim_param or None
        for d in value.type.tensor_type.shape.dim
    ]


def open_sizes(model: ModelProto) -> bool:
    """Rewrite declared sizes below one, in place, as sizes that vary; whether there were any."""
    found = False
    for dim in _declared(model.graph):
        if dim.HasField("dim_value") and dim.dim_value < 1:
            dim.ClearField("dim_value")
            found = True
    return found


def _declared(graph: GraphProto) -> Iterator[Any]:
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield from value.type.tensor_type.shape.dim
