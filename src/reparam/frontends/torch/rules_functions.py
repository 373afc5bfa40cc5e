"""Rules for functions that are called with numbers: convolutions and linear layers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from reparam import algebra
from reparam.algebra import AffineConv, Geometry, Leaf, Rows
from reparam.frontends.hosted import (
    convolution_of,
    rows_of_transposed,
    spread_of_transposed,
    turned_kernel,
    window_of_transposed,
)
from reparam.frontends.torch.arguments import CONVOLUTIONS, TRANSPOSED, bind, is_literal
from reparam.frontends.torch.lift import Lifter
from reparam.frontends.torch.rules_layers import layer, padding_of
from reparam.frontends.torch.table import reads
from reparam.frontends.torch.weights import constant_weight
from reparam.frontends.weights import weight_loader
from reparam.program import Node


@reads(*CONVOLUTIONS)
def conv_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.convNd`` with a weight that is constant, computed or not.

    Its padding may be a pair of numbers for each dimension, or a word where it depends on the size
    of the input, as other formats have it.
    """
    x, weight, bias, stride, padding, dilation, groups = bind(
        node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
        (None, None, None, 1, 0, 1, 1),
    )  # fmt: skip
    if not constant_weight(lifter, x, weight, bias) or not all(
        is_literal(v) for v in (stride, padding, dilation, groups)
    ):
        return None
    shape = lifter.constants.shape(weight)
    if isinstance(padding, str) and padding not in {"same", "valid"}:
        how = (shape, stride, padding, dilation, groups)
        rows = (shape[0], math.prod(shape[1:]))
        return _hosted_function(lifter, node, rows, groups, how, lambda numbers: numbers)
    geometry = algebra.conv_geometry(
        shape, stride=stride, padding=padding_of(padding), dilation=dilation, groups=groups,
        bias=bias is not None,
    )  # fmt: skip
    return _functional_mixing(lifter, node, geometry, weight, bias)


@reads(*TRANSPOSED)
def conv_transpose_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.conv_transposeNd`` with a constant weight: of stride 1 a convolution, else hosted."""
    x, weight, bias, *numbers = bind(
        node,
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
        (None, None, None, 1, 0, 0, 1, 1),
    )
    if not constant_weight(lifter, x, weight, bias) or not all(is_literal(v) for v in numbers):
        return None
    shape, constants = lifter.constants.shape(weight), lifter.constants
    stride, padding, more, groups, dilation = numbers
    stride, more, dilation = (algebra.per_dim(n, len(shape) - 2) for n in (stride, more, dilation))
    window = None
    if not isinstance(padding, str):
        pads = _pairs(padding, len(shape) - 2)
        window = window_of_transposed(shape, stride, pads, more, dilation, groups)
        geometry = convolution_of(shape, pads, dilation, groups, bias=bias is not None)
        grows = any(extent > -1 for extent in geometry.extent)
        if not grows and set(stride) == {1} and not any(more):

            def read() -> tuple[Tensor, Tensor | None]:
                turned = turned_kernel(constants.value(weight), groups)
                return turned, None if bias is None else constants.value(bias)

            return _functional_mixing(lifter, node, geometry, weight, bias, read)
    rows = (shape[1] * groups, shape[0] // groups * math.prod(shape[2:]))
    lifted = _hosted_function(
        lifter, node, rows, groups, (shape, *map(str, numbers)),
        lambda numbers: rows_of_transposed(numbers, groups), spread=spread_of_transposed(shape),
        window=window,
    )  # fmt: skip
    lifter.hosts[lifted.order] = functools.cache(partial(_transposed, lifter, node))
    return lifted


def _hosted_function(  # noqa: PLR0913 (what a layer is made of)
    lifter: Lifter, node: fx.Node, rows: tuple[int, int], groups: int, like: Hashable,
    as_rows: Callable[[Tensor], Tensor], *, spread: tuple[int, ...] | None = None,
    window: Any = None,
) -> Node:  # fmt: skip
    """A layer whose output channels can be rescaled; see :mod:`reparam.frontends.hosted`."""
    constants, (count, width) = lifter.constants, rows
    weight, bias = bind(node, ("input", "weight", "bias"), (None, None, None))[1:]
    what = lifter.layer_name(node)
    given = [weight] if bias is None else [weight, bias]
    doubt = constants.doubt(given, what)
    if doubt is not None:
        return lifter.opaque(node, doubt)
    dims = len(constants.shape(weight)) - 2
    geometry = Geometry.pointwise(
        width * groups, count, dims=dims, groups=groups, bias=bias is not None
    )

    def load(_rows: Rows | None) -> AffineConv:
        kernel = as_rows(constants.value(weight)).reshape(geometry.kernel_shape)
        return AffineConv(geometry, kernel, None if bias is None else constants.value(bias))

    sources = [lifter.nodes[s] for s in node.all_input_nodes if s in lifter.nodes]
    return lifter.hosted(
        node, sources, Leaf(geometry, load), what, constants.reads(given), like=like,
        computed=sum(map(constants.operations, given)), spread=spread, window=window,
    )  # fmt: skip


def _transposed(lifter: Lifter, node: fx.Node) -> nn.Module:
    """Make the module of a functional transposed convolution."""
    _, weight, bias, stride, padding, output_padding, groups, dilation = bind(
        node,
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
        (None, None, None, 1, 0, 0, 1, 1),
    )
    numbers = lifter.constants.value(weight).detach()
    size = numbers.shape[2:]
    stride, padding, output_padding, dilation = (
        algebra.per_dim(value, len(size)) for value in (stride, padding, output_padding, dilation)
    )
    kind: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[len(size) - 1]
    host = kind(
        numbers.shape[0], groups * numbers.shape[1], tuple(size), stride=stride, padding=padding,
        output_padding=output_padding, groups=groups, dilation=dilation, bias=bias is not None,
        device="meta",
    )  # fmt: skip
    host.weight = nn.Parameter(numbers)
    if bias is not None:
        host.bias = nn.Parameter(lifter.constants.value(bias).detach())
    made: nn.Module = host.eval()
    return made


@reads(F.linear)
def linear_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.linear`` with a constant weight."""
    x, weight, bias = bind(node, ("input", "weight", "bias"), (None, None, None))
    if not constant_weight(lifter, x, weight, bias):
        return None
    shape = lifter.constants.shape(weight)
    if len(shape) != 2:
        return None
    geometry = algebra.conv_geometry(shape, bias=bias is not None)
    return _functional_mixing(lifter, node, geometry, weight, bias)


def _functional_mixing(
    lifter: Lifter, node: fx.Node, geometry: Geometry, weight: fx.Node, bias: fx.Node | None,
    numbers: Callable[[], tuple[Tensor, Tensor | None]] | None = None,
) -> Node | None:  # fmt: skip
    constants = lifter.constants

    def read() -> tuple[Tensor, Tensor | None]:
        return constants.value(weight), None if bias is None else constants.value(bias)

    given = [weight] if bias is None else [weight, bias]
    doubt = constants.doubt(given, str(geometry))
    if doubt is not None:
        return lifter.opaque(node, doubt)
    return layer(
        lifter, node, Leaf(geometry, weight_loader(geometry, numbers or read)),
        constants.reads(given), stored=constants.stored(given),
        computed=sum(map(constants.operations, given)),
    )  # fmt: skip


def _pairs(padding: Any, dims: int) -> Sequence[tuple[int, int]]:
    """Padding before and behind, per dimension."""
    given = [padding] if isinstance(padding, int) else list(padding)
    given *= dims if len(given) == 1 else 1
    return [(n, n) if isinstance(n, int) else n for n in given]
