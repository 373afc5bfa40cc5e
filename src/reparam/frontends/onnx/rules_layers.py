"""Rules for operations that hold numbers: convolutions, matrix products, batch normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reparam import algebra
from reparam.algebra import AffineConv, Geometry, Leaf, Rows
from reparam.frontends.hosted import (
    convolution_of,
    rows_of_transposed,
    spread_of_transposed,
    turned_kernel,
    window_of_transposed,
)
from reparam.frontends.onnx.lift import OnnxLifter
from reparam.frontends.onnx.nodes import attributes, padding
from reparam.frontends.onnx.table import reads
from reparam.frontends.products import contraction
from reparam.frontends.weights import all_finite, weight_loader
from reparam.program import Node
from reparam.reasons import Why

if TYPE_CHECKING:
    from onnx import NodeProto

__all__ = ["pads_of", "paired_bias"]

_SIGNED_BATCH_NORM = 9
"""Opset before which BatchNormalization could normalise positions instead of channels."""


@reads("Conv")
def conv(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Conv`` with a constant weight; padding of any kind is native here."""
    refused = _weights_refused(lifter, proto)
    if refused is not None:
        return refused
    weight, bias = proto.input[1], _bias(lifter, proto, 2)
    given, shape = attributes(proto), lifter.constants.shape(weight)
    dims = len(shape) - 2
    strides = tuple(given.get("strides", (1,) * dims))
    dilations = tuple(given.get("dilations", (1,) * dims))
    groups = given.get("group", 1)
    pads = pads_of(proto, shape[2:], strides, dilations)
    if pads is None:
        return _hosted(lifter, proto, (shape[0], math.prod(shape[1:])), groups, dims)
    geometry = algebra.conv_geometry(
        shape, stride=strides, padding=pads, dilation=dilations, groups=groups,
        bias=bias is not None,
    )  # fmt: skip
    return _mixing(lifter, proto, geometry, weight, bias)


@reads("ConvTranspose")
def conv_transpose(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``ConvTranspose``, whose output channels can be rescaled."""
    refused = _weights_refused(lifter, proto)
    if refused is not None:
        return refused
    given, weight, bias = attributes(proto), proto.input[1], _bias(lifter, proto, 2)
    shape, groups = lifter.constants.shape(weight), given.get("group", 1)
    dims = len(shape) - 2
    pads = pads_of(proto, shape[2:], (1,) * dims, (1,) * dims)
    steps = (*given.get("strides", (1,)), *(1 + n for n in given.get("output_padding", (0,))))
    padded = given.get("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in given
    dilation = given.get("dilations", (1,) * dims)
    geometry = convolution_of(shape, pads or ((0, 0),) * dims, dilation, groups, bias=bool(bias))
    grows = any(extent > -1 for extent in geometry.extent)
    if pads is None or not padded or grows or set(steps) != {1}:
        rows = (shape[1] * groups, shape[0] // groups * math.prod(shape[2:]))
        window = None
        if pads is not None and padded:
            more = given.get("output_padding", (0,) * dims)
            strides = given.get("strides", (1,) * dims)
            window = window_of_transposed(shape, strides, pads, more, dilation, groups)
        return _hosted(lifter, proto, rows, groups, dims, window)

    def read() -> tuple[Tensor, Tensor | None]:
        turned = turned_kernel(lifter.constants.value(weight), groups)
        return turned, None if bias is None else lifter.constants.numbers(bias)

    leaf = Leaf(geometry, weight_loader(geometry, read))
    return _layer(lifter, proto, proto.input[0], leaf, weight, bias)


@reads("Gemm")
def gemm(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Gemm`` with constant matrix and addend: a linear layer."""
    refused = _weights_refused(lifter, proto)
    if refused is not None:
        return refused
    given, constants = attributes(proto), lifter.constants
    weight, bias = proto.input[1], _bias(lifter, proto, 2)
    if given.get("transA", 0):
        return lifter.opaque(proto, Why.TURNED_INPUT(value=1))
    turned, alpha, beta = given.get("transB", 0), given.get("alpha", 1.0), given.get("beta", 1.0)
    shape = constants.shape(weight)
    rows, columns = shape if turned else shape[::-1]
    if bias is not None and constants.shape(bias) not in {(), (1,), (rows,), (1, rows), (1, 1)}:
        found = str(constants.shape(bias))
        return lifter.opaque(proto, Why.ADDEND_OF_ROWS(shape=found, outputs=rows))
    geometry = algebra.conv_geometry((rows, columns), bias=bias is not None)

    def read() -> tuple[Tensor, Tensor | None]:
        matrix = constants.numbers(weight) if turned else constants.numbers(weight).T
        if alpha != 1.0:
            matrix = alpha * matrix.to(torch.float64)
        if bias is None:
            return matrix, None
        return matrix, beta * constants.value(bias).reshape(-1).expand(rows)

    leaf = Leaf(geometry, weight_loader(geometry, read))
    return _layer(lifter, proto, proto.input[0], leaf, weight, bias)


@reads("MatMul")
def matmul(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``MatMul`` with a constant matrix, together with the addition of a constant behind it."""
    if proto.input[1] not in lifter.constants or not lifter.is_value(proto.input[0]):
        why = lifter.why_not_constant(proto.op_type, proto.input[1:])
        # A product of two values is no layer, and nobody expects it to fold.
        return None if why.kind is Why.NOT_CONSTANT else lifter.opaque(proto, why)
    refused = _weights_refused(lifter, proto)
    if refused is not None:
        return refused
    if len(lifter.constants.shape(proto.input[1])) != 2:
        return None
    reader = lifter.only_reader(proto.output[0])
    if reader is not None and _addend(lifter, proto, lifter.graph.node[reader]) is not None:
        lifter.pair(lifter.index, reader)
        return None
    return linear(lifter, proto, proto, None)


@reads("Einsum")
def einsum(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``Einsum`` with a constant matrix, where that is a pointwise layer."""
    if len(proto.input) != 2:
        return None
    constants = lifter.constants
    value = 0 if lifter.is_value(proto.input[0]) else 1
    source, weight = proto.input[value], proto.input[1 - value]
    found = contraction(attributes(proto)["equation"], value)
    matrix = weight in constants and len(constants.shape(weight)) == 2
    if found is None or not matrix or not constants.is_floating(weight):
        return None
    if not all_finite({constants.numbers(weight)}):
        return lifter.opaque(proto, Why.NOT_FINITE(what=proto.op_type))
    rows, columns = constants.shape(weight)
    cin, cout = (rows, columns) if found.turned else (columns, rows)
    geometry = Geometry.pointwise(cin, cout, dims=found.dims)

    def read() -> tuple[Tensor, None]:
        numbers = constants.numbers(weight)
        return (numbers.mT if found.turned else numbers).reshape(geometry.kernel_shape), None

    leaf = Leaf(geometry, weight_loader(geometry, read))
    return _layer(lifter, proto, source, leaf, weight, None)


def linear(lifter: OnnxLifter, proto: NodeProto, product: NodeProto, bias: str | None) -> Node:
    """A matrix product, with the constant that ``proto`` adds to it."""
    constants, weight = lifter.constants, product.input[1]
    columns, rows = constants.shape(weight)
    geometry = algebra.conv_geometry((rows, columns), bias=bias is not None)

    def read() -> tuple[Tensor, Tensor | None]:
        addend = None if bias is None else constants.value(bias).reshape(-1)
        return constants.numbers(weight).T, addend

    leaf = Leaf(geometry, weight_loader(geometry, read))
    return _layer(lifter, proto, product.input[0], leaf, weight, bias)


def paired_bias(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """The addition behind a matrix product that was noted as one with it."""
    product = lifter.paired_with()
    bias = None if product is None else _addend(lifter, product, proto)
    return None if product is None or bias is None else linear(lifter, proto, product, bias)


@reads("BatchNormalization")
def batch_norm(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """``BatchNormalization`` with constant statistics."""
    given, constants = attributes(proto), lifter.constants
    if given.get("training_mode", 0) or len([name for name in proto.output if name]) > 1:
        return lifter.opaque(proto, Why.NORM_IN_TRAINING(remedy="export the model in eval mode"))
    if lifter.opset < _SIGNED_BATCH_NORM and not given.get("spatial", 1):
        return lifter.opaque(proto, Why.NORM_OF_POSITIONS())
    source, numbers = proto.input[0], list(proto.input[1:5])
    rank = lifter.rank(source) or _rank_of_axis(lifter.axis(source))
    if not all(name in constants for name in numbers) or not lifter.is_value(source):
        return lifter.opaque(proto, lifter.why_not_constant("batch norm", numbers))
    if rank is None:
        return lifter.opaque(proto, Why.UNKNOWN_RANK(remedy="give the file shapes"))
    eps = given.get("epsilon", 1e-5)

    def make() -> AffineConv:
        weight, bias, mean, var = (constants.value(name) for name in numbers)
        return algebra.batch_norm(mean, var, weight, bias, eps=eps)

    return lifter.diagonal(
        proto, source, make, "batch norm", axis=1 - rank,
        stored=sum(constants.value(name).numel() for name in numbers), reads=numbers, is_norm=True,
    )  # fmt: skip


def pads_of(
    proto: NodeProto, sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, int], ...] | None:
    """Zeros before and after the input per dimension; None where they depend on its size."""
    window = [gap * (size - 1) + 1 for size, gap in zip(sizes, dilations, strict=True)]
    pads = padding(attributes(proto), window, strides)
    return None if pads is None else tuple(pads)


def _mixing(
    lifter: OnnxLifter, proto: NodeProto, geometry: Geometry, weight: str, bias: str | None
) -> Node:
    constants = lifter.constants

    def read() -> tuple[Tensor, Tensor | None]:
        return constants.numbers(weight), None if bias is None else constants.numbers(bias)

    leaf = Leaf(geometry, weight_loader(geometry, read))
    return _layer(lifter, proto, proto.input[0], leaf, weight, bias)


def _layer(
    lifter: OnnxLifter, proto: NodeProto, source: str, leaf: Leaf, weight: str, bias: str | None
) -> Node:  # fmt: skip
    reads = [weight] if bias is None else [weight, bias]
    return lifter.affine(
        proto, source, leaf, str(leaf.geometry), axis=-leaf.geometry.dims - 1,
        stored=leaf.geometry.parameters, reads=reads,
        computed=sum(lifter.constants.operations(name) for name in reads),
    )  # fmt: skip


def _hosted(
    lifter: OnnxLifter, proto: NodeProto, rows: tuple[int, int], groups: int, dims: int,
    window: Any = None,
) -> Node:  # fmt: skip
    """A layer whose padding depends on the size of its input, or that is transposed."""
    constants, weight, bias = lifter.constants, proto.input[1], _bias(lifter, proto, 2)
    count, width = rows
    geometry = Geometry.pointwise(
        width * groups, count, dims=dims, groups=groups, bias=bias is not None
    )
    turned = proto.op_type == "ConvTranspose"

    def load(_rows: Rows | None) -> AffineConv:
        value = constants.value(weight)
        matrix = rows_of_transposed(value, groups) if turned else value.reshape(count, -1)
        shift = None if bias is None else constants.value(bias)
        return AffineConv(geometry, matrix.reshape(geometry.kernel_shape), shift)

    reads = [weight] if bias is None else [weight, bias]
    like = (proto.op_type, lifter.constants.shape(weight), str(sorted(attributes(proto).items())))
    return lifter.hosted(
        proto, [lifter.nodes[proto.input[0]]], Leaf(geometry, load), proto.op_type, reads,
        like=like, spread=spread_of_transposed(constants.shape(weight)) if turned else None,
        window=window,
    )  # fmt: skip


def _weights_refused(lifter: OnnxLifter, proto: NodeProto) -> Node | None:
    """An opaque node, with the reason, for a layer whose numbers cannot be folded."""
    constants = lifter.constants
    numbers = [name for name in proto.input[1:3] if name]
    if not lifter.is_value(proto.input[0]) or not all(name in constants for name in numbers):
        return lifter.opaque(proto, lifter.why_not_constant(proto.op_type, numbers))
    if not all(constants.is_floating(name) for name in numbers):
        return lifter.opaque(proto, Why.NOT_FLOATING(what=proto.op_type))
    for name in numbers:
        if not all_finite({constants.numbers(name)}):
            return lifter.opaque(proto, Why.NOT_FINITE(what=proto.op_type))
    return None


def _bias(lifter: OnnxLifter, proto: NodeProto, position: int) -> str | None:
    """Name of a bias that is not zero throughout: exporters write zeros for none."""
    if len(proto.input) <= position or not proto.input[position]:
        return None
    name = proto.input[position]
    return name if bool(lifter.constants.value(name).any()) else None


def _addend(lifter: OnnxLifter, product: NodeProto, reader: NodeProto) -> str | None:
    """Name of the constant that an addition adds to a matrix product, one number per column."""
    if reader.op_type != "Add":
        return None
    others = [name for name in reader.input if name != product.output[0]]
    if len(others) != 1 or others[0] not in lifter.constants:
        return None
    columns = lifter.constants.shape(product.input[1])[1]
    shape, rank = lifter.constants.shape(others[0]), lifter.rank(product.input[0])
    spread = (1,) * (len(shape) - 1) + (columns,)
    fits = shape == spread and (len(shape) == 1 or (rank is not None and len(shape) <= rank))
    return others[0] if fits and lifter.constants.is_floating(others[0]) else None


def _rank_of_axis(axis: int | None) -> int | None:
    return None if axis is None or axis == -1 else 1 - axis
