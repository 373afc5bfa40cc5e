"""What the operations of ONNX are called in torch: layers, scales, sums, and what is elementwise.

A word is one call for one operation, so that what folds are whole operations of the file. Where an
operation is a plain function of torch, ``in_torch`` says which; what is here says more of a layer
than torch's functions could do at once (padding that differs between the sides), or sees to what a
file has and a call of torch has not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from reparam.frontends.onnx.in_torch_layouts import IN_TORCH
from reparam.frontends.onnx.nodes import attributes, padding
from reparam.frontends.onnx.numbers import Number
from reparam.frontends.onnx.read import Reader, Word, elementwise
from reparam.frontends.shapes import Shape
from reparam.frontends.torch import rules, rules_routes  # noqa: F401 (rules enter what they read)
from reparam.frontends.torch.arguments import CONVOLUTIONS, TRANSPOSED
from reparam.frontends.torch.table import FUNCTIONS, reads
from reparam.reasons import Why

if TYPE_CHECKING:
    from onnx import NodeProto

WORDS: dict[str, Word] = {}

_SIGNED_BATCH_NORM = 9
"""Opset before which BatchNormalization could normalise positions instead of channels."""


def is_word(*operations: str) -> Callable[[Word], Word]:
    """Enter what writes the word for operations of the default domain, by their names."""

    def enter(word: Word) -> Word:
        WORDS.update(dict.fromkeys(operations, word))
        return word

    return enter


# ------------------------------------------------------------------ layers


@is_word("Conv", "ConvTranspose")
def _conv(read: Reader, proto: NodeProto) -> fx.Node | None:
    refused = _refused(read, proto)
    if refused is not None:
        return refused
    given, shape = attributes(proto), read.constants.shape(proto.input[1])
    dims, group = len(shape) - 2, given.get("group", 1)
    strides, dilations = steps_of(given, dims)
    pads = pads_of(given, shape[2:], strides, dilations)
    read_by = (*map(read.value, proto.input[:2]), _bias(read, proto), strides)
    if proto.op_type == "Conv":
        return read.call([*CONVOLUTIONS][dims - 1], *read_by, pads, dilations, group)
    if given.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in given:
        pads = str(sorted(given.items()))
    more = tuple(given.get("output_padding", (0,) * dims))
    return read.call([*TRANSPOSED][dims - 1], *read_by, pads, more, group, dilations)


@is_word("Gemm")
def _gemm(read: Reader, proto: NodeProto) -> fx.Node | None:
    refused = _refused(read, proto)
    if refused is not None:
        return refused
    given, constants, name = attributes(proto), read.constants, proto.input[1]
    if given.get("transA", 0):
        return read.opaque(proto, Why.TURNED_INPUT(value=1))
    turned, alpha, beta = given.get("transB", 0), given.get("alpha", 1.0), given.get("beta", 1.0)
    shape = constants.shape(name) if turned else constants.shape(name)[::-1]
    rows, bias = shape[0], _bias(read, proto)
    addend = proto.input[2] if bias is not None else ""
    if addend and constants.shape(addend) not in {(), (1,), (rows,), (1, rows), (1, 1)}:
        found = str(constants.shape(addend))
        return read.opaque(proto, Why.ADDEND_OF_ROWS(shape=found, outputs=rows))

    def matrix() -> Tensor:
        numbers = constants.numbers(name) if turned else constants.numbers(name).T
        return numbers if alpha == 1.0 else alpha * numbers.to(torch.float64)

    if addend:
        bias = read.number(
            addend, (rows,), lambda: beta * constants.value(addend).reshape(-1).expand(rows)
        )
    return read.call(F.linear, read.value(proto.input[0]), read.number(name, shape, matrix), bias)


@is_word("MatMul")
def _matmul(read: Reader, proto: NodeProto) -> fx.Node | None:
    """A matrix product, together with the addition of a constant behind it."""
    if proto.input[1] not in read.constants or not read.is_value(proto.input[0]):
        why = read.why_not_constant(proto.op_type, proto.input[1:])
        # A product of two values is no layer, and nobody expects it to fold.
        return None if why.kind is Why.NOT_CONSTANT else read.opaque(proto, why)
    if len(read.constants.shape(proto.input[1])) != 2:
        return None
    second = read.only_reader(proto.output[0])
    if second is not None and _addend(read, proto, read.graph.node[second]) is not None:
        read.pair(second)
        return None
    return _linear(read, proto, None)


def _linear(read: Reader, product: NodeProto, bias: str | None) -> fx.Node:
    constants, weight = read.constants, product.input[1]
    columns, rows = constants.shape(weight)
    matrix = read.number(weight, (rows, columns), lambda: constants.numbers(weight).T)
    addend = (
        None
        if bias is None
        else read.number(bias, (rows,), lambda: constants.value(bias).reshape(-1))
    )
    return read.call(F.linear, read.value(product.input[0]), matrix, addend)


def _addend(read: Reader, product: NodeProto, reader: NodeProto) -> str | None:
    """Name of the constant that an addition adds to a matrix product, one number per column."""
    if reader.op_type != "Add":
        return None
    others = [name for name in reader.input if name != product.output[0]]
    if len(others) != 1 or others[0] not in read.constants:
        return None
    columns = read.constants.shape(product.input[1])[1]
    shape, rank = read.constants.shape(others[0]), read.rank(product.input[0])
    spread = (1,) * (len(shape) - 1) + (columns,)
    fits = shape == spread and (len(shape) == 1 or (rank is not None and len(shape) <= rank))
    return others[0] if fits and read.constants.is_floating(others[0]) else None


@is_word("Einsum")
def _einsum(read: Reader, proto: NodeProto) -> fx.Node | None:
    if len(proto.input) != 2:
        return None
    return read.call(torch.einsum, attributes(proto)["equation"], *map(read.value, proto.input))


@is_word("BatchNormalization")
def _batch_norm(read: Reader, proto: NodeProto) -> fx.Node | None:
    given, numbers = attributes(proto), list(proto.input[1:5])
    if given.get("training_mode", 0) or len([name for name in proto.output if name]) > 1:
        return read.opaque(proto, Why.NORM_IN_TRAINING(remedy="export the model in eval mode"))
    if read.opset < _SIGNED_BATCH_NORM and not given.get("spatial", 1):
        return read.opaque(proto, Why.NORM_OF_POSITIONS())
    if not all(n in read.constants for n in numbers) or not read.is_value(proto.input[0]):
        return read.opaque(proto, read.why_not_constant("batch norm", numbers))
    weight, bias, mean, var = map(read.value, numbers)
    return read.call(
        F.batch_norm, read.value(proto.input[0]), mean, var, weight, bias, False, 0.1,
        given.get("epsilon", 1e-5),
    )  # fmt: skip


def _refused(read: Reader, proto: NodeProto) -> fx.Node | None:
    """A layer whose numbers are not constant."""
    numbers = [name for name in proto.input[1:3] if name]
    if read.is_value(proto.input[0]) and all(name in read.constants for name in numbers):
        return None
    return read.opaque(proto, read.why_not_constant(proto.op_type, numbers))


def _bias(read: Reader, proto: NodeProto) -> Number | None:
    """A bias that is not zero throughout: exporters write zeros for none."""
    if len(proto.input) < 3 or not proto.input[2]:
        return None
    name = proto.input[2]
    return read.number(name) if bool(read.constants.value(name).any()) else None


def steps_of(given: dict[str, Any], dims: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and dilations of a window."""
    ones = (1,) * dims
    return tuple(given.get("strides", ones)), tuple(given.get("dilations", ones))


def pads_of(
    given: dict[str, Any], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, int], ...] | str:
    """Zeros before and after the input per dimension; a word where they depend on its size."""
    window = [gap * (size - 1) + 1 for size, gap in zip(sizes, dilations, strict=True)]
    pads = padding(given, window, strides)
    return str(given["auto_pad"]) if pads is None else tuple(pads)


# ------------------------------------------------------------------ scales and sums


@is_word("Add", "Sub")
def _add(read: Reader, proto: NodeProto) -> fx.Node | None:
    product = read.paired_with()
    if product is not None:
        return _linear(read, product, _addend(read, product, proto))
    return _arithmetic(read, proto, 0.0)


@is_word("Mul", "Div")
def _multiply(read: Reader, proto: NodeProto) -> fx.Node | None:
    return _arithmetic(read, proto, 1.0)


def _arithmetic(read: Reader, proto: NodeProto, neutral: float) -> fx.Node | None:
    left, right = proto.input
    numbers = [name for name in proto.input if name in read.constants]
    if not all(map(read.constants.is_floating, numbers)):
        return None
    commutes = proto.op_type in {"Add", "Mul"}
    x = left if not commutes or read.is_value(left) else right
    if numbers and read.is_value(x) and _changes_nothing(read, x, numbers[0], neutral):
        return read.call("contiguous", read.value(x))
    return as_it_is(read, proto)


def _changes_nothing(read: Reader, x: str, name: str, neutral: float) -> bool:
    """Whether a constant is zero or one throughout, and no value grows to its shape."""
    shape, before = read.constants.shape(name), read.shape(x)
    fits = len(shape) <= 1 and math.prod(shape) == 1 if before is None else _fits(shape, before)
    return fits and bool((read.constants.value(name) == neutral).all())


def _fits(shape: tuple[int, ...], before: Shape) -> bool:
    sizes = zip(reversed(shape), reversed(before), strict=False)
    return len(shape) <= len(before) and all(size in {1, have} for size, have in sizes)


@is_word("Sum")
def _sum(read: Reader, proto: NodeProto) -> fx.Node:
    return read.call(sum, tuple(map(read.value, proto.input)))


# ------------------------------------------------------------------ what passes values on


@is_word("Shape", "Size")
def _size(read: Reader, proto: NodeProto) -> fx.Node:
    return read.call("size", read.value(proto.input[0]))


@is_word("Identity")
def _identity(read: Reader, proto: NodeProto) -> fx.Node:
    return read.call("contiguous", read.value(proto.input[0]))


@is_word("Cast")
def _cast(read: Reader, proto: NodeProto) -> fx.Node | None:
    """A cast to the type that its input has already changes nothing."""
    if read.shapes.types.get(proto.input[0]) == attributes(proto)["to"]:
        return read.call("contiguous", read.value(proto.input[0]))
    return _elementwise(read, proto)


@is_word("Dropout")
def _dropout(read: Reader, proto: NodeProto) -> fx.Node:
    """Outside of training it changes nothing, where nothing reads its mask."""
    training, constants = proto.input[2] if len(proto.input) > 2 else "", read.constants
    if training and (training not in constants or bool(constants.value(training).any())):
        return read.opaque(proto, Why.DROPOUT_IN_TRAINING(), keeps=True)
    if any(map(read.is_read, filter(None, proto.output[1:]))):
        return read.opaque(proto, keeps=True)
    return read.call("contiguous", read.value(proto.input[0]))


@is_word("Celu", "Clip", "HardSigmoid", "LeakyRelu", "Selu", "Softsign", "Swish", "ThresholdedRelu")
def _elementwise(read: Reader, proto: NodeProto) -> fx.Node | None:
    """An activation, whatever it is: what counts is which input and which numbers it has."""
    numbers = {name: str(value) for name, value in sorted(attributes(proto).items())}
    given = [read.value(name) if name else None for name in proto.input]
    return read.call(elementwise, *given, what=proto.op_type, **numbers)


def as_it_is(read: Reader, proto: NodeProto, **more: Any) -> fx.Node:
    """An operation that a function of torch is, which a rule reads, or runs to see what it does."""
    given = map(read.argument, proto.input)
    return read.call(IN_TORCH[proto.op_type], *given, **more, **attributes(proto))


# These move elements and do nothing else: what they do with channels is seen where they are run.
reads(*map(IN_TORCH.__getitem__, ("DepthToSpace", "Expand", "SpaceToDepth", "Tile")))(
    rules_routes.moved
)
reads(IN_TORCH["Split"])(rules_routes.taken_apart)
reads(IN_TORCH["Transpose"])(rules_routes.permuted)
WORDS.update({n: as_it_is for n, f in IN_TORCH.items() if f in FUNCTIONS and n not in WORDS})
