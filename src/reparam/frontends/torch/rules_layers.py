"""Rules for operations that hold numbers: convolutions, linear layers, batch normalisation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from reparam import algebra
from reparam.algebra import AffineConv, Leaf, Rows
from reparam.frontends.hosted import (
    convolution_of,
    hosted_geometry,
    spread_of_transposed,
    turned_kernel,
    weight_as_rows,
    window_of_transposed,
)
from reparam.frontends.kinds import AnyBatchNorm, AnyTransposedConv
from reparam.frontends.torch.arguments import (
    bind,
    first,
    rank_from_readers,
)
from reparam.frontends.torch.builtin import is_builtin
from reparam.frontends.torch.lift import Lifter
from reparam.frontends.torch.table import reads
from reparam.frontends.torch.weights import module_reader
from reparam.frontends.weights import all_finite, weight_loader
from reparam.program import Node
from reparam.reasons import Why


@reads(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def conv_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.ConvNd`` with zero padding; other padding modes are hosted."""
    module = lifter.module(node)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)  # noqa: S101 (the rule's key)
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        return lifter.opaque(node, Why.NOT_INITIALISED())
    reads = {*module.parameters(), *module.buffers()}
    padding, padded = padding_of(module.padding), None
    if module.padding_mode != "zeros" and any(_numbers(module.padding)):
        if isinstance(padding, str):
            return hosted_module(lifter, node)
        pads = tuple((p, p) for p in algebra.per_dim(padding, module.weight.dim() - 2))
        padded = lifter.padded(
            node, first(node), pads, module.padding_mode, axis=-len(pads) - 1, of_layer=True
        )
        padding = 0
    geometry = algebra.conv_geometry(
        module.weight.shape, stride=module.stride, padding=padding,
        dilation=module.dilation, groups=module.groups, bias=module.bias is not None,
    )  # fmt: skip
    leaf = Leaf(geometry, weight_loader(geometry, module_reader(module)))
    return _mixing(lifter, node, leaf, reads, padded)


@reads(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def conv_transpose_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.ConvTransposeNd``: of stride 1 a convolution, else hosted."""
    module: Any = lifter.module(node)
    if not _is_convolution(module) or len(node.all_input_nodes) + len(node.kwargs) > 1:
        return hosted_module(lifter, node)
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        return lifter.opaque(node, Why.NOT_INITIALISED())
    leaf = _turned(module, module_reader(module))
    return _mixing(lifter, node, leaf, {*module.parameters(), *module.buffers()})


def _is_convolution(module: Any) -> bool:
    """Whether a transposed convolution is a convolution with a turned kernel, and no dearer."""
    if nn.utils.parametrize.is_parametrized(module):
        return False
    sizes = zip(module.kernel_size, module.dilation, module.padding, strict=True)
    grows = any(step * (size - 1) > 2 * pad for size, step, pad in sizes)
    return not grows and set(module.stride) == {1} and not any(module.output_padding)


def _turned(module: Any, read: Callable[[], tuple[Tensor, Tensor | None]]) -> Leaf:
    pads, groups = [(n, n) for n in module.padding], module.groups
    geometry = convolution_of(
        module.weight.shape, pads, module.dilation, groups, bias=module.bias is not None
    )

    def turned() -> tuple[Tensor, Tensor | None]:
        weight, bias = read()
        return turned_kernel(weight, groups), bias

    return Leaf(geometry, weight_loader(geometry, turned))


def hosted_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """A convolution that only its own forward can run; see :mod:`reparam.frontends.hosted`."""
    module: Any = lifter.module(node)
    if nn.utils.parametrize.is_parametrized(module):
        return None
    reads = {*module.parameters(), *module.buffers()}
    if not all_finite(reads):
        return lifter.opaque(node, Why.NOT_FINITE(what=type(module).__name__))
    geometry = hosted_geometry(module)

    def load(_rows: Rows | None) -> AffineConv:
        return AffineConv(geometry, weight_as_rows(module, module.weight), module.bias)

    sources = [lifter.nodes[s] for s in node.all_input_nodes if s in lifter.nodes]
    return lifter.hosted(
        node,
        sources,
        Leaf(geometry, load),
        type(module).__name__,
        reads,
        like=(like := _reading(node, module)),
        spread=None if like is None else spread_of_transposed(module.weight.shape),
        window=None if like is None else _window_of(module),
    )


def _reading(node: fx.Node, module: Any) -> Hashable:
    """What a transposed convolution reads of its input, if it is one of PyTorch's own."""
    plain = isinstance(module, AnyTransposedConv) and is_builtin(module) and len(node.args) == 1
    return _reads_of(module) if plain else None


def _window_of(module: Any) -> tuple[Hashable, tuple[tuple[int, ...], ...]]:
    return window_of_transposed(
        module.weight.shape, module.stride, [(n, n) for n in module.padding],
        module.output_padding, module.dilation, module.groups,
    )  # fmt: skip


def _reads_of(module: Any) -> Hashable:
    return (
        module.in_channels, module.out_channels, module.groups, module.kernel_size, module.stride,
        module.padding, module.output_padding, module.dilation,
    )  # fmt: skip


def probed_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """A module that could not be traced, known by its responses."""
    module, op = lifter.module(node), lifter.probed[lifter.trace.keys[node].target]

    reads = {*module.parameters(), *module.buffers()}
    dims = op.geometry.dims
    return lifter.affine(
        node, first(node), Leaf.of(op.geometry, lambda: op), f"{type(module).__name__} (probed)",
        axis=-(dims + 1), rank=dims + 2, reads=reads,
        stored=max(op.geometry.parameters, sum(t.numel() for t in reads)),
    )  # fmt: skip


@reads(nn.Linear)
def linear_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.Linear``: a convolution without spatial dimensions."""
    module = lifter.module(node)
    assert isinstance(module, nn.Linear)  # noqa: S101 (the rule's key)
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        return lifter.opaque(node, Why.NOT_INITIALISED())
    geometry = algebra.conv_geometry(module.weight.shape, bias=module.bias is not None)
    leaf = Leaf(geometry, weight_loader(geometry, module_reader(module)))
    return _mixing(lifter, node, leaf, {*module.parameters(), *module.buffers()})


def _mixing(
    lifter: Lifter, node: fx.Node, leaf: Leaf, reads: set[Tensor], padded: Node | None = None
) -> Node:
    if any(not t.is_floating_point() for t in reads if t.dim() > 0):
        return lifter.opaque(node, Why.NOT_FLOATING(what=str(leaf.geometry)))
    if not all_finite(reads):
        return lifter.opaque(node, Why.NOT_FINITE(what=str(leaf.geometry)))
    return layer(lifter, node, leaf, reads, padded)


def layer(
    lifter: Lifter, node: fx.Node, leaf: Leaf, reads: Collection[Any], padded: Node | None = None,
    *, stored: int = 0, computed: int = 0,
) -> Node:  # fmt: skip
    """A layer whose numbers can be folded."""
    dims = leaf.geometry.dims
    return lifter.affine(
        node, first(node), leaf, str(leaf.geometry), axis=-(dims + 1),
        rank=dims + 2 if dims else None, stored=max(stored, leaf.geometry.parameters),
        computed=computed, reads=reads, padded=padded,
    )  # fmt: skip


@reads(AnyBatchNorm)
def batch_norm_module(lifter: Lifter, node: fx.Node) -> Node | None:
    """``nn.BatchNormNd`` and ``nn.SyncBatchNorm`` with running statistics."""
    module = lifter.module(node)
    assert isinstance(module, AnyBatchNorm)  # noqa: S101 (the rule's key)
    if module.running_mean is None or module.running_var is None:
        return lifter.opaque(node, Why.NO_STATISTICS())
    if module.training and not lifter.training:
        return lifter.opaque(node, Why.NORM_IN_TRAINING(remedy="call eval() first"))
    fixed = {nn.BatchNorm1d: None, nn.BatchNorm2d: -3, nn.BatchNorm3d: -4}
    axis = next((a for kind, a in fixed.items() if isinstance(module, kind)), None)

    def read() -> tuple[Tensor | None, ...]:
        return module.running_mean, module.running_var, module.weight, module.bias

    reads = {t for t in read() if t is not None}
    return _batch_norm(lifter, node, read, reads, module.eps, axis)


@reads(F.batch_norm)
def batch_norm_function(lifter: Lifter, node: fx.Node) -> Node | None:
    """``F.batch_norm`` with constant statistics."""
    x, mean, var, weight, bias, training, _, eps = bind(
        node,
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        (None, None, None, None, None, False, 0.1, 1e-5),
    )
    constants = lifter.constants
    if training is not False and not lifter.training:
        return lifter.opaque(node, Why.NORM_IN_TRAINING(remedy="call eval() first"))
    if not all(constants.is_tensor(t) for t in (mean, var)) or not lifter.is_value(x):
        return lifter.opaque(node, Why.NO_STATISTICS())
    if any(t not in constants for t in (weight, bias)) or not isinstance(eps, float | int):
        return lifter.opaque(node, Why.NOT_CONSTANT(what="batch norm"))

    def read() -> tuple[Tensor | None, ...]:
        values = (mean, var, weight, bias)
        return tuple(None if t is None else constants.value(t) for t in values)

    given = [t for t in (mean, var, weight, bias) if constants.is_tensor(t)]
    lifted = _batch_norm(lifter, node, read, constants.reads(given), float(eps), None)
    if lifted is not None and lifted.axis is not None:
        lifter.hosts[lifted.order] = partial(_norm_of, read, float(eps), -1 - lifted.axis)
    return lifted


def _norm_of(read: Callable[[], tuple[Tensor | None, ...]], eps: float, dims: int) -> nn.Module:
    """Make the module of a functional norm."""
    mean, var, weight, bias = read()
    assert mean is not None  # noqa: S101 (checked by the rule)
    kind: Any = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims]
    norm: Any = kind(mean.numel(), eps, affine=False, device="meta")
    norm.running_mean, norm.running_var = mean, var
    norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=mean.device)
    norm.weight, norm.bias = (None if t is None else nn.Parameter(t) for t in (weight, bias))
    made: nn.Module = norm.eval()
    return made


def _batch_norm(
    lifter: Lifter, node: fx.Node, read: Callable[[], tuple[Tensor | None, ...]],
    reads: Collection[Any], eps: float, axis: int | None,
) -> Node | None:  # fmt: skip
    source = first(node)
    if axis is None:
        rank = lifter.known(source).rank or rank_from_readers(lifter, source)
        if rank is None and lifter.vectors and lifter.nodes[source].axis in {None, -1}:
            rank = 2
        if rank is None:
            return lifter.opaque(node, Why.UNKNOWN_RANK(remedy=lifter.remedy))
        axis = 1 - rank

    def make() -> AffineConv:
        mean, var, weight, bias = read()
        assert mean is not None  # noqa: S101 (checked by the rules above)
        assert var is not None  # noqa: S101 (checked by the rules above)
        return algebra.batch_norm(mean, var, weight, bias, eps=eps)

    values = [t for t in read() if t is not None]
    # A variance without bound makes a scale of zero; any other such number shows in the operator.
    if not bool(values[1].isfinite().all()):
        return lifter.opaque(node, Why.NOT_FINITE(what="batch norm"))
    return lifter.diagonal(
        node, source, make, "batch norm", axis=axis, stored=sum(t.numel() for t in values),
        reads=reads, rank=1 - axis if axis < -2 else None, is_norm=True,
    )  # fmt: skip


def padding_of(value: Any) -> Any:
    """Normalise a layer's padding argument for the algebra."""
    if isinstance(value, str | int):
        return value
    return tuple(tuple(v) if isinstance(v, list | tuple) else int(v) for v in value)


def _numbers(padding: Any) -> tuple[int, ...]:
    if isinstance(padding, str):
        return (1,) if padding == "same" else (0,)
    return (padding,) if isinstance(padding, int) else tuple(padding)
