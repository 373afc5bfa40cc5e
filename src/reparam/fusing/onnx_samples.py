"""Inputs for an ONNX file, from the sizes that it declares and those that its layers need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reparam._support.spelling import advice
from reparam.errors import InputError
from reparam.frontends.onnx.inputs import declared_sizes, required_inputs
from reparam.frontends.onnx.tensors import FLOATS, from_array, onnx_module

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

_SIZES = (64, 224, 32, 28, 128, 256, 299, 320, 384, 448, 512, 640)
"""Sizes to try, in turn, for dimensions that a file leaves open; most files take the first."""

_BATCHES = (2, 1)

_SAME_AXES = {"Identity", "Cast", "Sub", "Add", "Mul", "Div", "Relu", "Clip", "Pad", "Dropout"}
"""Operations that pass on the axes of their first input."""

Sizes = list[int | str | None]


def samples(model: ModelProto, given: Mapping[str, Sequence[int]]) -> Iterator[dict[str, Tensor]]:
    """Random inputs to try in turn, until the model runs on some.

    Sizes of one name are one size, in all inputs; those of a fixed number of channels come from the
    layers that read them.

    Args:
        model: Its declarations are read.
        given: Shapes of inputs by name, taken instead of what the file declares.

    Raises:
        InputError: There is no input of a given name, one is no tensor, or nothing tells how many
            dimensions one has.

    """
    inputs = {value.name: value for value in required_inputs(model)}
    unknown = sorted(set(given) - set(inputs))
    if unknown:
        names = ", ".join(repr(name) for name in inputs)
        msg = f"the file has no input {unknown[0]!r}; its inputs are {names}"
        raise InputError(msg)
    declared: dict[str, Sizes] = {
        name: list(given[name]) if name in given else input_sizes(model, value)
        for name, value in inputs.items()
    }
    tried: set[tuple[tuple[int, ...], ...]] = set()
    beside = [size for sizes in declared.values() for size in sizes[2:] if isinstance(size, int)]
    sizes = dict.fromkeys((*beside, *_SIZES))
    for named, size, batch in product((True, False), sizes, _BATCHES):
        shapes = _filled(declared, inputs, given, size, batch, named=named)
        if tuple(shapes.values()) not in tried:
            tried.add(tuple(shapes.values()))
            generator = torch.Generator().manual_seed(0)
            yield {
                name: random_input(inputs[name], shape, generator) for name, shape in shapes.items()
            }


def input_sizes(model: ModelProto, value: ValueInfoProto) -> Sizes:
    """The sizes of an input, declared or needed by what reads it: numbers, names, or None.

    Raises:
        InputError: It is no tensor, or nothing tells how many dimensions it has.

    """
    if not value.type.tensor_type.elem_type:
        msg = f"the input {value.name!r} is no tensor; files with such inputs cannot be compared"
        raise InputError(msg)
    declared, needed = declared_sizes(value), _needed(model, value.name)
    if declared is None and needed is None:
        msg = (
            f"the file does not say how many dimensions the input {value.name!r} has"
            f"{advice('; give its shape with {input_shapes}', input_shapes=...)}"
        )
        raise InputError(msg)
    if needed is None or (declared is not None and len(declared) != len(needed)):
        return declared or []
    return [
        have if isinstance(have, int) else want or have
        for have, want in zip(declared or [None] * len(needed), needed, strict=True)
    ]


def _filled(
    declared: Mapping[str, Sizes], inputs: Mapping[str, ValueInfoProto],
    given: Mapping[str, Sequence[int]], size: int, batch: int, *, named: bool,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Put numbers in the place of sizes that are open."""
    known: dict[str, int] = {}
    for name, shape in given.items() if named else ():
        names = declared_sizes(inputs[name]) or []
        known |= {n: s for n, s in zip(names, shape, strict=False) if isinstance(n, str)}

    def number(axis: int, have: int | str | None) -> int:
        if isinstance(have, int):
            return have
        chosen = size if axis else batch
        return known.setdefault(have, chosen) if have and named else chosen

    return {
        name: tuple(number(axis, have) for axis, have in enumerate(sizes))
        for name, sizes in declared.items()
    }


def _needed(model: ModelProto, name: str) -> Sizes | None:
    """The rank and the channels that the layer behind an input needs, if one is near."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    order: list[int] | None = None  # of axes, where they were transposed on the way
    while True:
        readers = [node for node in model.graph.node if name in node.input]
        layer = next((s for n in readers if (s := _layer_sizes(n, shapes, name)) is not None), None)
        if layer is not None:
            if order is None or len(order) != len(layer):
                return layer if order is None else None
            return [layer[order.index(axis)] for axis in range(len(layer))]
        passing = next((n for n in readers if n.op_type in {*_SAME_AXES, "Transpose"}), None)
        if passing is None:
            return None
        if passing.op_type == "Transpose":
            perm = next((list(a.ints) for a in passing.attribute if a.name == "perm"), None)
            if perm is None or order is not None:
                return None
            order = perm
        name = passing.output[0]


def _layer_sizes(node: NodeProto, shapes: Mapping[str, tuple[int, ...]], name: str) -> Sizes | None:
    """The sizes that a convolution demands of what it reads."""
    kernel = shapes.get(node.input[1]) if len(node.input) > 1 else None
    if node.input[0] != name or kernel is None or node.op_type not in {"Conv", "ConvTranspose"}:
        return None
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    channels = kernel[1] * groups if node.op_type == "Conv" else kernel[0]
    return [None, channels, *(None,) * (len(kernel) - 2)]


def random_input(
    value: ValueInfoProto, shape: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Random numbers of the type that an input is declared to have; integers are 0 and 1."""
    kind = value.type.tensor_type.elem_type
    if kind in FLOATS:
        return torch.randn(shape, generator=generator).to(FLOATS[kind])
    array = torch.randint(0, 2, shape, generator=generator).numpy()
    return from_array(array.astype(onnx_module("onnx.helper").tensor_dtype_to_np_dtype(kind)))
