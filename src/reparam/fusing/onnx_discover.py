"""Find what folds in an ONNX model: lift it, let the planner choose, and sort out the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from reparam.errors import UnsupportedModelError
from reparam.frontends.onnx.constants import Constants
from reparam.frontends.onnx.lift import OnnxLifted, lift_onnx
from reparam.frontends.onnx.nodes import inner_graphs, sorted_model
from reparam.frontends.onnx.shapes import Shapes
from reparam.frontends.onnx.tensors import FLOATS
from reparam.frontends.onnx.valid import check_readable
from reparam.fusing.account import Account
from reparam.fusing.chosen import EVERYTHING, Chosen, Where
from reparam.planner import Candidate, select
from reparam.program import Affine, HostedInput, Node, Program, Sum, largest
from reparam.reasons import Reason, Refusal, Why

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

__all__ = ["OnnxDiscovery", "OnnxFound", "discover_onnx"]

_NUMPY_BROADCASTING = 7
"""Opset from which operations broadcast as numpy does."""

_SORTED = (
    "its operations did not stand in the order that ONNX demands; the fused model has them in order"
)

_QUANTISED = {
    "QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
    "ConvInteger", "MatMulInteger", "QLinearAdd", "QLinearGlobalAveragePool", "QLinearConcat",
    "QGemm",
}  # fmt: skip

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"}


@dataclass(frozen=True, slots=True, eq=False)
class OnnxFound:
    """One region of a graph.

    Attributes:
        region: The planner's candidate.
        core: Its operations that stand together in the graph; one layer takes their place.
        moved: Operations that stand elsewhere, between other ones, and become the identity there.
        last: The one whose value the new layer returns.
        anchor: The one with the largest weight, after which the layer is named.

    """

    region: Candidate
    core: tuple[Node, ...]
    moved: tuple[Node, ...]
    last: Node
    anchor: Affine

    @classmethod
    def of(cls, region: Candidate) -> OnnxFound:
        """Part a region into what stands together and what was moved."""
        last = region.output
        while last.is_copy:
            last = last.inputs[0]
        ordered = sorted(region.nodes, key=lambda n: n.order)
        return cls(
            region,
            core=tuple(n for n in ordered if not n.is_copy),
            moved=tuple(n for n in ordered if n.is_copy),
            last=last,
            anchor=largest(ordered),
        )

    @property
    def moved_keys(self) -> set[Hashable]:
        """Names of the operations that are gone only if every region with a copy of them folds."""
        return {node.key for node in self.moved}

    def dtype(self, lifted: OnnxLifted) -> torch.dtype | None:
        """The type of the layer's numbers; None where the file does not tell."""
        code = lifted.constants.type(lifted.reads(self.anchor)[0])
        return None if code is None else FLOATS.get(code)


@dataclass(eq=False)
class OnnxDiscovery:
    """Everything found in a model.

    Attributes:
        lifted: The lifted model.
        regions: What folds.
        account: What does not, and why.
        notes: What else the reader of a plan should know of the model, a sentence each.

    """

    lifted: OnnxLifted
    regions: list[OnnxFound] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    notes: list[str] = field(default_factory=list)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """What is left as it is."""
        return self.account.settle({n.key for one in self.regions for n in one.region.nodes})


def discover_onnx(model: Any, where: Where | None = None) -> OnnxDiscovery:
    """Find the regions of a model that lie in the chosen part of it.

    Raises:
        UnsupportedModelError: It is no ``onnx.ModelProto``.
        InputError: It is not whole or valid, or of a version that onnx does not know; or nothing
            in it is chosen.

    """
    if type(model).__name__ != "ModelProto":
        msg = (
            f"got an onnx.{type(model).__name__}; needed a whole onnx.ModelProto, which says the "
            f"versions of its operations, too"
        )
        raise UnsupportedModelError(msg)
    opset = check_readable(model)
    ordered = sorted_model(model)
    notes = [] if ordered is model else [_SORTED]
    constants = Constants(ordered, Shapes(), opset)
    why = _left_alone(ordered.graph, constants, opset)
    if why is not None:
        nothing = OnnxLifted(ordered, Program(), constants, Shapes(), opset)
        result = OnnxDiscovery(nothing, notes=notes)
        result.account.leave("the model", "the whole graph", why)
        return result
    result = OnnxDiscovery(lift_onnx(ordered, opset), notes=notes)
    chosen = EVERYTHING if where is None else Chosen(where, _places(ordered.graph))
    _select(result, chosen)
    for place, what in _inner_layers(model):
        result.account.leave(place, what, Why.INNER_GRAPH())
    return result


def _places(graph: GraphProto) -> dict[str, NodeProto]:
    """The operations by what they may be called: their names, or what they return."""
    places: dict[str, NodeProto] = {}
    for node in graph.node:
        for name in filter(None, (node.name, *node.output)):
            places.setdefault(name, node)
    return places


def _select(result: OnnxDiscovery, chosen: Chosen) -> None:
    lifted = result.lifted
    nodes = lifted.model.graph.node

    def is_chosen(index: int) -> bool:
        return any(name in chosen for name in (nodes[index].name, *nodes[index].output))

    def veto(region: Candidate) -> Reason | None:
        inside = {index for node in region.nodes for index in lifted.indices_of(node)}
        if not all(map(is_chosen, inside)):
            return Why.NOT_CHOSEN()
        return _objection(lifted, region)

    selection = select(lifted.program, veto)
    result.regions.extend(OnnxFound.of(region) for region in selection.regions)
    result.account.explain(selection)


def _objection(lifted: OnnxLifted, region: Candidate) -> Reason | None:
    """The reason not to fold a region that the algebra allows, or None."""
    layers = [n for n in region.nodes if n.is_mixing or isinstance(n, Sum)]
    if isinstance(region.source, HostedInput) and len(layers) > 1:
        return Why.INPUT_OF_ITS_OWN(what=region.source.what)
    if OnnxFound.of(region).dtype(lifted) is None:
        return Why.UNKNOWN_TYPE()
    inside = {index for node in region.nodes for index in lifted.indices_of(node)}
    for node in region.nodes:
        for name in lifted.reads(node) if node.is_mixing else ():
            shared = len(lifted.constants.shape(name)) > 1 and _is_tied(lifted, name, inside)
            if shared:
                return Why.USED_ELSEWHERE()
    return None


def _is_tied(lifted: OnnxLifted, name: str, inside: set[int]) -> bool:
    """Whether what a weight is stored in, or computed from, is read outside of a region."""
    waiting, graph = [*lifted.constants.sources(name), name], lifted.model.graph
    seen: set[str] = set()
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        for index in lifted.readers.get(value, ()):
            if index in lifted.constants.nodes:
                # Only its shape is read by these, and where they compute a weight, so does theirs.
                outputs = graph.node[index].output
                waiting += [v for v in outputs if graph.node[index].op_type != "Shape" and v]
            elif index not in inside:
                return True
    return False


def _left_alone(graph: GraphProto, constants: Constants, opset: int) -> Reason | None:
    """Why nothing in a graph is touched, or None."""
    if opset < _NUMPY_BROADCASTING:
        return Why.OLD_OPSET(found=opset, needed=_NUMPY_BROADCASTING)
    # Weights that are stored with fewer bits do not keep other layers from folding.
    found = Counter(
        node.op_type for node in graph.node
        if node.op_type in _QUANTISED and not all(name in constants for name in node.input if name)
    )  # fmt: skip
    if found:
        names = ", ".join(f"{times} {name}" for name, times in sorted(found.items()))
        return Why.QUANTISED(found=names)
    return None


def _inner_layers(model: ModelProto) -> Iterator[tuple[str, str]]:
    """Operations with layers in graphs of their own: bodies of control flow, functions."""
    functions = {
        (f.domain, f.name) for f in model.functions if any(n.op_type in _LAYERS for n in f.node)
    }
    for node in model.graph.node:
        if (node.domain, node.op_type) in functions or any(map(_has_layers, inner_graphs(node))):
            yield node.name or node.output[0], node.op_type


def _has_layers(graph: GraphProto) -> bool:
    return any(
        node.op_type in _LAYERS or any(map(_has_layers, inner_graphs(node))) for node in graph.node
    )
