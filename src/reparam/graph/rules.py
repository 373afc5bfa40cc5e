"""What the operations of torch are, for the planner: one small rule per kind of operation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from reparam import algebra
from reparam.algebra import AffineConv, Geometry, Leaf, Rows
from reparam.graph.hosted import hosted_geometry, is_hosted, weight_as_rows
from reparam.graph.ir import Node
from reparam.graph.lift import Lifter, Rule, scalar
from reparam.graph.trace import is_builtin

__all__ = ["rule_for"]


def rule_for(lifter: Lifter, node: fx.Node) -> Rule | None:
    """Find the rule of an operation, or None where there is none."""
    if node.op == "call_module":
        module = lifter.module(node)
        if not is_builtin(module):
            return _hosted_module if is_hosted(module) else None
        return next((rule for kinds, rule in _MODULES if isinstance(module, kinds)), None)
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    return None


# ------------------------------------------------------------------ layers with numbers


def _conv_module(lifter: Lifter, node: fx.Node) -> Node | None:
    module = lifter.module(node)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)  # noqa: S101 (the rule's key)
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        return lifter.opaque(node, "its weight is not initialised yet (a lazy layer)")
    reads = {t for t in (*module.parameters(), *module.buffers())}
    if module.padding_mode != "zeros" and any(_numbers(module.padding)):
        return _hosted_module(lifter, node)
    geometry = algebra.conv_geometry(
        module.weight.shape, stride=module.stride, padding=_padding(module.padding),
        dilation=module.dilation, groups=module.groups, bias=module.bias is not None,
    )  # fmt: skip
    leaf = Leaf(geometry, _weight_loader(geometry, _module_reader(module)))
    return _mixing(lifter, node, leaf, reads)


def _hosted_module(lifter: Lifter, node: fx.Node) -> Node | None:
    module: Any = lifter.module(node)
    if nn.utils.parametrize.is_parametrized(module):
        return None
    reads = {*module.parameters(), *module.buffers()}
    broken = _first_not_finite(reads)
    if broken is not None:
        return lifter.opaque(node, f"{type(module).__name__} has {broken}")
    geometry = hosted_geometry(module)

    def load(_rows: Rows | None) -> AffineConv:
        return AffineConv(geometry, weight_as_rows(module, module.weight), module.bias)

    axis = 1 - module.weight.dim()
    return lifter.hosted(node, Leaf(geometry, load), type(module).__name__, axis, reads)


def _linear_module(lifter: Lifter, node: fx.Node) -> Node | None:
    module = lifter.module(node)
    assert isinstance(module, nn.Linear)  # noqa: S101 (the rule's key)
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        return lifter.opaque(node, "its weight is not initialised yet (a lazy layer)")
    geometry = algebra.conv_geometry(module.weight.shape, bias=module.bias is not None)
    leaf = Leaf(geometry, _weight_loader(geometry, _module_reader(module)))
    return _mixing(lifter, node, leaf, {*module.parameters(), *module.buffers()})


def _conv_function(lifter: Lifter, node: fx.Node) -> Node | None:
    x, weight, bias, stride, padding, dilation, groups = _bind(
        node, ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
        (None, None, None, 1, 0, 1, 1),
    )  # fmt: skip
    if not _const_weight(lifter, x, weight, bias) or not all(
        _is_literal(v) for v in (stride, padding, dilation, groups)
    ):
        return None
    geometry = algebra.conv_geometry(
        lifter.constants.shape(weight), stride=stride, padding=_padding(padding),
        dilation=dilation, groups=groups, bias=bias is not None,
    )  # fmt: skip
    return _functional_mixing(lifter, node, geometry, weight, bias)


def _linear_function(lifter: Lifter, node: fx.Node) -> Node | None:
    x, weight, bias = _bind(node, ("input", "weight", "bias"), (None, None, None))
    if not _const_weight(lifter, x, weight, bias):
        return None
    shape = lifter.constants.shape(weight)
    if len(shape) != 2:  # noqa: PLR2004 (a vector as weight is another operation)
        return None
    geometry = algebra.conv_geometry(shape, bias=bias is not None)
    return _functional_mixing(lifter, node, geometry, weight, bias)


def _functional_mixing(
    lifter: Lifter, node: fx.Node, geometry: Geometry, weight: fx.Node, bias: fx.Node | None
) -> Node | None:
    constants = lifter.constants

    def read() -> tuple[Tensor, Tensor | None]:
        return constants.value(weight), None if bias is None else constants.value(bias)

    given = [weight] if bias is None else [weight, bias]
    reads = {t for value in given for t in constants.sources(value)}
    lifted = _mixing(lifter, node, Leaf(geometry, _weight_loader(geometry, read)), reads)
    if lifted is not None:
        lifted.computed = sum(constants.operations(value) for value in given)
        lifted.stored = max(lifted.stored, sum(t.numel() for t in reads))
    return lifted


def _mixing(lifter: Lifter, node: fx.Node, leaf: Leaf, reads: set[Tensor]) -> Node | None:
    if any(not t.is_floating_point() for t in reads if t.dim() > 0):
        return lifter.opaque(node, "its numbers are not real floating point")
    source = _first(node)
    dims = leaf.geometry.dims
    what = str(leaf.geometry)
    broken = _first_not_finite(reads)
    if broken is not None:
        return lifter.opaque(node, f"{what} has {broken}")
    return lifter.affine(
        node, source, leaf, what, axis=-(dims + 1), rank=dims + 2 if dims else None,
        stored=leaf.geometry.parameters, reads=reads,
    )  # fmt: skip


def _batch_norm_module(lifter: Lifter, node: fx.Node) -> Node | None:
    module = lifter.module(node)
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: S101 (the rule's key)
    if module.running_mean is None or module.running_var is None:
        return lifter.opaque(
            node, "its batch norm keeps no running statistics, so it depends on the batch"
        )
    if module.training and not lifter.training:
        return lifter.opaque(node, "its batch norm is in training mode; call eval() first")
    fixed = {nn.BatchNorm1d: None, nn.BatchNorm2d: -3, nn.BatchNorm3d: -4}
    axis = next((a for kind, a in fixed.items() if isinstance(module, kind)), None)

    def read() -> tuple[Tensor | None, ...]:
        return module.running_mean, module.running_var, module.weight, module.bias

    return _batch_norm(lifter, node, read, module.eps, module.num_features, axis)


def _batch_norm_function(lifter: Lifter, node: fx.Node) -> Node | None:
    x, mean, var, weight, bias, training, _, eps = _bind(
        node,
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        (None, None, None, None, None, False, 0.1, 1e-5),
    )
    constants = lifter.constants
    if training is not False and not lifter.training:
        return lifter.opaque(node, "its batch norm is in training mode; call eval() first")
    if not all(constants.is_tensor(t) for t in (mean, var)) or not lifter.is_value(x):
        return lifter.opaque(
            node, "its batch norm keeps no running statistics, so it depends on the batch"
        )
    if any(t not in constants for t in (weight, bias)) or not isinstance(eps, float | int):
        return None

    def read() -> tuple[Tensor | None, ...]:
        values = (mean, var, weight, bias)
        return tuple(None if t is None else constants.value(t) for t in values)

    return _batch_norm(lifter, node, read, float(eps), constants.shape(mean)[0], None)


def _batch_norm(
    lifter: Lifter, node: fx.Node, read: Callable[[], tuple[Tensor | None, ...]], eps: float,
    channels: int, axis: int | None,
) -> Node | None:  # fmt: skip
    source = _first(node)
    if axis is None:
        rank = lifter.known(source).rank or _rank_from_readers(lifter, source)
        if rank is None and lifter.vectors and lifter.nodes[source].axis in {None, -1}:
            rank = 2
        if rank is None:
            return lifter.opaque(
                node,
                "the number of dimensions of its input is not known here, so its channel axis is "
                "not; pass example_inputs",
            )
        axis = 1 - rank

    def load(rows: Rows | None) -> AffineConv:
        mean, var, weight, bias = read()
        assert mean is not None  # noqa: S101 (checked by the rules above)
        assert var is not None  # noqa: S101 (checked by the rules above)
        op = algebra.batch_norm(mean, var, weight, bias, eps=eps)
        return op if rows is None else op.rows(*rows)

    values = [t for t in read() if t is not None]
    if not all(bool(torch.isfinite(t).all()) for t in values):
        return lifter.opaque(node, "its batch norm has numbers that are not finite")
    load(None)  # a variance that gives no scale raises here, with its value in the message
    geometry = Geometry.pointwise(channels, channels, dims=0, groups=channels, bias=True)
    return lifter.affine(
        node, source, Leaf(geometry, load), "batch norm", axis=axis, rank=1 - axis if axis < -2 else None,
        stored=sum(t.numel() for t in values),
    )  # fmt: skip


# ------------------------------------------------------------------ scale and shift by constants


def _add(lifter: Lifter, node: fx.Node) -> Node | None:
    return _plus(lifter, node, 1.0)


def _subtract(lifter: Lifter, node: fx.Node) -> Node | None:
    return _plus(lifter, node, -1.0)


def _plus(lifter: Lifter, node: fx.Node, sign: float) -> Node | None:
    left, right, alpha = _bind(node, ("input", "other", "alpha"), (None, None, 1))
    factor = scalar(alpha)
    if factor is None:
        return None
    factor *= sign
    if lifter.is_value(left) and lifter.is_value(right):
        return lifter.sum(node, [left, right], [1.0, factor])
    if lifter.is_value(left):
        return _affine_map(lifter, node, left, shift=right, shift_times=factor)
    if lifter.is_value(right):
        return _affine_map(lifter, node, right, times=factor, shift=left)
    return None


def _reverse_subtract(lifter: Lifter, node: fx.Node) -> Node | None:
    left, right, alpha = _bind(node, ("input", "other", "alpha"), (None, None, 1))
    factor = scalar(alpha)
    if factor is None or not lifter.is_value(left):
        return None
    if lifter.is_value(right):
        return lifter.sum(node, [right, left], [1.0, -factor])
    return _affine_map(lifter, node, left, times=-factor, shift=right)


def _multiply(lifter: Lifter, node: fx.Node) -> Node | None:
    left, right = _bind(node, ("input", "other"), (None, None))
    if lifter.is_value(left) == lifter.is_value(right):
        return None
    x, factor = (left, right) if lifter.is_value(left) else (right, left)
    return _affine_map(lifter, node, x, factor=factor)


def _divide(lifter: Lifter, node: fx.Node) -> Node | None:
    left, right, mode = _bind(node, ("input", "other", "rounding_mode"), (None, None, None))
    if mode is not None or not lifter.is_value(left) or lifter.is_value(right):
        return None
    return _affine_map(lifter, node, left, factor=right, invert=True)


def _negate(lifter: Lifter, node: fx.Node) -> Node | None:
    return _affine_map(lifter, node, _first(node), times=-1.0)


def _affine_map(
    lifter: Lifter, node: fx.Node, x: Any, *, factor: Any = None, shift: Any = None,
    times: float = 1.0, shift_times: float = 1.0, invert: bool = False,
) -> Node | None:  # fmt: skip
    """Lift ``times * factor * x + shift_times * shift`` with constant factor and shift."""
    if times == 1.0 and _changes_nothing(factor, shift):
        return lifter.alias(node, x)
    channels, axis = lifter.known(x).channels, lifter.nodes[x].axis
    tensors = [t for t in (factor, shift) if lifter.constants.is_tensor(t)]
    if channels is None or axis is None:
        return lifter.opaque(node)
    for tensor in tensors:
        if not _is_per_channel(lifter.constants.shape(tensor), channels, axis):
            return lifter.opaque(node)
    if any(scalar(v) is None for v in (factor, shift) if v is not None and v not in tensors):
        return lifter.opaque(node)

    def per_channel(value: Any, default: float) -> Tensor:
        if lifter.constants.is_tensor(value):
            tensor = lifter.constants.value(value).to(torch.float64)
        else:
            tensor = torch.tensor(default if value is None else float(value), dtype=torch.float64)
        return tensor.reshape(-1).expand(channels)

    def load(rows: Rows | None) -> AffineConv:
        scale = per_channel(factor, 1.0)
        scale = times * (1 / scale if invert else scale)
        moved = None if shift is None else shift_times * per_channel(shift, 0.0)
        op = algebra.scale(scale, moved)
        return op if rows is None else op.rows(*rows)

    numbers = [load(None).kernel, load(None).bias]
    if any(t is not None and not bool(torch.isfinite(t).all()) for t in numbers):
        return lifter.opaque(node, "its constant is not finite")
    geometry = Geometry.pointwise(
        channels, channels, dims=0, groups=channels, bias=shift is not None
    )
    reads = {t for tensor in tensors for t in lifter.constants.sources(tensor)}
    return lifter.affine(
        node, x, Leaf(geometry, load), "scale" if shift is None else "shift", axis=axis,
        stored=sum(t.numel() for t in reads), reads=reads,
    )  # fmt: skip


def _changes_nothing(factor: Any, shift: Any) -> bool:
    nothing_times = factor is None or scalar(factor) == 1.0
    return nothing_times and (shift is None or scalar(shift) == 0.0)


def _is_per_channel(shape: tuple[int, ...], channels: int, axis: int) -> bool:
    """Whether a constant of this shape acts on each channel by itself and broadcasts nothing."""
    if all(size == 1 for size in shape):
        return len(shape) <= 1 - axis
    if len(shape) < -axis or shape[axis] != channels:
        return False
    lead = shape[:axis]
    rest = shape[axis + 1 :] if axis != -1 else ()
    return all(size == 1 for size in rest) and all(size == 1 for size in lead) and len(lead) <= 1


# ------------------------------------------------------------------ pooling and padding


def _average_pool_module(lifter: Lifter, node: fx.Node) -> Node | None:
    module: Any = lifter.module(node)
    return _average_pool(
        lifter, node, _pool_dims(module), module.kernel_size, module.stride, module.padding,
        ceil_mode=module.ceil_mode, count_pads=module.count_include_pad,
        divisor=getattr(module, "divisor_override", None),
    )  # fmt: skip


def _average_pool_function(dims: int) -> Rule:
    def rule(lifter: Lifter, node: fx.Node) -> Node | None:
        _, size, stride, padding, ceil_mode, count_pads, divisor = _bind(
            node, ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
                   "divisor_override"),
            (None, None, None, 0, False, True, None),
        )  # fmt: skip
        if not all(_is_literal(v) for v in (size, stride, padding, ceil_mode, count_pads)):
            return None
        return _average_pool(
            lifter, node, dims, size, stride, padding, ceil_mode=ceil_mode, count_pads=count_pads,
            divisor=divisor,
        )  # fmt: skip

    return rule


def _average_pool(
    lifter: Lifter, node: fx.Node, dims: int, size: Any, stride: Any, padding: Any, *,
    ceil_mode: bool, count_pads: bool, divisor: int | None,
) -> Node | None:  # fmt: skip
    source = _first(node)
    channels = _channels(lifter, source, node)
    sizes, pads = algebra.per_dim(size, dims), algebra.per_dim(padding, dims)
    strides = sizes if stride is None or stride == [] else algebra.per_dim(stride, dims)
    if channels is None or divisor is not None:
        return lifter.opaque(node, keeps=True)
    if ceil_mode:
        why = "its last windows may be cut off, and divided by less (ceil_mode=True)"
        return lifter.opaque(node, why, keeps=True)
    if not count_pads and any(pads):
        why = "it pads and does not count its padding (count_include_pad=False)"
        return lifter.opaque(node, why, keeps=True)
    geometry = algebra.average_pool_geometry(channels, sizes, strides, pads)

    def load(rows: Rows | None) -> AffineConv:
        op = algebra.average_pool(channels, sizes, strides, pads)
        return op if rows is None else op.rows(*rows)

    return lifter.affine(
        node, source, Leaf(geometry, load), "average pool", axis=-(dims + 1), stored=0,
        rank=dims + 2,
    )  # fmt: skip


def _zero_pad_module(lifter: Lifter, node: fx.Node) -> Node | None:
    module: Any = lifter.module(node)
    if getattr(module, "value", 0) != 0:
        return None
    return _zero_pad(lifter, node, tuple(module.padding))


def _pad_function(lifter: Lifter, node: fx.Node) -> Node | None:
    _, pads, mode, value = _bind(
        node, ("input", "pad", "mode", "value"), (None, None, "constant", None)
    )
    if mode != "constant" or value not in (None, 0) or not _is_literal(pads):
        return None
    return _zero_pad(lifter, node, tuple(pads))


def _zero_pad(lifter: Lifter, node: fx.Node, flat: tuple[int, ...]) -> Node | None:
    source = _first(node)
    pairs = list(zip(flat[::2], flat[1::2], strict=True))[::-1]
    axis, channels = lifter.nodes[source].axis, _channels(lifter, source, node)
    if axis is None:
        axis = _axis_from_readers(lifter, node)
    if axis is None or channels is None or len(pairs) > -axis - 1 or any(v < 0 for v in flat):
        return None
    dims = -axis - 1
    pads = [(0, 0)] * (dims - len(pairs)) + pairs
    geometry = algebra.pad_geometry(channels, pads)

    def load(rows: Rows | None) -> AffineConv:
        op = algebra.zero_pad(channels, pads)
        return op if rows is None else op.rows(*rows)

    return lifter.affine(
        node, source, Leaf(geometry, load), "zero padding", axis=axis, stored=0, rank=dims + 2
    )


# ------------------------------------------------------------------ operations that pass values on


def _pass(lifter: Lifter, node: fx.Node) -> Node | None:
    return lifter.alias(node, _first(node))


def _dropout_module(lifter: Lifter, node: fx.Node) -> Node | None:
    module = lifter.module(node)
    return None if module.training else lifter.alias(node, _first(node))


def _dropout_function(lifter: Lifter, node: fx.Node) -> Node | None:
    _, _, training, _ = _bind(
        node, ("input", "p", "training", "inplace"), (None, 0.5, True, False)
    )
    return lifter.alias(node, _first(node)) if training is False else None


def _elementwise(lifter: Lifter, node: fx.Node) -> Node | None:
    return lifter.opaque(node, keeps=True)


def _concat(lifter: Lifter, node: fx.Node) -> Node | None:
    parts, dim = _bind(node, ("tensors", "dim"), (None, 0))
    dim = node.kwargs.get("axis", dim)
    if not isinstance(parts, list | tuple) or not all(lifter.is_value(p) for p in parts):
        return None
    axes = {lifter.nodes[p].axis for p in parts}
    ranks = {lifter.known(p).rank for p in parts}
    if len(axes) != 1 or len(ranks) != 1 or not isinstance(dim, int):
        return None
    axis, rank = axes.pop(), ranks.pop()
    if axis is None or (dim >= 0 and rank is None):
        return None
    if (dim if dim < 0 else dim - (rank or 0)) != axis:
        return None
    return lifter.concat(node, list(parts))


def _flatten(lifter: Lifter, node: fx.Node) -> Node | None:
    x, start, end = _bind(node, ("input", "start_dim", "end_dim"), (None, 0, -1))
    if node.op == "call_module":
        module: Any = lifter.module(node)
        start, end = module.start_dim, module.end_dim
    rank, axis = lifter.known(x).rank, lifter.nodes[x].axis
    if rank is None or not isinstance(start, int) or not isinstance(end, int):
        return None
    start, end = start % rank, end % rank
    result = rank - (end - start)
    channel = None if axis is None else axis + rank
    if channel is None or start <= channel <= end:
        lifted = lifter.opaque(node)
        lifter.facts_of(lifted).rank = result
        return lifted
    return lifter.layout(node, x, axis if channel > end else channel - result, result)


def _permute(lifter: Lifter, node: fx.Node) -> Node | None:
    x = _first(node)
    rest = node.args[1:] or (node.kwargs.get("dims"),)
    dims = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
    rank, axis = lifter.known(x).rank, lifter.nodes[x].axis
    if rank is None or axis is None or not all(isinstance(d, int) for d in dims):
        return None
    if len(dims) != rank:
        return None
    order = [d % rank for d in dims]
    return lifter.layout(node, x, order.index(axis + rank) - rank, rank)


def _transpose(lifter: Lifter, node: fx.Node) -> Node | None:
    x, first, second = _bind(node, ("input", "dim0", "dim1"), (None, None, None))
    rank, axis = lifter.known(x).rank, lifter.nodes[x].axis
    if rank is None or axis is None or not isinstance(first, int) or not isinstance(second, int):
        return None
    swap = {first % rank: second % rank, second % rank: first % rank}
    channel = axis + rank
    return lifter.layout(node, x, swap.get(channel, channel) - rank, rank)


def _shape_of_another(lifter: Lifter, node: fx.Node) -> Node | None:
    """``x.reshape_as(y)`` reads the contents of ``x`` and of ``y`` the shape alone."""
    x, other = _bind(node, ("self", "other"), (None, None))
    if not lifter.is_value(x) or not lifter.is_value(other):
        return None
    return lifter.shaped_like(node, x, other)


# ------------------------------------------------------------------ reading arguments


def _first(node: fx.Node) -> fx.Node:
    value = node.args[0] if node.args else node.kwargs["input"]
    if not isinstance(value, fx.Node):
        msg = f"{node.target} is called without a tensor as its first argument"
        raise TypeError(msg)
    return value


def _bind(node: fx.Node, names: tuple[str, ...], defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    """Read positional and keyword arguments by name."""
    given = dict(zip(names, node.args, strict=False))
    given.update({k: v for k, v in node.kwargs.items() if k in names})
    return tuple(given.get(name, default) for name, default in zip(names, defaults, strict=True))


def _is_literal(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_literal(v) for v in value)
    return not isinstance(value, fx.Node)


def _const_weight(lifter: Lifter, x: Any, weight: Any, bias: Any) -> bool:
    constants = lifter.constants
    return (
        lifter.is_value(x)
        and constants.is_tensor(weight)
        and (bias is None or constants.is_tensor(bias))
    )


def _padding(value: Any) -> Any:
    """Normalise a layer's padding argument for the algebra."""
    if isinstance(value, str | int):
        return value
    return tuple(int(v) for v in value)


def _numbers(padding: Any) -> tuple[int, ...]:
    if isinstance(padding, str):
        return (1,) if padding == "same" else (0,)
    return (padding,) if isinstance(padding, int) else tuple(padding)


def _pool_dims(module: nn.Module) -> int:
    kinds = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
    return next(dims for kind, dims in kinds.items() if isinstance(module, kind))


def _channels(lifter: Lifter, source: fx.Node, node: fx.Node) -> int | None:
    """Channels of a value: known from what made it, or from a layer that reads it."""
    known = lifter.known(source).channels
    if known is not None:
        return known
    for reader in (*source.users, *node.users):
        if reader.op == "call_module":
            module = lifter.module(reader)
            for name in ("in_channels", "num_features"):
                value = getattr(module, name, None)
                if isinstance(value, int):
                    return value
        elif reader.target in _CONVS and lifter.constants.is_tensor(reader.args[1:2] and reader.args[1]):
            shape = lifter.constants.shape(reader.args[1])  # type: ignore[arg-type]
            groups = _bind(reader, ("i", "w", "b", "s", "p", "d", "groups"), (1,) * 7)[-1]
            return shape[1] * int(groups)
    return None


def _rank_from_readers(lifter: Lifter, node: fx.Node) -> int | None:
    """Number of dimensions of a value that a convolution reads, too."""
    axis = _axis_from_readers(lifter, node)
    return None if axis is None else 1 - axis


def _axis_from_readers(lifter: Lifter, node: fx.Node) -> int | None:
    for reader in node.users:
        if reader.op == "call_module":
            module = lifter.module(reader)
            for dims, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), start=1):
                if isinstance(module, kind):
                    return -(dims + 1)
        elif reader.target in _CONVS:
            return -(_CONVS[reader.target] + 1)
    return None


def _module_reader(module: Any) -> Callable[[], tuple[Tensor, Tensor | None]]:
    def read() -> tuple[Tensor, Tensor | None]:
        if nn.utils.parametrize.is_parametrized(module):
            return _parametrized(module, "weight"), _parametrized(module, "bias")
        return module.weight, module.bias

    return read


def _parametrized(module: Any, name: str) -> Any:
    """Compute a parametrized tensor (weight norm and the like) in float64, differentiably."""
    if name not in module.parametrizations:
        return getattr(module, name)
    chain = module.parametrizations[name]
    originals = (
        [chain.original]
        if chain.is_tensor
        else [getattr(chain, f"original{k}") for k in range(chain.ntensors)]
    )
    value: Any = [t.to(torch.float64) for t in originals]
    for step in chain:
        numbers = {
            n: t.to(torch.float64) if t.is_floating_point() else t
            for n, t in (*step.named_parameters(), *step.named_buffers())
        }
        value = torch.func.functional_call(
            step, numbers, tuple(value) if isinstance(value, list) else (value,)
        )
    return value


def _weight_loader(
    geometry: Geometry, read: Callable[[], tuple[Tensor, Tensor | None]]
) -> Callable[[Rows | None], AffineConv]:
    def load(rows: Rows | None) -> AffineConv:
        weight, bias = read()
        if rows is None:
            return AffineConv(geometry, weight, bias)
        if geometry.groups > 1:
            return AffineConv(geometry, weight, bias).rows(*rows)
        part = slice(*rows)
        return AffineConv(
            Geometry(
                geometry.in_channels, rows[1] - rows[0], 1, geometry.offsets, geometry.stride,
                geometry.extent, geometry.bias,
            ),
            weight[part],
            None if bias is None else bias[part],
        )  # fmt: skip

    return load


def _first_not_finite(tensors: set[Tensor]) -> str | None:
    """Find numbers that are not finite; a sum is enough, it is not finite then either."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.device.type != "meta":
            total = tensor.detach().sum(dtype=torch.float32 if tensor.dtype != torch.float64 else None)
            if not bool(torch.isfinite(total)) and not bool(torch.isfinite(tensor).all()):
                return "weights that are not finite"
    return None


# ------------------------------------------------------------------ tables

_CONVS: dict[Any, int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}

_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.ELU, nn.CELU, nn.SELU, nn.Softplus,
)  # fmt: skip

_MODULES: list[tuple[tuple[type[nn.Module], ...], Rule]] = [
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv_module),
    ((nn.Linear,), _linear_module),
    ((nn.modules.batchnorm._BatchNorm,), _batch_norm_module),  # noqa: SLF001 (no public base)
    ((nn.Identity,), _pass),
    (
        (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
         nn.FeatureAlphaDropout),
        _dropout_module,
    ),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _average_pool_module),
    (
        (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d,
         nn.ConstantPad3d),
        _zero_pad_module,
    ),
    ((nn.Flatten,), _flatten),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _hosted_module),
    (_ACTIVATIONS, _elementwise),
]  # fmt: skip

_FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(_CONVS, _conv_function),
    F.linear: _linear_function,
    F.batch_norm: _batch_norm_function,
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, torch.subtract), _subtract),
    torch.rsub: _reverse_subtract,
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply), _multiply),
    **dict.fromkeys(
        (operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide), _divide
    ),
    **dict.fromkeys((operator.neg, torch.neg, torch.negative), _negate),
    F.avg_pool1d: _average_pool_function(1),
    F.avg_pool2d: _average_pool_function(2),
    F.avg_pool3d: _average_pool_function(3),
    F.pad: _pad_function,
    F.dropout: _dropout_function,
    torch.dropout: _dropout_function,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _concat),
    torch.flatten: _flatten,
    torch.permute: _permute,
    torch.transpose: _transpose,
    **dict.fromkeys(
        (F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.leaky_relu, F.sigmoid, torch.relu,
         torch.sigmoid, torch.tanh, F.mish, F.elu),
        _elementwise,
    ),
}  # fmt: skip

_METHODS: dict[str, Rule] = {
    **dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), _add),
    **dict.fromkeys(("sub", "sub_", "subtract"), _subtract),
    **dict.fromkeys(("mul", "mul_", "multiply"), _multiply),
    **dict.fromkeys(("div", "div_", "divide", "true_divide"), _divide),
    **dict.fromkeys(("neg", "neg_", "negative"), _negate),
    **dict.fromkeys(("clone", "contiguous"), _pass),
    "reshape_as": _shape_of_another,
    "view_as": _shape_of_another,
    "flatten": _flatten,
    "permute": _permute,
    "transpose": _transpose,
    **dict.fromkeys(("relu", "relu_", "sigmoid", "tanh"), _elementwise),
}
