"""Rules for values that are joined along an axis of their own and added up over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.frontends.onnx.lift import OnnxLifter
from reparam.frontends.onnx.nodes import attributes
from reparam.frontends.onnx.table import reads
from reparam.program import Node

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["axes_of", "stacked", "total", "unsqueezed"]


def unsqueezed(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Unsqueeze`` before a ``Concat`` of a stack; to the planner it returns its input."""
    reader = lifter.only_reader(proto.output[0])
    join = None if reader is None else lifter.graph.node[reader]
    return lifter.alias(proto, proto.input[0], "stack") if _is_stack(lifter, join) else None


def stacked(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Concat`` of values along an axis of their own that only sums and means over it read."""
    if not _is_stack(lifter, proto):
        return None
    return lifter.stack(proto, proto.output[0], proto.input)


@reads("ReduceSum")
def total(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``ReduceSum`` and ``ReduceMean`` of a stack over its own axis: a sum of its values."""
    mean = proto.op_type == "ReduceMean"
    return lifter.sum_of_stack(proto, proto.input[0], mean=mean) if proto.input else None


def axes_of(lifter: OnnxLifter, proto: NodeProto, position: int) -> list[int] | None:
    """The axes that an operation names, as an attribute or as a constant input."""
    given = attributes(proto)
    if "axes" in given:
        return list(given["axes"])
    if len(proto.input) <= position or proto.input[position] not in lifter.constants:
        return None
    return lifter.constants.integers(proto.input[position])


def _is_stack(lifter: OnnxLifter, join: NodeProto | None) -> bool:
    """Whether a ``Concat`` joins values along an axis that each was given, for sums over it."""
    if join is None or join.op_type != "Concat" or join.output[0] in lifter.outputs:
        return False
    makers = [_unsqueeze_of(lifter, name) for name in join.input]
    ranks = {lifter.rank(maker.input[0]) for maker in makers if maker is not None}
    rank = ranks.pop() if len(ranks) == 1 and None not in makers else None
    if rank is None:
        return False
    readers = [lifter.graph.node[index] for index in lifter.readers.get(join.output[0], ())]
    axes = [axes_of(lifter, each, 1) for each in (*(m for m in makers if m), *readers)]
    at = attributes(join)["axis"] % (rank + 1)
    if any(named is None or [n % (rank + 1) for n in named] != [at] for named in axes):
        return False
    return bool(readers) and all(map(_adds_up, readers))


def _unsqueeze_of(lifter: OnnxLifter, name: str) -> NodeProto | None:
    """The operation that gives a value that is read once its new axis."""
    if lifter.only_reader(name) is None:
        return None
    made: NodeProto | None = lifter.makers.get(name)
    if made is None or made.op_type != "Unsqueeze" or made.input[0] in lifter.constants:
        return None
    return made


def _adds_up(reader: NodeProto) -> bool:
    drops = not attributes(reader).get("keepdims", 1)
    return drops and reader.op_type in {"ReduceSum", "ReduceMean"}
