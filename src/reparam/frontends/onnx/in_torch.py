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
    "Pow": lambda x, exponent: x.pow(number(exponent)),
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


def entered(*names: str) -> Callable[[Kept], Kept]:
    """Enter a function for types of nodes."""

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
    bounded: Tensor = value.clamp(**{side: number(numbers[0])})
    return bounded


def integers(value: Any) -> list[int]:
    """Whole numbers that a node is given, in a list."""
    return [int(each) for each in torch.as_tensor(value).flatten().tolist()]


def number(value: Any) -> float:
    """One number that a node is given.

    Raises:
        UnsupportedModelError: There are several.

    """
    if torch.as_tensor(value).numel() != 1:
        raise UnsupportedModelError("only one number is taken there, not a value of several")
    return float(value)


@entered("Clip")
def _clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:  # noqa: A002 (ONNX's names)
    return x.clamp(*(None if bound is None else number(bound) for bound in (min, max)))


@entered("Cast")
def _cast(x: Tensor, *, to: int, **_: Any) -> Tensor:
    if to not in FLOATS:
        raise UnsupportedModelError(f"rounding to ONNX's type {to} is no plain function")
    return x.to(FLOATS[to])


@entered("Dropout")
def _dropout(
    x: Tensor, ratio: Any = None, training_mode: Any = None, *, is_test: int = 1, **_: Any
) -> Tensor:
    del ratio
    if not is_test or (training_mode is not None and bool(training_mode)):
        raise UnsupportedModelError("it is in training mode")
    return x


@entered("Shape")
def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end])


# ------------------------------------------------------------------ layers


@entered("Gemm", "FusedMatMul")
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


@entered("Conv", "FusedConv")
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


@entered("ConvTranspose")
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


@entered("BatchNormalization")
def _batch_norm(  # noqa: PLR0913 (ONNX's arguments)
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5,
    training_mode: int = 0, spatial: int = 1, momentum: float = 0.9,
) -> Tensor:  # fmt: skip
    del momentum  # of training
    if training_mode or not spatial:
        raise UnsupportedModelError("it normalises by the batch, or every position by itself")
    return F.batch_norm(x, mean, var, weight, bias, eps=epsilon)


@entered("GroupNormalization")
def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, **_: Any
) -> Tensor:
    return F.group_norm(x, num_groups, weight, bias, epsilon)


@entered("InstanceNormalization")
def _instance_norm(x: Tensor, weight: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.group_norm(x, x.shape[1], weight, bias, epsilon)


@entered("LayerNormalization")
def _layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, axis: int = -1,
    epsilon: float = 1e-5, **_: Any,
) -> Tensor:  # fmt: skip
    return F.layer_norm(x, x.shape[axis % x.dim() :], weight, bias, epsilon)


@entered("SkipLayerNormalization")
def _skip_layer_norm(
    x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor | None = None,
    addend: Tensor | None = None, *, epsilon: float = 1e-12,
) -> list[Tensor | None]:  # fmt: skip
    """Of a sum, which is the fourth result; mean and deviation are left out outside of training."""
    total = x + skip if addend is None else x + skip + addend
    return [F.layer_norm(total, total.shape[-1:], weight, bias, epsilon), None, None, total]


# ------------------------------------------------------------------ pooling


@entered("AveragePool")
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


@entered("MaxPool")
def _max_pool(
    x: Tensor, *, kernel_shape: Any, strides: Any = None, dilations: Any = None,
    ceil_mode: int = 0, storage_order: int = 0, **pads: Any,
) -> Tensor:  # fmt: skip
    strides, dilations, window = _window(x, kernel_shape, strides, dilations)
    del storage_order  # of indices
    inside, around = _padded(x, padding(pads, window, strides, x.shape[2:]), -math.inf)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[x.dim() - 3]
    return pool(inside, kernel_shape, strides, around, dilations, bool(ceil_mode))


@entered("GlobalAveragePool")
def _global_average(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@entered("GlobalMaxPool")
def _global_max(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


def _reduction(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduced(x: Tensor, axes: Any = None, *, keepdims: int = 1, **_: Any) -> Tensor:
        along = range(x.dim()) if axes is None else integers(axes)
        return reduce(x, tuple(along), keepdim=bool(keepdims))

    return reduced


IN_TORCH |= {
    "ReduceL2": _reduction(lambda x, axes, keepdim: torch.linalg.vector_norm(x, 2, axes, keepdim)),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
}

_MODES = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}


@entered("Resize")
def _resize(
    x: Tensor, _region: Any = None, scales: Any = None, sizes: Any = None, *, mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel", antialias: int = 0, **_: Any,
) -> Tensor:  # fmt: skip
    if sizes is not None and torch.as_tensor(sizes).numel():
        size = integers(sizes)
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


@entered("Upsample")
def _upsample(x: Tensor, scales: Any, *, mode: str = "nearest") -> Tensor:
    return _resize(x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric")
