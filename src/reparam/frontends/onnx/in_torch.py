"""What the operators of ONNX, and those that its optimisers write, are in torch.

Each is a function that is called with the inputs of a node (None for one that is left out) and its
attributes by their names. What became an input in a later version of ONNX keeps the name that it
had as an attribute, so that one function reads all versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.algebra import flat_pads
from reparam.errors import UnsupportedModelError
from reparam.frontends.onnx.nodes import padding
from reparam.frontends.onnx.tensors import FLOATS

__all__ = ["IN_TORCH", "PADDINGS", "sides"]

Kept = TypeVar("Kept", bound=Callable[..., Any])

IN_TORCH: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "BiasGelu": lambda x, bias: F.gelu(x + bias),
    "CastLike": lambda x, other: x.to(other.dtype),
    "Ceil": torch.ceil,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Cos": torch.cos,
    "Div": torch.div,
    "Einsum": lambda *values, equation: torch.einsum(equation, *values),
    "Elu": F.elu,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "FastGelu": lambda x, bias=None: F.gelu(x if bias is None else x + bias, approximate="tanh"),
    "Floor": torch.floor,
    "Gelu": F.gelu,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Max": lambda x, y: _bounded(x, y, torch.maximum, "min"),
    "Min": lambda x, y: _bounded(x, y, torch.minimum, "max"),
    "Mish": F.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "PRelu": lambda x, slope: F.prelu(x, slope.flatten()),
    "Pow": lambda x, exponent: x.pow(_number(exponent)),
    "QuickGelu": lambda x, alpha=1.702: x * (alpha * x).sigmoid(),
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Selu": lambda x, alpha=1.6732632, gamma=1.0507010: gamma * F.elu(x, alpha),
    "SequenceAt": lambda values, index: values[int(index)],
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softmax": lambda x, axis=-1: x.softmax(axis),
    "Softplus": F.softplus,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Sum": lambda *values: sum(values[1:], values[0]),
    "Swish": lambda x, alpha=1.0: x * (alpha * x).sigmoid() if alpha != 1 else F.silu(x),
    "Tanh": torch.tanh,
    "Where": torch.where,
}
"""By the type of a node."""


def _is(*names: str) -> Callable[[Kept], Kept]:
    def enter(function: Kept) -> Kept:
        IN_TORCH.update(dict.fromkeys(names, function))
        return function

    return enter


def _bounded(x: Any, y: Any, function: Callable[..., Tensor], side: str) -> Tensor:
    """The larger or smaller of two values, of which a single number is a bound."""
    numbers = [v for v in (x, y) if torch.as_tensor(v).numel() == 1]
    if len(numbers) != 1:
        return function(x, y)
    (value,) = (v for v in (x, y) if v is not numbers[0])
    bounded: Tensor = value.clamp(**{side: _number(numbers[0])})
    return bounded


def _integers(value: Any) -> list[int]:
    return [int(each) for each in torch.as_tensor(value).flatten().tolist()]


def _number(value: Any) -> float:
    if torch.as_tensor(value).numel() != 1:
        raise UnsupportedModelError("only one number is taken there, not a value of several")
    return float(value)


@_is("Clip")
def _clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:  # noqa: A002 (ONNX's names)
    return x.clamp(*(None if bound is None else _number(bound) for bound in (min, max)))


@_is("Cast")
def _cast(x: Tensor, *, to: int, **_: Any) -> Tensor:
    if to not in FLOATS:
        raise UnsupportedModelError(f"rounding to ONNX's type {to} is no plain function")
    return x.to(FLOATS[to])


@_is("Dropout")
def _dropout(
    x: Tensor, ratio: Any = None, training_mode: Any = None, *, is_test: int = 1, **_: Any
) -> Tensor:
    del ratio
    if not is_test or (training_mode is not None and bool(training_mode)):
        raise UnsupportedModelError("it is in training mode")
    return x


@_is("Shape")
def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end])


# ------------------------------------------------------------------ layers


@_is("Gemm", "FusedMatMul")
def _gemm(  # noqa: PLR0913 (ONNX's arguments)
    x: Tensor, y: Tensor, addend: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0,
    transA: int = 0, transB: int = 0, transBatchA: int = 0, transBatchB: int = 0,  # noqa: N803 (ONNX's names)
) -> Tensor:  # fmt: skip
    if transBatchA or transBatchB:
        raise UnsupportedModelError("it exchanges axes of the batch")
    product = (x.mT if transA else x) @ (y.mT if transB else y)
    product = product if alpha == 1 else alpha * product
    return product if addend is None else torch.add(product, addend, alpha=beta)


_ACTIVATIONS = {"Clip": ("min", "max"), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}
"""The numbers of the activations that ONNX Runtime's optimiser puts into a convolution."""


@_is("Conv", "FusedConv")
def _conv(  # noqa: PLR0913 (ONNX's arguments)
    x: Tensor, weight: Tensor, bias: Tensor | None = None, addend: Tensor | None = None, *,
    group: int = 1, strides: Any = None, dilations: Any = None, kernel_shape: Any = None,
    activation: str = "", activation_params: Sequence[float] = (), **pads: Any,
) -> Tensor:  # fmt: skip
    strides, dilations, window = _window(x, weight.shape[2:], strides, dilations)
    del kernel_shape  # the weight has it, too
    x, around = _padded(x, padding(pads, window, strides, x.shape[2:]), 0.0)
    function = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
    value = function(x, weight, bias, strides, around, dilations, group)
    value = value if addend is None else value + addend
    if not activation:
        return value
    numbers = dict(zip(_ACTIVATIONS.get(activation, ()), activation_params, strict=False))
    return IN_TORCH[activation](value, **numbers)  # type: ignore[no-any-return]


@_is("ConvTranspose")
def _conv_transpose(  # noqa: PLR0913 (ONNX's arguments)
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, group: int = 1, strides: Any = None,
    dilations: Any = None, kernel_shape: Any = None, output_padding: Any = None,
    auto_pad: str = "NOTSET", pads: Any = None,
) -> Tensor:  # fmt: skip
    strides, dilations, _ = _window(x, weight.shape[2:], strides, dilations)
    del kernel_shape  # the weight has it, too
    dims = x.dim() - 2
    pads = pads or [0] * 2 * dims
    if pads[:dims] != pads[dims:] or auto_pad != "NOTSET":
        raise UnsupportedModelError("its padding differs between the sides, or is found out")
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    more = output_padding or [0] * dims
    return function(x, weight, bias, strides, pads[:dims], more, group, dilations)


def _window(
    x: Tensor, kernel: Sequence[int], strides: Any, dilations: Any
) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations, and the sizes that a kernel spans."""
    dims = x.dim() - 2
    dilations = dilations or [1] * dims
    spans = [gap * (size - 1) + 1 for gap, size in zip(dilations, kernel, strict=True)]
    return strides or [1] * dims, dilations, spans


def _padded(
    x: Tensor, pads: Sequence[tuple[int, int]] | None, value: float
) -> tuple[Tensor, list[int]]:
    """What torch's operators pad themselves: the same on both sides, else it is done here."""
    assert pads is not None  # noqa: S101 (the size of the input is known)
    if all(low == high for low, high in pads):
        return x, [low for low, _ in pads]
    return F.pad(x, flat_pads(pads), value=value), [0] * len(pads)


@_is("BatchNormalization")
def _batch_norm(  # noqa: PLR0913 (ONNX's arguments)
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5,
    training_mode: int = 0, spatial: int = 1, momentum: float = 0.9,
) -> Tensor:  # fmt: skip
    del momentum  # of training
    if training_mode or not spatial:
        raise UnsupportedModelError("it normalises by the batch, or every position by itself")
    return F.batch_norm(x, mean, var, weight, bias, eps=epsilon)


@_is("GroupNormalization")
def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, **_: Any
) -> Tensor:
    return F.group_norm(x, num_groups, weight, bias, epsilon)


@_is("InstanceNormalization")
def _instance_norm(x: Tensor, weight: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.group_norm(x, x.shape[1], weight, bias, epsilon)


@_is("LayerNormalization")
def _layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, axis: int = -1,
    epsilon: float = 1e-5, **_: Any,
) -> Tensor:  # fmt: skip
    return F.layer_norm(x, x.shape[axis % x.dim() :], weight, bias, epsilon)


@_is("SkipLayerNormalization")
def _skip_layer_norm(
    x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor | None = None,
    addend: Tensor | None = None, *, epsilon: float = 1e-12,
) -> list[Tensor | None]:  # fmt: skip
    """Of a sum, which is the fourth result; mean and deviation are left out outside of training."""
    total = x + skip if addend is None else x + skip + addend
    return [F.layer_norm(total, total.shape[-1:], weight, bias, epsilon), None, None, total]


# ------------------------------------------------------------------ pooling


@_is("AveragePool")
def _average_pool(
    x: Tensor, *, kernel_shape: Any, strides: Any = None, ceil_mode: int = 0,
    count_include_pad: int = 0, **pads: Any,
) -> Tensor:  # fmt: skip
    strides, _, window = _window(x, kernel_shape, strides, pads.pop("dilations", None))
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[x.dim() - 3]
    around = padding(pads, window, strides, x.shape[2:])
    inside, same = _padded(x, around, 0.0)
    options = (kernel_shape, strides, same, bool(ceil_mode))
    if inside is x:
        return pool(x, *options, bool(count_include_pad))
    if window != list(kernel_shape) or ceil_mode:
        raise UnsupportedModelError("its windows are dilated, or some are cut off")
    mean = pool(inside, *options)
    counted, _ = _padded(torch.ones_like(x[:1, :1]), around, 0.0)
    return mean if count_include_pad else mean / pool(counted, *options)


@_is("MaxPool")
def _max_pool(
    x: Tensor, *, kernel_shape: Any, strides: Any = None, dilations: Any = None,
    ceil_mode: int = 0, storage_order: int = 0, **pads: Any,
) -> Tensor:  # fmt: skip
    strides, dilations, window = _window(x, kernel_shape, strides, dilations)
    del storage_order  # of indices
    inside, around = _padded(x, padding(pads, window, strides, x.shape[2:]), -math.inf)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.dim() - 3]
    return pool(inside, kernel_shape, strides, around, dilations, bool(ceil_mode))


@_is("GlobalAveragePool")
def _global_average(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@_is("GlobalMaxPool")
def _global_max(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


def _reduction(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduced(x: Tensor, axes: Any = None, *, keepdims: int = 1, **_: Any) -> Tensor:
        along = range(x.dim()) if axes is None else _integers(axes)
        return reduce(x, tuple(along), keepdim=bool(keepdims))

    return reduced


IN_TORCH |= {
    "ReduceL2": _reduction(lambda x, axes, keepdim: torch.linalg.vector_norm(x, 2, axes, keepdim)),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
}

_MODES = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}


@_is("Resize")
def _resize(
    x: Tensor, _region: Any = None, scales: Any = None, sizes: Any = None, *, mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel", antialias: int = 0, **_: Any,
) -> Tensor:  # fmt: skip
    if sizes is not None and torch.as_tensor(sizes).numel():
        size = _integers(sizes)
    else:
        given = torch.as_tensor(scales).tolist()
        size = [int(n * scale) for n, scale in zip(x.shape, given, strict=True)]
    whole = all(m % n == 0 for n, m in zip(x.shape[2:], size[2:], strict=True))
    if (mode == "nearest" and not whole) or antialias:
        raise UnsupportedModelError("it resizes by a fraction, or smooths")
    if mode == "nearest":
        return F.interpolate(x, size[2:], mode=mode)
    if coordinate_transformation_mode not in _CORNERS:
        raise UnsupportedModelError(f"it resizes by {coordinate_transformation_mode}")
    aligned = coordinate_transformation_mode == "align_corners"
    return F.interpolate(x, size[2:], mode=_MODES[mode], align_corners=aligned)


_CORNERS = ("half_pixel", "pytorch_half_pixel", "align_corners")


@_is("Upsample")
def _upsample(x: Tensor, scales: Any, *, mode: str = "nearest") -> Tensor:
    return _resize(x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric")


# ------------------------------------------------------------------ layout


@_is("Reshape")
def _reshape(x: Tensor, shape: Any, *, allowzero: int = 0) -> Tensor:
    sizes = _integers(shape)
    if not allowzero:
        sizes = [x.shape[k] if size == 0 else size for k, size in enumerate(sizes)]
    return x.reshape(sizes)


@_is("Flatten")
def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[: axis % (x.dim() + 1)]), -1)


@_is("Unsqueeze")
def _unsqueeze(x: Tensor, axes: Any) -> Tensor:
    places = _integers(axes)
    for axis in sorted(axis % (x.dim() + len(places)) for axis in places):
        x = x.unsqueeze(axis)
    return x


@_is("Squeeze")
def _squeeze(x: Tensor, axes: Any = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(_integers(axes))


@_is("Transpose")
def _transpose(x: Tensor, perm: Any = None) -> Tensor:
    return x.permute(perm or list(range(x.dim()))[::-1])


@_is("Tile")
def _tile(x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(_integers(repeats))


@_is("Expand")
def _expand(x: Tensor, shape: Any) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(_integers(shape))))


@_is("Split")
def _split(x: Tensor, split: Any = None, *, axis: int = 0, num_outputs: int | None = None) -> Any:
    if split is not None:
        return x.split(_integers(split), axis)
    if num_outputs is None:
        raise UnsupportedModelError("it does not say into how many parts it splits")
    return x.split(-(-x.shape[axis] // num_outputs), axis)


@_is("SplitToSequence")
def _split_to_sequence(
    x: Tensor, split: Any = None, *, axis: int = 0, keepdims: int = 1
) -> list[Sequence[Tensor]]:
    """One size for every part, or one for each; the sequence is a single result."""
    if split is None and not keepdims:
        return [x.unbind(axis)]
    sizes = torch.as_tensor(1 if split is None else split)
    return [x.split(sizes.tolist(), axis)]


@_is("Slice")
def _slice(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    begins = _integers(starts)
    along = range(len(begins)) if axes is None else _integers(axes)
    strides = [1] * len(begins) if steps is None else _integers(steps)
    for start, end, axis, step in zip(begins, _integers(ends), along, strides, strict=True):
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(start, end, step),)]
        else:
            x = x.index_select(axis, torch.tensor(_backwards(x.shape[axis], start, end, step)))
    return x


def _backwards(size: int, start: int, end: int, step: int) -> list[int]:
    """The positions of a slice that runs backwards; an end before the first one is below -size."""
    first = min(start + size if start < 0 else start, size - 1)
    last = -1 if end < -size else end + size if end < 0 else end
    return list(range(first, last, step))


@_is("Gather")
def _gather(x: Tensor, indices: Any, *, axis: int = 0) -> Tensor:
    table = torch.as_tensor(indices)
    rows = x.index_select(axis, table.flatten() % x.shape[axis])
    place = axis % x.dim()
    return rows.reshape(*x.shape[:place], *table.shape, *x.shape[place + 1 :])


@_is("ScatterND")
def _scatter_nd(x: Tensor, indices: Any, by: Tensor, *, reduction: str = "none") -> Tensor:
    """Where what is written are whole slices along an axis, side by side."""
    table = torch.as_tensor(indices).long()
    depth = table.shape[-1]
    rows = (table % torch.tensor(x.shape[:depth])).reshape(-1, depth)
    origin = torch.full(x.shape[:depth], -1)
    origin[rows.unbind(1)] = torch.arange(len(rows))
    for axis in range(depth):
        written = (origin >= 0).movedim(axis, 0).reshape(x.shape[axis], -1)
        if bool((written == written[:, :1]).all()):
            break
    else:
        raise UnsupportedModelError("it writes no whole slices")
    index = written[:, 0].nonzero().flatten().tolist()
    if reduction != "none" or index != list(range(index[0], index[-1] + 1)):
        raise UnsupportedModelError("it writes positions that are apart, or adds to them")
    order = origin.narrow(axis, index[0], len(index))
    flat = by.reshape(-1, *x.shape[depth:])
    if not order.flatten().equal(torch.arange(len(rows))):
        flat = flat.index_select(0, order.flatten())
    values = flat.reshape(*order.shape, *x.shape[depth:])
    return torch.slice_scatter(x, values, axis, index[0], index[-1] + 1)


@_is("ScatterElements")
def _scatter_elements(
    x: Tensor, indices: Any, by: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """Where what is written are whole slices, side by side."""
    place = axis % x.dim()
    table = (torch.as_tensor(indices).long() % x.shape[place]).movedim(place, 0).flatten(1)
    index = table[:, 0].tolist()
    whole = table.shape[1] * x.shape[place] == x.numel() and bool((table == table[:, :1]).all())
    if reduction != "none" or not whole or index != list(range(index[0], index[0] + len(index))):
        raise UnsupportedModelError("it writes no whole slices, or adds to them")
    return torch.slice_scatter(x, by, place, index[0], index[0] + len(index))


@_is("DepthToSpace")
def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    batch, channels, height, width = x.shape
    inner = x.reshape(batch, blocksize, blocksize, channels // blocksize**2, height, width)
    moved = inner.permute(0, 3, 4, 1, 5, 2)
    return moved.reshape(batch, -1, height * blocksize, width * blocksize)


@_is("SpaceToDepth")
def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    batch, channels, height, width = x.shape
    rows, columns = height // blocksize, width // blocksize
    divided = x.reshape(batch, channels, rows, blocksize, columns, blocksize)
    return divided.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, rows, columns)


PADDINGS = {
    "constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular",
}  # fmt: skip
"""ONNX's names of ways to pad, and torch's."""


def sides(pads: Any, axes: Any, rank: int) -> list[tuple[int, int]]:
    """How much a Pad adds before and behind each axis."""
    flat = _integers(pads)
    along = [axis % rank for axis in (range(rank) if axes is None else _integers(axes))]
    given = dict(zip(along, zip(flat[: len(along)], flat[len(along) :], strict=True), strict=True))
    return [given.get(axis, (0, 0)) for axis in range(rank)]


@_is("Pad")
def _pad(
    x: Tensor, pads: Any, value: Any = None, axes: Any = None, *, mode: str = "constant"
) -> Tensor:
    around = sides(pads, axes, x.dim())
    if any(map(any, around[:2])):
        raise UnsupportedModelError("it pads the batch or the channels")
    if mode == "wrap":
        for axis, (low, high) in enumerate(around):
            before = [x.narrow(axis, x.shape[axis] - low, low)] if low else []
            behind = [x.narrow(axis, 0, high)] if high else []
            x = torch.cat([*before, x, *behind], axis)
        return x
    flat = flat_pads(around[2:])
    if mode != "constant":
        return F.pad(x, flat, PADDINGS[mode])
    return F.pad(x, flat, value=0.0 if value is None else _number(value))
