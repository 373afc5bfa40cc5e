"""Rules for products of a value and a constant matrix, which are layers by another name."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from reparam.algebra import Geometry, Leaf
from reparam.frontends.products import contraction
from reparam.frontends.torch.arguments import bind
from reparam.frontends.torch.lift import Lifter
from reparam.frontends.torch.table import reads
from reparam.frontends.weights import weight_loader
from reparam.program import Node


@reads(operator.matmul, torch.matmul, "matmul", "__matmul__", any_arguments=True)
def matmul(lifter: Lifter, node: fx.Node) -> Node | None:
    r"""``x @ w`` and ``w @ x`` with a constant matrix.

    The first is a linear layer, :math:`y_o = \\sum_c x_c W_{c o}` on the last axis; the second, of
    ``(batch, channels, length)``, a 1x1 convolution, :math:`y_o = \\sum_c W_{o c} x_c`.
    """
    left, right = bind(node, ("input", "other"), (None, None))
    if lifter.is_value(left) and _is_matrix(lifter, right):
        return _product(lifter, node, left, right, dims=0, turned=True)
    if lifter.is_value(right) and _is_matrix(lifter, left) and lifter.known(right).rank == 3:
        return _product(lifter, node, right, left, dims=1, turned=False)
    return None


@reads(torch.einsum, any_arguments=True)
def einsum(lifter: Lifter, node: fx.Node) -> Node | None:
    """``einsum("bchw,oc->bohw", x, w)``; see :func:`~reparam.frontends.products.contraction`."""
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        return None
    value = 0 if lifter.is_value(operands[0]) else 1
    x, weight = operands[value], operands[1 - value]
    found = contraction(equation, value)
    if found is None or not lifter.is_value(x) or not _is_matrix(lifter, weight):
        return None
    return _product(lifter, node, x, weight, dims=found.dims, turned=found.turned)


def _is_matrix(lifter: Lifter, value: Any) -> bool:
    return lifter.constants.is_tensor(value) and len(lifter.constants.shape(value)) == 2


def _product(
    lifter: Lifter, node: fx.Node, x: Any, weight: Any, *, dims: int, turned: bool
) -> Node | None:
    """Make a node of a pointwise layer; ``turned`` says that its matrix has a row per input."""
    constants = lifter.constants
    doubt = constants.doubt([weight], "matrix")
    if doubt is not None:
        return lifter.opaque(node, doubt)
    rows, columns = constants.shape(weight)
    cin, cout = (rows, columns) if turned else (columns, rows)
    geometry = Geometry.pointwise(cin, cout, dims=dims)

    def read() -> tuple[Tensor, None]:
        matrix = constants.value(weight)
        return (matrix.mT if turned else matrix).reshape(geometry.kernel_shape), None

    return lifter.affine(
        node, x, Leaf(geometry, weight_loader(geometry, read)), str(geometry), axis=-dims - 1,
        stored=constants.stored([weight]), rank=dims + 2 if dims else None,
        reads=constants.reads([weight]), computed=constants.operations(weight),
    )  # fmt: skip
