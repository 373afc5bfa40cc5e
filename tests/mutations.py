"""Seeded mutations of modules and of ONNX graphs, each at a layer that is known by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

from mutable import Cat

__all__ = [
    "MODULES",
    "NODES",
    "mutated",
    "mutated_graph",
    "sites",
    "sites_in_graph",
    "takes_effect",
]

Draw = torch.Generator
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def _pick(draw: Draw, count: int) -> int:
    return int(torch.randint(count, (1,), generator=draw))


# ------------------------------------------------------------------ modules: numbers


def one_weight(layer: nn.Module, draw: Draw) -> None:
    flat = layer.weight.data.view(-1)
    large = (flat.abs() > flat.abs().mean()).nonzero().flatten()
    flat[large[_pick(draw, len(large))]] *= 1 + 1e-4


def swapped_channels(layer: nn.Module, draw: Draw) -> None:
    width = layer.weight.shape[1]
    first = _pick(draw, width)
    second = (first + 1 + _pick(draw, width - 1)) % width
    order = list(range(width))
    order[first], order[second] = second, first
    layer.weight.data = layer.weight.data[:, order].clone()


def group_order(layer: nn.Module, _: Draw) -> None:
    layer.weight.data = layer.weight.data.roll(layer.weight.shape[0] // layer.groups, 0)


def missing_bias(layer: nn.Module, _: Draw) -> None:
    layer.bias = None


def another_eps(layer: nn.Module, _: Draw) -> None:
    layer.eps *= 100


def one_statistic(layer: nn.Module, draw: Draw) -> None:
    name = ("weight", "bias", "running_mean", "running_var")[_pick(draw, 4)]
    numbers = getattr(layer, name).data
    numbers[_pick(draw, len(numbers))] *= 1 + 1e-3


def transposed_kernel(layer: nn.Module, _: Draw) -> None:
    layer.weight.data = layer.weight.data.transpose(-2, -1).contiguous()


def half_precision(layer: nn.Module, _: Draw) -> None:
    layer.weight.data = layer.weight.data.half().float()


# ------------------------------------------------------------------ modules: structure


def another_stride(layer: nn.Module, _: Draw) -> None:
    layer.stride = (1, 1) if max(layer.stride) > 1 else (2, 2)


def another_dilation(layer: nn.Module, _: Draw) -> None:
    now = 1 if max(layer.dilation) > 1 else 2
    layer.padding = tuple(p * now // d for p, d in zip(layer.padding, layer.dilation, strict=True))
    layer.dilation = (now, now)


def padding_side(layer: nn.Module, _: Draw) -> nn.Module:
    high, wide = layer.padding
    layer.padding = (0, 0)
    return nn.Sequential(nn.ZeroPad2d((2 * wide, 0, high, high)), layer)


def dropped_activation(_layer: nn.Module, _: Draw) -> nn.Module:
    return nn.Identity()


def another_limit(layer: nn.Module, _: Draw) -> nn.Module:
    return nn.ReLU6() if type(layer) is nn.ReLU else nn.ReLU()


def counted_border(layer: nn.Module, _: Draw) -> None:
    layer.count_include_pad = not layer.count_include_pad


def average_for_maximum(layer: nn.Module, _: Draw) -> nn.Module:
    return nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)


def wrong_axis(layer: nn.Module, draw: Draw) -> None:
    layer.axis = 2 + _pick(draw, 2)


def wrong_order(_layer: nn.Module, _: Draw) -> nn.Module:
    class Turned(Cat):
        def forward(self, *parts):
            return super().forward(*parts[::-1])

    return Turned()


def _convolves(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d)


MODULES: dict[str, tuple[Callable[..., nn.Module | None], Callable[[nn.Module], Any]]] = {
    "one weight by 1e-4": (one_weight, lambda m: isinstance(m, WEIGHTED)),
    "swapped channels": (
        swapped_channels,
        lambda m: isinstance(m, WEIGHTED) and m.weight.shape[1] > 1,
    ),
    "stride": (another_stride, _convolves),
    "padding side": (padding_side, lambda m: _convolves(m) and m.padding[1] > 0),
    "dilation": (another_dilation, lambda m: _convolves(m) and min(m.kernel_size) > 1),
    "group order": (group_order, lambda m: _convolves(m) and m.groups > 1),
    "missing bias": (missing_bias, lambda m: isinstance(m, WEIGHTED) and m.bias is not None),
    "eps": (another_eps, lambda m: isinstance(m, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm))),
    "one statistic by 1e-3": (one_statistic, lambda m: isinstance(m, nn.BatchNorm2d)),
    "dropped activation": (
        dropped_activation,
        lambda m: isinstance(m, (nn.ReLU, nn.ReLU6, nn.GELU, nn.ELU, nn.Hardswish)),
    ),
    "relu6 for relu": (another_limit, lambda m: type(m) in (nn.ReLU, nn.ReLU6)),
    "counted border": (counted_border, lambda m: isinstance(m, nn.AvgPool2d) and m.padding),
    "average for maximum": (average_for_maximum, lambda m: isinstance(m, nn.MaxPool2d)),
    "transposed layout": (
        transposed_kernel,
        lambda m: (
            isinstance(m, WEIGHTED)
            and m.weight.shape[-1] == m.weight.shape[-2]
            and m.weight.shape[-1] > 1
        ),
    ),
    "wrong axis": (wrong_axis, lambda m: isinstance(m, Cat)),
    "wrong order": (wrong_order, lambda m: isinstance(m, Cat)),
    "half precision": (half_precision, lambda m: isinstance(m, WEIGHTED)),
}
"""For each kind of mutation what does it, to a layer or by another layer, and where it applies."""


def sites(net: nn.Module, kind: str) -> list[str]:
    """The layers of a net that a mutation applies to."""
    applies = MODULES[kind][1]
    return [path for path, layer in net.named_modules() if path and applies(layer)]


def mutated(net: nn.Module, kind: str, path: str, draw: Draw) -> nn.Module:
    """A copy of a net with one layer changed."""
    changed = copy.deepcopy(net)
    other = MODULES[kind][0](changed.get_submodule(path), draw)
    if other is not None:
        parent, _, name = path.rpartition(".")
        setattr(changed.get_submodule(parent), name, other.eval())
    return changed


# ------------------------------------------------------------------ ONNX graphs


class _Weights:
    """The numbers that a node reads as one of its inputs, to be replaced."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto, position: int) -> None:
        name = node.input[position]
        self._entry = next(entry for entry in graph.initializer if entry.name == name)
        self.value = numpy_helper.to_array(self._entry).copy()

    def store(self, value: Any) -> None:
        self._entry.CopyFrom(numpy_helper.from_array(value, self._entry.name))


def _weight(graph: onnx.GraphProto, node: onnx.NodeProto) -> _Weights:
    return _Weights(graph, node, 1)


def _stored(graph: onnx.GraphProto, node: onnx.NodeProto, position: int = 1) -> bool:
    """Whether an input is stored, and for this node alone."""
    if len(node.input) <= position:
        return False
    name = node.input[position]
    readers = sum(name in each.input for each in graph.node)
    return readers == 1 and any(entry.name == name for entry in graph.initializer)


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    found = (each for each in node.attribute if each.name == name)
    return next((onnx.helper.get_attribute_value(each) for each in found), default)


def _set(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [each for each in node.attribute if each.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def node_weight(graph, node, draw):
    weight = _weight(graph, node)
    flat = weight.value.reshape(-1)
    large = (abs(flat) > abs(flat).mean()).nonzero()[0]
    flat[large[_pick(draw, len(large))]] *= 1 + 1e-4
    weight.store(weight.value)


def node_channels(graph, node, _draw):
    weight = _weight(graph, node)
    weight.store(weight.value[:, [1, 0, *range(2, weight.value.shape[1])]].copy())


def node_groups(graph, node, _draw):
    weight = _weight(graph, node)
    block = len(weight.value) // _attribute(node, "group")
    weight.store(torch.from_numpy(weight.value).roll(block, 0).numpy())


def node_bias(_graph, node, _draw):
    del node.input[2]


def node_eps(_graph, node, _draw):
    _set(node, "epsilon", _attribute(node, "epsilon", 1e-5) * 100)


def node_transposed(graph, node, _draw):
    weight = _weight(graph, node)
    weight.store(weight.value.swapaxes(-1, -2).copy())


def node_half(graph, node, _draw):
    weight = _weight(graph, node)
    weight.store(weight.value.astype("float16").astype("float32"))


def node_stride(_graph, node, _draw):
    strides = _attribute(node, "strides", [1, 1])
    _set(node, "strides", [1, 1] if max(strides) > 1 else [2, 2])


def node_dilation(_graph, node, _draw):
    before = max(_attribute(node, "dilations", [1, 1]))
    now = 1 if before > 1 else 2
    _set(node, "pads", [p * now // before for p in _attribute(node, "pads")])
    _set(node, "dilations", [now, now])


def node_pads(_graph, node, _draw):
    top, left, bottom, right = _attribute(node, "pads")
    _set(node, "pads", [top + bottom, left, 0, right])


def node_dropped(_graph, node, _draw):
    del node.attribute[:]
    node.op_type = "Identity"


def node_limit(graph, node, _draw):
    graph.initializer.append(numpy_helper.from_array(torch.tensor(0.0).numpy(), "low"))
    graph.initializer.append(numpy_helper.from_array(torch.tensor(6.0).numpy(), "high"))
    node.op_type = "Clip"
    node.input.extend(["low", "high"])


def node_border(_graph, node, _draw):
    _set(node, "count_include_pad", 1 - _attribute(node, "count_include_pad", 0))


def node_axis(_graph, node, draw):
    _set(node, "axis", 2 + _pick(draw, 2))


def _conv(graph, node):
    return node.op_type == "Conv" and _stored(graph, node)


def _weighted(graph, node):
    return node.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose") and _stored(graph, node)


def _square(graph, node):
    shape = _weight(graph, node).value.shape
    return shape[-1] == shape[-2] > 1


NODES: dict[str, tuple[Callable[..., None], Callable[..., Any]]] = {
    "one weight by 1e-4": (node_weight, _weighted),
    "swapped channels": (
        node_channels,
        lambda g, n: _weighted(g, n) and _weight(g, n).value.shape[1] > 1,
    ),
    "stride": (node_stride, _conv),
    "padding side": (node_pads, lambda g, n: _conv(g, n) and _attribute(n, "pads", [0])[0]),
    "dilation": (node_dilation, lambda g, n: _conv(g, n) and _square(g, n)),
    "group order": (node_groups, lambda g, n: _conv(g, n) and _attribute(n, "group", 1) > 1),
    "missing bias": (
        node_bias,
        lambda g, n: n.op_type in ("Conv", "ConvTranspose", "Gemm") and _stored(g, n, 2),
    ),
    "eps": (
        node_eps,
        lambda _, n: n.op_type.endswith("Normalization"),
    ),
    "dropped activation": (
        node_dropped,
        lambda _, n: n.op_type in ("Relu", "HardSwish", "Elu"),
    ),
    "relu6 for relu": (node_limit, lambda _, n: n.op_type == "Relu"),
    "counted border": (
        node_border,
        lambda _, n: n.op_type == "AveragePool" and any(_attribute(n, "pads", [0])),
    ),
    "transposed layout": (node_transposed, lambda g, n: _weighted(g, n) and _square(g, n)),
    "wrong axis": (node_axis, lambda _, n: n.op_type == "Concat" and _attribute(n, "axis") == 1),
    "half precision": (node_half, _weighted),
}
"""The same for the nodes of an ONNX graph."""


def sites_in_graph(model: onnx.ModelProto, kind: str) -> Iterator[str]:
    """The nodes of a graph that a mutation applies to."""
    applies = NODES[kind][1]
    return [node.name for node in model.graph.node if applies(model.graph, node)]


def mutated_graph(model: onnx.ModelProto, kind: str, name: str, draw: Draw) -> onnx.ModelProto:
    """A copy of a graph with one node changed."""
    changed = copy.deepcopy(model)
    node = next(each for each in changed.graph.node if each.name == name)
    NODES[kind][0](changed.graph, node, draw)
    return changed


# ------------------------------------------------------------------ do they do anything?


def takes_effect(changed: Any, net: Any, like: torch.Tensor) -> bool:
    """Whether two nets differ on small or large inputs, by their runtimes (modules: float64)."""
    draw = torch.Generator().manual_seed(1)
    for scale in (1.0, 1.0, 10.0, 100.0):
        x = scale * torch.randn(like.shape, generator=draw)
        try:
            first, second = _run(changed, x), _run(net, x)
        except Exception:  # noqa: BLE001 (a net that does not run is no mutation)
            return False
        if first.shape != second.shape:
            return False
        if (first - second).abs().max() > 1e-12 * second.abs().max():
            return True
    return False


def _run(net: Any, x: torch.Tensor) -> torch.Tensor:
    if isinstance(net, nn.Module):
        with torch.no_grad():
            return copy.deepcopy(net).double()(x.double())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(net.SerializeToString(), options)
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
