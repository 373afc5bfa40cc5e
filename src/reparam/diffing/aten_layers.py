"""What the operators of ATen that hold numbers, or slide windows, mean in normal form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.algebra import average_pool, batch_norm, conv_geometry
from reparam.diffing.shaping import Value
from reparam.diffing.table import means, spread
from reparam.diffing.values import Form, Map, Sized
from reparam.diffing.vocabulary import Vocabulary
from reparam.errors import UnsupportedModelError

__all__: list[str] = []


@means("convolution")
def _conv(
    w: Vocabulary, x: Form, weight: Value, bias: Value | None, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int,
) -> Value:  # fmt: skip
    dims = len(x.shape) - 2
    stride, padding, dilation = (spread(each, dims) for each in (stride, padding, dilation))
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        how["output_padding"] = spread(output_padding, dims)
        value = _conv_transpose(w, x, weight, how)
    elif isinstance(weight, Tensor) and not isinstance(bias, Form):
        pads = [(each, each) for each in padding]
        geometry = conv_geometry(weight.shape, **{**how, "padding": pads})
        shift = None if bias is None else torch.as_tensor(bias)
        return w.build.layer(x, w.stored.map(geometry, weight), 1, shift)
    else:
        value = w.build.operation("conv", [x, w.form(weight)], w.shape, **how)
    return value if bias is None else w.add(value, w.reshape(bias, (-1, *(1,) * dims)))


def _conv_transpose(w: Vocabulary, x: Form, weight: Value, how: dict[str, Any]) -> Value:
    """The scale of each output channel stands behind it."""
    if not isinstance(weight, Tensor):
        raise UnsupportedModelError(f"computed weights of {w.at} have no normal form")
    by_output = weight.double().unflatten(0, (how["groups"], -1)).transpose(1, 2)
    rows = by_output.flatten(0, 1).flatten(1)
    factor = rows.gather(1, rows.abs().argmax(1, keepdim=True)).flatten()
    factor = torch.where(factor == 0, 1.0, factor)
    plain = by_output.flatten(0, 1) / factor.view(-1, *(1,) * (weight.dim() - 1))
    kernel = plain.unflatten(0, by_output.shape[:2]).transpose(1, 2).flatten(0, 1)
    value = w.build.operation(
        "conv_transpose", [x, w.build.constant(Sized(kernel))], w.shape, **how
    )
    return w.build.affine(value, Sized.of(factor), None, 1)


@means("native_batch_norm")
def _batch_norm(
    w: Vocabulary, x: Form, weight: Any, bias: Any, mean: Any, var: Any, training: bool,
    _momentum: float, eps: float,
) -> Any:  # fmt: skip
    if training:
        raise UnsupportedModelError(f"{w.at} normalises by the statistics of the batch")
    op = batch_norm(mean, var, weight, bias, eps=eps)
    # The shift is a difference, so it is as large as the larger of its two parts.
    parts = (mean.double() * op.kernel.flatten()).abs()
    size = parts if bias is None else parts + bias.double().abs()
    assert op.bias is not None  # noqa: S101 (a batch norm has a shift)
    factor = Sized.of(op.kernel.flatten())
    return w.build.affine(x, factor, Sized(op.bias, size), 1), None, None


@means("_native_batch_norm_legit_no_training")
def _batch_norm_in_eval(w: Vocabulary, x: Form, *numbers: Any) -> Any:
    weight, bias, mean, var, momentum, eps = numbers
    return _batch_norm(w, x, weight, bias, mean, var, training=False, _momentum=momentum, eps=eps)


@means("native_layer_norm")
def _layer_norm(
    w: Vocabulary, x: Form, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> Any:
    axes = tuple(range(len(x.shape) - len(shape), len(x.shape)))
    value: Value = w.build.operation("layer_norm", [x], x.shape, axes=axes, eps=float(eps))
    value = value if weight is None else w.mul(value, weight)
    return value if bias is None else w.add(value, bias), None, None


@means("native_group_norm")
def _group_norm(
    w: Vocabulary, x: Form, weight: Any, bias: Any, _n: int, _c: int, _area: int, groups: int,
    eps: float,
) -> Any:  # fmt: skip
    """With one group for each channel, instance normalisation."""
    whole = w.whole(x)
    rows = len(x.shape) == 3 and x.shape[1] == groups and len(whole.shape) > 2
    # Exporters write groups as the channels of another shape.
    before = whole if rows and whole.shape[0] == x.shape[0] else x
    value = w.build.operation("group_norm", [before], before.shape, groups=groups, eps=float(eps))
    value = w.laid_out(value, x.shape)
    if before is not x:
        weight = None if weight is None or bool((weight == 1).all()) else weight
        bias = bias if bias is not None and bool(bias.any()) else None
    if weight is not None or bias is not None:
        factor, shift = (
            None if each is None else Sized.of(each.flatten()) for each in (weight, bias)
        )
        value = w.build.affine(value, factor, shift, 1)
    return value, None, None


@means("avg_pool2d", "avg_pool3d")
def _avg_pool(
    w: Vocabulary, x: Form, kernel: Any, stride: Any = (), padding: Any = 0, ceil: bool = False,
    count_pads: bool = True, divisor: int | None = None,
) -> Value:  # fmt: skip
    """A convolution, unless borders are weighted by themselves."""
    if divisor is not None:
        raise UnsupportedModelError(f"average pooling with a divisor at {w.at} has no normal form")
    dims = len(x.shape) - 2
    kernel, stride, pads = (spread(each, dims) for each in (kernel, stride or kernel, padding))
    free = (n + 2 * p - k for n, p, k in zip(x.shape[2:], pads, kernel, strict=True))
    whole = w.shape[2:] == tuple(n // s + 1 for n, s in zip(free, stride, strict=True))
    if whole and kernel == x.shape[2:] and not any(pads):
        return w.mean(x, range(2, len(x.shape)), keep=True)
    if whole and (count_pads or not any(pads)):
        op = average_pool(x.shape[1], kernel, stride, [(each, each) for each in pads])
        return w.build.layer(x, Map.of(op), 1)
    return w.build.operation(
        "average_pool", [x], w.shape, kernel=kernel, stride=stride, pads=pads, ceil=ceil,
        count_pads=count_pads,
    )  # fmt: skip


@means("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def _adaptive(w: Vocabulary, x: Form, _size: Any) -> Value:
    if any(n % k for n, k in zip(x.shape[2:], w.shape[2:], strict=True)):
        raise UnsupportedModelError(f"uneven adaptive pooling at {w.at} has no normal form")
    return _avg_pool(w, x, [n // k for n, k in zip(x.shape[2:], w.shape[2:], strict=True)])


@means("max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool(
    w: Vocabulary, x: Form, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil: bool = False,
) -> Any:  # fmt: skip
    """Padding by minus infinity before it is its own."""
    dims = len(x.shape) - 2
    inner, pads = w.build.without_padding(x, [(p, p) for p in spread(padding, dims)], -math.inf)
    size, step, apart = (spread(each, dims) for each in (kernel, stride or kernel, dilation))
    reach = (
        n + low + high - d * (k - 1) - 1
        for n, (low, high), d, k in zip(inner.shape[2:], pads, apart, size, strict=True)
    )
    whole = w.shape[2:] == tuple(n // s + 1 for n, s in zip(reach, step, strict=True))
    value = w.build.operation(
        "max_pool", [inner], w.shape, kernel=size, pads=pads, ceil=ceil and not whole, stride=step,
        dilation=apart,
    )  # fmt: skip
    return value, None


@means("adaptive_max_pool2d")
def _adaptive_max(w: Vocabulary, x: Form, _size: Any) -> Any:
    if w.shape[2:] != (1, 1):
        raise UnsupportedModelError(f"adaptive pooling of maxima at {w.at} has no normal form")
    return w.build.operation("amax", [x], w.shape, axes=(2, 3), keep=True), None


def _resized(w: Vocabulary, x: Form, mode: str, *, align: bool) -> Value:
    axis = 1 if x.axis == 1 else None
    size = w.shape[2:]
    return w.build.layout("upsample", x, w.shape, axis=axis, size=size, mode=mode, align=align)


@means("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def _nearest(w: Vocabulary, x: Form, *_: Any) -> Value:
    return _resized(w, x, "nearest", align=False)


@means("upsample_bilinear2d")
def _bilinear(w: Vocabulary, x: Form, _size: Any, align: bool, *_: Any) -> Value:
    return _resized(w, x, "bilinear", align=align)


@means("upsample_bicubic2d")
def _bicubic(w: Vocabulary, x: Form, _size: Any, align: bool, *_: Any) -> Value:
    return _resized(w, x, "bicubic", align=align)
