"""What single operations of a traced module are: layers, norms, sums, factors."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import fx, nn
from torch.nn import functional as F

from reparam import algebra
from reparam.algebra import Geometry, layer_arguments
from reparam.branching.online.steps import Kind
from reparam.branching.operators import average_window, conv_operator_geometry
from reparam.errors import InexactError
from reparam.frontends.kinds import CONVS, ZERO_PADS, AnyBatchNorm
from reparam.frontends.torch.arguments import CONVOLUTIONS, bind, is_literal
from reparam.frontends.torch.builtin import is_builtin
from reparam.frontends.torch.constants import Constants
from reparam.frontends.torch.frames import join
from reparam.frontends.torch.trace import Trace

Operand = fx.Node | str
"""What a step reads besides values: a traced constant, or the path of a module, parameter or buffer
in the traced module."""


@dataclass
class Piece:
    """One operation as a step: values that it reads, and how its value follows from theirs.

    Attributes:
        kind: What it does.
        sources: The values it reads.
        layer: The convolution that it is, where it is one; of a factor, its channels.
        operands: What it reads besides.
        coefficients: One for each value of a sum.
        value: The number at every tap of pooling and padding.
        layer_for: Makes the layer where only the value says how many channels there are.

    """

    kind: Kind
    sources: tuple[fx.Node, ...]
    layer: Geometry | None = None
    operands: tuple[Operand | None, ...] = ()
    coefficients: tuple[float, ...] = ()
    value: float = 1.0
    layer_for: Callable[[int], Geometry] | None = None


class Reader:
    """Read the operations of one trace.

    Args:
        trace: The trace.
        watched: Paths of modules with hooks, whose operations have to run as they are.

    """

    def __init__(self, trace: Trace, watched: set[str]) -> None:
        self._trace = trace
        self._watched = watched
        self._constants = Constants(trace)

    def piece(self, node: fx.Node) -> Piece | None:
        """What an operation is, or None where it is nothing that merges."""
        try:
            return self._piece(node)
        except InexactError:
            return None

    def _piece(self, node: fx.Node) -> Piece | None:
        if self._constants.is_tensor(node) or self._is_watched(node):
            return None
        if node.op == "call_module":
            return self._module_piece(node)
        if node.op == "call_function":
            if node.target in CONVOLUTIONS:
                return self._convolution(node)
            rule = _FUNCTIONS.get(node.target)
            return None if rule is None else rule(self, node)
        if node.op == "call_method":
            rule = _METHODS.get(str(node.target))
            return None if rule is None else rule(self, node)
        return None

    def _is_watched(self, node: fx.Node) -> bool:
        """Whether a hook stands on a module inside that this operation belongs to."""
        paths = {call.path for call in self._trace.stacks[node][1:]}
        if node.op == "call_module":
            paths.add(join(self._trace.path, str(node.target)))
        return bool(paths & self._watched)

    def is_value(self, value: object) -> TypeGuard[fx.Node]:
        """Whether an argument is a tensor that depends on the input."""
        return isinstance(value, fx.Node) and not self._constants.is_tensor(value)

    def _module_piece(self, node: fx.Node) -> Piece | None:
        module, path = self._trace.module(node), str(node.target)
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if not self.is_value(source):
            return None
        sources = (source,)
        if isinstance(module, AnyBatchNorm):
            return Piece(Kind.NORM, sources, operands=(path,)) if normalises(module) else None
        return _layer_piece(module, path, sources) if is_builtin(module) else None

    def _convolution(self, node: fx.Node) -> Piece | None:
        x, weight, bias, *rest = bind(
            node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
            (None, None, None, 1, 0, 1, 1),
        )  # fmt: skip
        if not self.is_value(x) or not self._constants.is_tensor(weight):
            return None
        if not (bias is None or self._constants.is_tensor(bias)) or not is_literal(rest):
            return None
        stride, padding, dilation, groups = rest
        geometry = algebra.conv_geometry(
            self._constants.shape(weight), stride=stride, padding=padding, dilation=dilation,
            groups=groups, bias=bias is not None,
        )  # fmt: skip
        operands = (_read(weight), None if bias is None else _read(bias))
        return Piece(Kind.LAYER, (x,), geometry, operands) if is_layer(geometry) else None

    def pad(self, node: fx.Node) -> Piece | None:
        """Zero padding."""
        x, pads, mode, value = bind(
            node, ("input", "pad", "mode", "value"), (None, None, "constant", None)
        )
        known = is_literal(pads) and is_literal(value) and self.is_value(x)
        if not known or mode != "constant" or value:
            return None
        flat = [int(p) for p in pads]
        return _padding(flat, (x,)) if len(flat) % 2 == 0 else None

    def add(self, node: fx.Node, sign: float = 1.0) -> Piece | None:
        """A sum or difference of two values, or of a value and zero."""
        if len(node.args) != 2 or node.kwargs:
            return None
        left, right = node.args
        if self.is_value(left) and self.is_value(right):
            if left is right:
                return None
            return Piece(Kind.SUM, (left, right), coefficients=(1.0, sign))
        if left == 0 and self.is_value(right):
            return Piece(Kind.SUM, (right,), coefficients=(sign,))
        if right == 0 and self.is_value(left):
            return Piece(Kind.SUM, (left,), coefficients=(1.0,))
        return None

    def multiply(self, node: fx.Node) -> Piece | None:
        """A product of a value and a number, or one number for each channel."""
        if len(node.args) != 2 or node.kwargs:
            return None
        values = [a for a in node.args if self.is_value(a)]
        others = [a for a in node.args if not self.is_value(a)]
        if len(values) != 1 or len(others) != 1:
            return None
        factor = others[0]
        if isinstance(factor, int | float) and not isinstance(factor, bool):
            return Piece(Kind.SUM, (values[0],), coefficients=(float(factor),))
        return self._scale(values[0], factor) if isinstance(factor, fx.Node) else None

    def _scale(self, value: fx.Node, factor: fx.Node) -> Piece | None:
        shape = self._constants.shape(factor)
        # (C, 1, 1) and (1, C, 1, 1): as many ones behind as there are dimensions, which is checked
        # when the geometry of the value is known.
        lead = list(shape)
        while len(lead) > 1 and lead[0] == 1:
            lead.pop(0)
        if len(lead) < 1 or any(n != 1 for n in lead[1:]):
            return None
        geometry = Geometry.pointwise(lead[0], lead[0], dims=len(lead) - 1, groups=lead[0])
        return Piece(Kind.SCALE, (value,), geometry, (_read(factor),))


def _read(constant: fx.Node) -> Operand:
    """A constant as an operand: by its path where it is a parameter or buffer as it is."""
    return str(constant.target) if constant.op == "get_attr" else constant


def _padding(flat: list[int], sources: tuple[fx.Node, ...]) -> Piece:
    pads = tuple(zip(flat[-2::-2], flat[-1::-2], strict=True))
    return Piece(
        Kind.FIXED, sources, layer_for=lambda channels: algebra.pad_geometry(channels, pads)
    )


def _layer_piece(module: Any, path: str, sources: tuple[fx.Node, ...]) -> Piece | None:
    if isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0):
        return Piece(Kind.SUM, sources, coefficients=(1.0,))
    window = average_window(module)
    if window is not None:
        return Piece(
            Kind.FIXED, sources, value=1 / math.prod(window[0]),
            layer_for=lambda channels: algebra.average_pool_geometry(channels, *window),
        )  # fmt: skip
    if isinstance(module, ZERO_PADS):
        return _padding(list(module.padding), sources)
    if isinstance(getattr(module, "weight", None), nn.parameter.UninitializedParameter):
        return None
    if isinstance(module, nn.Linear):
        geometry = algebra.conv_geometry(module.weight.shape, bias=module.bias is not None)
    elif isinstance(module, CONVS) and module.padding_mode == "zeros":
        geometry = conv_operator_geometry(module)
    else:
        return None
    operands = (f"{path}.weight", None if module.bias is None else f"{path}.bias")
    return Piece(Kind.LAYER, sources, geometry, operands) if is_layer(geometry) else None


def is_layer(geometry: Geometry) -> bool:
    """Whether a layer with this very kernel computes the operator."""
    return layer_arguments(geometry)[1].offsets == geometry.offsets


@torch.no_grad()
def normalises(module: nn.Module) -> bool:
    """Whether a batch norm, of PyTorch or derived from it, computes what PyTorch's computes.

    A derived one, such as timm's, which may hold an activation, is tried on random numbers.
    """
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) or not isinstance(module, AnyBatchNorm):
        return False
    if is_builtin(module):
        return True
    with torch.random.fork_rng(devices=[]):
        twin = copy.deepcopy(module).cpu().double().train()
        plain = nn.BatchNorm2d(
            twin.num_features, twin.eps, twin.momentum, twin.affine, twin.track_running_stats
        ).double()
        x = torch.randn(3, twin.num_features, 2, 2, dtype=torch.float64) - 0.5
    try:
        plain.load_state_dict(twin.state_dict())
        alike = torch.allclose(plain(x), twin(x), rtol=1e-9, atol=1e-12)
        numbers = zip(plain.buffers(), twin.buffers(), strict=True)
        return alike and all(torch.allclose(left, right) for left, right in numbers)
    except Exception:  # noqa: BLE001 (whatever its code does: it is not a plain norm)
        return False


Rule = Callable[[Reader, fx.Node], Piece | None]

_ADD: Rule = Reader.add
_SUB: Rule = lambda finder, node: finder.add(node, -1.0)  # noqa: E731 (a table of rules)
_MUL: Rule = Reader.multiply

_FUNCTIONS: dict[Any, Rule] = {
    F.pad: Reader.pad,
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _ADD),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), _SUB),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), _MUL),
}
_METHODS: dict[str, Rule] = {
    **dict.fromkeys(("add", "add_"), _ADD),
    **dict.fromkeys(("sub", "sub_"), _SUB),
    **dict.fromkeys(("mul", "mul_"), _MUL),
}
