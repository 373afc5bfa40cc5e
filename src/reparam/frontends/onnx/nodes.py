"""Operations of ONNX graphs: their attributes, the graphs inside of them, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reparam.errors import InputError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_BOUNDED = {
    "Clip", "HardSigmoid", "LogSoftmax", "Relu", "Sigmoid", "Softmax", "Softsign", "Tanh",
}  # fmt: skip


def attributes(proto: NodeProto) -> dict[str, Any]:
    """The attributes of an operation as plain values; text as bytes, as onnx stores it."""
    found: dict[str, Any] = {}
    for attribute in proto.attribute:
        match attribute.type:
            case 1:
                found[attribute.name] = attribute.f
            case 2:
                found[attribute.name] = attribute.i
            case 3:
                found[attribute.name] = attribute.s.decode()
            case 6:
                found[attribute.name] = list(attribute.floats)
            case 7:
                found[attribute.name] = list(attribute.ints)
    return found


def padding(
    given: Mapping[str, Any], window: Sequence[int], strides: Sequence[int],
    sizes: Sequence[int] | None = None,
) -> list[tuple[int, int]] | None:  # fmt: skip
    """Numbers of elements before and after the input, per dimension, of a layer or a pooling.

    Args:
        given: The attributes ``pads`` and ``auto_pad``, as far as the operation has them.
        window: How many elements the kernel spans, its dilation included.
        strides: Steps of the window.
        sizes: Sizes of the input.

    Returns:
        None where the padding depends on the sizes, and they are not given.

    """
    mode, dims = given.get("auto_pad", "NOTSET"), len(window)
    if mode == "NOTSET":
        flat = given.get("pads") or [0] * (2 * dims)
        return list(zip(flat[:dims], flat[dims:], strict=True))
    if mode == "VALID":
        return [(0, 0)] * dims
    if sizes is None and any(step != 1 for step in strides):
        return None
    rests = [(size - 1) % step for size, step in zip(sizes or window, strides, strict=True)]
    totals = [max(span - 1 - rest, 0) for span, rest in zip(window, rests, strict=True)]
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if mode == "SAME_UPPER" else [pair[::-1] for pair in halves]


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that an operation holds: of If, Loop, Scan."""
    for attribute in node.attribute:
        if attribute.type == attribute.GRAPH:
            yield attribute.g
        elif attribute.type == attribute.GRAPHS:
            yield from attribute.graphs


def outer_reads(node: NodeProto) -> set[str]:
    """Names that the graphs inside of an operation read from around it."""
    found: set[str] = set()
    for graph in inner_graphs(node):
        own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        own |= {name for inner in graph.node for name in inner.output}
        read = {name for inner in graph.node for name in (*inner.input, *outer_reads(inner))}
        found |= (read | {value.name for value in graph.output}) - own - {""}
    return found


def in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Put operations behind those whose values they read; where they are already, nothing moves.

    Raises:
        InputError: Some depend on one another in a circle.

    """
    maker = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    done: dict[int, NodeProto] = {}
    for start in range(len(nodes)):
        waiting, above = [start], {start}
        while waiting:
            node = nodes[waiting[-1]]
            reads = (maker.get(name) for name in (*node.input, *sorted(outer_reads(node))))
            pending = next((k for k in reads if k is not None and k not in done), None)
            if pending is None:
                above.discard(waiting[-1])
                done.setdefault(waiting.pop(), node)
                continue
            if pending in above:
                names = " and ".join(
                    nodes[k].name or nodes[k].op_type for k in (pending, waiting[-1])
                )
                raise InputError(
                    f"its operations depend on one another in a circle, {names} among them"
                )
            waiting.append(pending)
            above.add(pending)
    return list(done.values())


def sorted_model(model: ModelProto) -> ModelProto:
    """Copy a model with the operations of all its graphs in order; one in order is returned itself.

    ONNX demands the order, and ONNX Runtime takes files without it.

    Raises:
        InputError: Operations depend on one another in a circle.

    """
    if all(_is_in_order(graph) for graph in _graphs([model.graph])):
        return model
    twin: ModelProto = type(model)()
    twin.CopyFrom(model)
    for graph in _graphs([twin.graph]):
        ordered = [_copy(node) for node in in_order(graph.node)]
        del graph.node[:]
        graph.node.extend(ordered)
    return twin


def remove_bounds(model: ModelProto) -> bool:
    """Let activations with an upper or lower bound pass their input on, in place; were there any?

    What stands before a saturated one can then be seen at the outputs. Folding has no part in such
    functions, so that two models that are equal remain so.
    """
    nodes = [node for graph in _graphs([model.graph]) for node in graph.node]
    bounded = [node for node in nodes if node.op_type in _BOUNDED and not node.domain]
    for node in bounded:
        node.op_type = "Identity"
        del node.attribute[:], node.input[1:]
    return bool(bounded)


def _graphs(graphs: Iterable[GraphProto]) -> Iterator[GraphProto]:
    for graph in graphs:
        yield graph
        for node in graph.node:
            yield from _graphs(inner_graphs(node))


def _is_in_order(graph: GraphProto) -> bool:
    made: set[str] = set()
    later = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if any(name in later and name not in made for name in (*node.input, *outer_reads(node))):
            return False
        made.update(node.output)
    return True


def _copy(node: NodeProto) -> NodeProto:
    twin: NodeProto = type(node)()
    twin.CopyFrom(node)
    return twin
