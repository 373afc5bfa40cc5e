"""What folds in an ONNX model: lifted, folded and written by its own operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from reparam.errors import UnsupportedModelError, VerificationError
from reparam.frontends.onnx.constants import Constants
from reparam.frontends.onnx.lift import OnnxLifted, lift_onnx
from reparam.frontends.onnx.nodes import inner_graphs, sorted_model
from reparam.frontends.onnx.shapes import Shapes
from reparam.frontends.onnx.valid import check_readable, complaint
from reparam.fusing.chosen import EVERYTHING, Chosen, Where
from reparam.fusing.driver import Discovery, Site
from reparam.fusing.fold import FoldedLayer
from reparam.fusing.onnx_edit import write_model
from reparam.fusing.onnx_fold import dtype_of, fold_onnx
from reparam.planner import Candidate
from reparam.reasons import Reason, Why

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

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


class OnnxDiscovery(Discovery["ModelProto", Site]):
    """Everything found in an ONNX model.

    Args:
        model: An ``onnx.ModelProto`` with its weights.
        where: Names of operations or of what they return, patterns of these, or a function of the
            name and the node; only what lies there folds.

    Raises:
        UnsupportedModelError: It is no ``onnx.ModelProto``.
        InputError: It is no whole model, or of a version that the installed onnx does not know; or
            nothing in it is chosen.

    """

    def __init__(self, model: Any, where: Where | None = None) -> None:
        """Read the model; it is not changed."""
        super().__init__()
        if type(model).__name__ != "ModelProto":
            msg = (
                f"got an onnx.{type(model).__name__}; needed a whole onnx.ModelProto, which says "
                f"the versions of its operations, too"
            )
            raise UnsupportedModelError(msg)
        opset = check_readable(model)
        ordered = sorted_model(model)
        self.notes = () if ordered is model else (_SORTED,)
        why = _left_alone(ordered, opset)
        if why is not None:
            unread = Constants(ordered, Shapes(), opset)
            self._lifted = OnnxLifted(ordered, opset, Shapes(), unread)
            self.account.leave(self.whole, "the whole graph", why)
            return
        self._lifted = lift_onnx(ordered, opset)
        chosen = EVERYTHING if where is None else Chosen(where, _places(ordered.graph))
        vetoes = _Vetoes(self._lifted, chosen)
        self.keep(*self.found_in(self._lifted, vetoes), lambda _: None)
        for place, what in _inner_layers(model):
            self.account.leave(place, what, Why.INNER_GRAPH())
        self._lifted.constants.forget()

    def described(self, lifted: OnnxLifted, region: Candidate) -> Site:
        """Part a region into what stands together and what was moved."""
        ordered = sorted(region.nodes, key=lambda n: n.order)
        core = tuple(n for n in ordered if not n.is_copy)
        return Site(lifted, region, core, tuple(n for n in ordered if n.is_copy))

    def place(self, found: Site) -> str:
        """Name the operation with the largest weight."""
        return found.region.anchor.where

    def bytes_each(self, found: Site) -> int:
        """Bytes of one number of a region's layer."""
        dtype = dtype_of(self._lifted, found.region)
        return 4 if dtype is None else dtype.itemsize

    def fold(self, found: Site) -> FoldedLayer | Reason:
        """Fold a region, or say why its operations could not be run to compare with."""
        try:
            return fold_onnx(self._lifted, found.region)
        except Exception as error:  # noqa: BLE001 (the reference evaluator's operators raise anything)
            return Why.NOT_RUN(error=str(error))

    def write(self, folded: Sequence[tuple[Site, FoldedLayer]]) -> ModelProto:
        """Make the new model, whose inputs, outputs and metadata have their names."""
        self._lifted.constants.forget()
        return write_model(self._lifted, folded)

    def checked(self, fused: ModelProto, *, edited: bool) -> ModelProto:
        """Check that the new model is a valid one."""
        del edited  # what is only copied may be wrong as well
        wrong = complaint(fused)
        if wrong is not None:
            msg = (
                f"the fused model is not a valid one, and nothing is returned: {wrong}. Please "
                f"report this model: its graph was edited wrongly"
            )
            raise VerificationError(msg)
        return fused


def _places(graph: GraphProto) -> dict[str, NodeProto]:
    """The operations by what they may be called: their names, or what they return."""
    places: dict[str, NodeProto] = {}
    for node in graph.node:
        for name in filter(None, (node.name, *node.output)):
            places.setdefault(name, node)
    return places


class _Vetoes:
    """Why a region that the algebra allows must not be folded in a graph."""

    def __init__(self, lifted: OnnxLifted, chosen: Chosen) -> None:
        self._lifted, self._chosen = lifted, chosen

    def __call__(self, region: Candidate) -> Reason | None:
        lifted = self._lifted
        inside = {index for node in region.nodes for index in lifted.indices_of(node)}
        past = {index for shift in region.shifts for index in lifted.indices_of(shift)}
        if not all(map(self._is_chosen, inside | past)):
            return Why.NOT_CHOSEN()
        if region.leaves_host:
            return Why.INPUT_OF_ITS_OWN(what=region.source.what)
        if dtype_of(lifted, region) is None:
            return Why.UNKNOWN_TYPE()
        for node in region.nodes:
            for name in lifted.reads(node) if node.is_convolution else ():
                shared = len(lifted.constants.shape(name)) > 1 and _is_tied(lifted, name, inside)
                if shared:
                    return Why.USED_ELSEWHERE()
        return None

    def _is_chosen(self, index: int) -> bool:
        node = self._lifted.model.graph.node[index]
        return any(name in self._chosen for name in (node.name, *node.output))


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


def _left_alone(model: ModelProto, opset: int) -> Reason | None:
    """Why nothing in a graph is touched, or None."""
    if opset < _NUMPY_BROADCASTING:
        return Why.OLD_OPSET(found=opset, needed=_NUMPY_BROADCASTING)
    # Weights that are stored with fewer bits do not keep other layers from folding.
    quantised = [node for node in model.graph.node if node.op_type in _QUANTISED]
    constants = Constants(model, Shapes(), opset) if quantised else ()
    found = Counter(
        node.op_type for node in quantised
        if not all(name in constants for name in node.input if name)
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
