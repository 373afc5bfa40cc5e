"""Repeated channels are read in modules, programs and files: a norm may stand before or behind."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from torch import nn

import reparam
from small_nets import Lambda, image
from zoo import randomise

REPEATED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "tile": lambda x: torch.tile(x, (2, 1, 1)),
}


@pytest.mark.parametrize("step", REPEATED.values(), ids=REPEATED)
def test_a_fused_net_of_repeated_channels_is_equal(step: Callable[..., torch.Tensor]) -> None:
    model = Lambda(lambda s, x: s.b(step(s.a(x.relu()))), nn.BatchNorm2d(4), nn.Conv2d(8, 4, 1))
    model, x = randomise(model.double()), image()
    fused = reparam.fuse(model, x)
    assert reparam.diff(model, fused, x).outcome == "equal"
    with torch.no_grad():
        fused.b.weight[0, 5] *= 1.01
    assert reparam.diff(model, fused, x).outcome == "different"


def file(node: onnx.NodeProto) -> onnx.ModelProto:
    """A file of one operation, from ``x`` of four channels to ``y`` of eight."""
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, channels, 5, 6])
        for name, channels in (("x", 4), ("y", 8))
    ]
    times = onnx.helper.make_tensor("times", onnx.TensorProto.INT64, [4], [1, 2, 1, 1])
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [times])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


def test_a_tile_of_a_file_is_read() -> None:
    tile = file(onnx.helper.make_node("Tile", ["x", "times"], ["y"]))
    twice = file(onnx.helper.make_node("Concat", ["x", "x"], ["y"], axis=1))
    assert reparam.diff(tile, twice).outcome == "equal"
