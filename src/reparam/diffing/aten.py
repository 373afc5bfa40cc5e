"""What the operators of an exported program (ATen) mean in normal form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from reparam.diffing.values import Form, Sized
from reparam.diffing.vocabulary import Value, Vocabulary
from reparam.errors import UnsupportedModelError

__all__ = ["HANDLERS"]

Handler = Callable[..., Any]
Kept = TypeVar("Kept", bound=Handler)

HANDLERS: dict[str, Handler] = {}
"""By the name of an operator without overload: called with its arguments, forms among them."""


def _is(*names: str) -> Callable[[Kept], Kept]:
    def register(handler: Kept) -> Kept:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def _many(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


# ------------------------------------------------------------------ arithmetic


@_is("add")
def _add(w: Vocabulary, at: str, x: Value, y: Value, *, alpha: float = 1.0) -> Value:
    return w.add(x, y, at, alpha)


@_is("sub")
def _sub(w: Vocabulary, at: str, x: Value, y: Value, *, alpha: float = 1.0) -> Value:
    return w.add(x, y, at, -alpha)


@_is("rsub")
def _rsub(w: Vocabulary, at: str, x: Value, y: Value, alpha: float = 1.0) -> Value:
    return w.add(y, x, at, -alpha)


@_is("addcmul")
def _addcmul(
    w: Vocabulary, at: str, x: Value, first: Value, second: Value, *, value: float = 1.0
) -> Value:
    return w.add(x, w.mul(first, second, at), at, value)


@_is("mul")
def _mul(w: Vocabulary, at: str, x: Value, y: Value) -> Value:
    return w.mul(x, y, at)


@_is("div")
def _div(w: Vocabulary, at: str, x: Value, y: Value) -> Value:
    return w.div(x, y, at)


@_is("neg")
def _neg(w: Vocabulary, at: str, x: Value) -> Value:
    return w.mul(x, -1.0, at)


@_is("alias", "clone", "detach", "lift_fresh_copy", "_to_copy", "_assert_tensor_metadata")
def _same(_w: Vocabulary, at: str, x: Value, *rest: Any, dtype: Any = None, **_: Any) -> Value:
    kinds = [each for each in (*rest, dtype) if isinstance(each, torch.dtype)]
    if not all(kind.is_floating_point for kind in kinds):
        raise UnsupportedModelError(f"rounding to {kinds[0]} at {at} has no normal form")
    return x


@_is("bmm", "mm")
def _matmul(w: Vocabulary, at: str, x: Value, y: Value) -> Value:
    return w.matmul(x, y, at)


@_is("addmm", "baddbmm")
def _addmm(
    w: Vocabulary, at: str, bias: Value, x: Value, y: Value, *, beta: float = 1.0,
    alpha: float = 1.0,
) -> Value:  # fmt: skip
    product = w.matmul(x, y, at)
    return w.add(product if alpha == 1 else w.mul(product, alpha, at), bias, at, beta)


@_is("_scaled_dot_product_flash_attention_for_cpu")
def _attention(
    w: Vocabulary, at: str, q: Form, k: Form, v: Form, dropout: float = 0.0,
    is_causal: bool = False, *, attn_mask: Value | None = None, scale: float | None = None,
) -> Any:  # fmt: skip
    if is_causal or dropout:
        raise UnsupportedModelError(f"causal attention at {at} has no normal form")
    turned = w.permute(k, (*range(len(k.shape) - 2), -1, -2), at)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = w.mul(w.matmul(q, turned, at), factor, at)
    scores = scores if attn_mask is None else w.add(scores, attn_mask, at)
    shares = w.pointwise("softmax", scores, at, axis=len(q.shape) - 1)
    return w.matmul(shares, v, at), None


# ------------------------------------------------------------------ layers


@_is("convolution")
def _conv(
    w: Vocabulary, at: str, x: Form, weight: Value, bias: Value | None, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int,
) -> Value:  # fmt: skip
    dims = len(x.shape) - 2
    stride, padding, dilation = (_many(each, dims) for each in (stride, padding, dilation))
    if transposed:
        return w.conv_transpose(
            x, weight, bias, at, stride=stride, padding=padding, groups=groups,
            output_padding=_many(output_padding, dims), dilation=dilation,
        )  # fmt: skip
    return w.conv(
        x, weight, bias, at, stride=stride, padding=[(p, p) for p in padding], dilation=dilation,
        groups=groups,
    )  # fmt: skip


@_is("native_batch_norm")
def _batch_norm(
    w: Vocabulary, at: str, x: Form, weight: Any, bias: Any, mean: Any, var: Any, training: bool,
    _momentum: float, eps: float,
) -> Any:  # fmt: skip
    if training:
        raise UnsupportedModelError(f"{at} normalises by the statistics of the batch")
    return w.batch_norm(x, weight, bias, mean, var, eps, at), None, None


@_is("_native_batch_norm_legit_no_training")
def _batch_norm_in_eval(
    w: Vocabulary, at: str, x: Form, weight: Any, bias: Any, mean: Any, var: Any, _momentum: float,
    eps: float,
) -> Any:  # fmt: skip
    return w.batch_norm(x, weight, bias, mean, var, eps, at), None, None


@_is("native_layer_norm")
def _layer_norm(
    w: Vocabulary, at: str, x: Form, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> Any:
    return w.layer_norm(x, range(-len(shape), 0), weight, bias, eps, at), None, None


@_is("native_group_norm")
def _group_norm(
    w: Vocabulary, at: str, x: Form, weight: Any, bias: Any, _n: int, _c: int, _area: int,
    groups: int, eps: float,
) -> Any:  # fmt: skip
    return w.group_norm(x, groups, weight, bias, eps, at), None, None


@_is("avg_pool2d", "avg_pool3d")
def _avg_pool(
    w: Vocabulary, at: str, x: Form, kernel: Any, stride: Any = (), padding: Any = 0,
    ceil: bool = False, count_pads: bool = True, divisor: int | None = None,
) -> Value:  # fmt: skip
    if divisor is not None:
        raise UnsupportedModelError(f"average pooling with a divisor at {at} has no normal form")
    dims = len(x.shape) - 2
    return w.average_pool(
        x, at, kernel=_many(kernel, dims), stride=_many(stride or kernel, dims),
        pads=[(p, p) for p in _many(padding, dims)], ceil=ceil, count_pads=count_pads,
    )  # fmt: skip


@_is("max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool(
    w: Vocabulary, at: str, x: Form, kernel: Any, stride: Any = (), padding: Any = 0,
    dilation: Any = 1, ceil: bool = False,
) -> Any:  # fmt: skip
    dims = len(x.shape) - 2
    largest = w.max_pool(
        x, at, kernel=_many(kernel, dims), stride=_many(stride or kernel, dims),
        pads=[(p, p) for p in _many(padding, dims)], dilation=_many(dilation, dims), ceil=ceil,
    )  # fmt: skip
    return largest, None


@_is("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def _adaptive(w: Vocabulary, at: str, x: Form, size: Any) -> Value:
    wanted = _many(size, len(x.shape) - 2)
    if any(n % k for n, k in zip(x.shape[2:], wanted, strict=True)):
        raise UnsupportedModelError(f"uneven adaptive pooling at {at} has no normal form")
    kernel = [n // k for n, k in zip(x.shape[2:], wanted, strict=True)]
    return w.average_pool(
        x, at, kernel=kernel, stride=kernel, pads=[(0, 0)] * len(kernel), ceil=False,
        count_pads=True,
    )  # fmt: skip


@_is("adaptive_max_pool2d")
def _adaptive_max(w: Vocabulary, at: str, x: Form, size: Any) -> Any:
    if list(_many(size, 2)) != [1, 1]:
        raise UnsupportedModelError(f"adaptive pooling of maxima at {at} has no normal form")
    return w.amax(x, (2, 3), at, keep=True), None


def _resized(
    w: Vocabulary, at: str, mode: str, x: Form, size: Any, scales: Any, align: bool
) -> Value:
    if size is None:
        size = [int(n * s) for n, s in zip(x.shape[2:], scales or (), strict=True)]
    return w.upsample(x, size, mode, at, align=align)


@_is("upsample_nearest2d")
def _nearest(w: Vocabulary, at: str, x: Form, size: Any, scales: Any = None, *_: Any) -> Value:
    return _resized(w, at, "nearest", x, size, scales, align=False)


@_is("upsample_bilinear2d")
def _bilinear(
    w: Vocabulary, at: str, x: Form, size: Any, align: bool, scales: Any = None, *_: Any
) -> Value:
    return _resized(w, at, "bilinear", x, size, scales, align)


@_is("upsample_bicubic2d")
def _bicubic(
    w: Vocabulary, at: str, x: Form, size: Any, align: bool, scales: Any = None, *_: Any
) -> Value:
    return _resized(w, at, "bicubic", x, size, scales, align)


# ------------------------------------------------------------------ activations


@_is("relu")
def _relu(w: Vocabulary, at: str, x: Value) -> Value:
    return w.relu(x, at)


@_is("hardtanh")
def _hardtanh(w: Vocabulary, at: str, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    return w.clip(x, low, high, at)


@_is("clamp", "clamp_min", "clamp_max")
def _clamp(w: Vocabulary, at: str, x: Value, low: Any = None, high: Any = None) -> Value:
    inf = float("inf")
    return w.clip(x, -inf if low is None else low, inf if high is None else high, at)


@_is("silu")
def _silu(w: Vocabulary, at: str, x: Value) -> Value:
    return w.gated(x, "sigmoid", at)


@_is("hardswish")
def _hardswish(w: Vocabulary, at: str, x: Value) -> Value:
    return w.gated(x, "hardsigmoid", at)


@_is("mish")
def _mish(w: Vocabulary, at: str, x: Value) -> Value:
    return w.gated(x, "softplus_tanh", at)


@_is("gelu")
def _gelu(w: Vocabulary, at: str, x: Value, *, approximate: str = "none") -> Value:
    return w.gated(x, "normal" if approximate == "none" else "normal_tanh", at)


@_is("hardsigmoid")
def _hardsigmoid(w: Vocabulary, at: str, x: Value) -> Value:
    return w.hardsigmoid(x, at)


@_is("leaky_relu")
def _leaky_relu(w: Vocabulary, at: str, x: Value, slope: float = 0.01) -> Value:
    return w.pointwise("leaky_relu", x, at, slope=float(slope))


@_is("elu")
def _elu(w: Vocabulary, at: str, x: Value, alpha: float = 1.0, *_: Any) -> Value:
    return w.pointwise("elu", x, at, alpha=float(alpha))


@_is("softplus")
def _softplus(
    w: Vocabulary, at: str, x: Value, beta: float = 1.0, _threshold: float = 20.0
) -> Value:
    return w.div(w.pointwise("softplus", w.mul(x, beta, at), at), beta, at)


@_is("_prelu_kernel")
def _prelu(w: Vocabulary, at: str, x: Form, weight: Tensor) -> Value:
    return w.build.operation(
        "prelu", [x, w.build.constant(Sized.of(weight.flatten()), at)], x.shape, at
    )


@_is("_softmax")
def _softmax(w: Vocabulary, at: str, x: Form, axis: int, *_: Any) -> Value:
    return w.pointwise("softmax", x, at, axis=axis % len(x.shape))


@_is("pow")
def _pow(w: Vocabulary, at: str, x: Value, exponent: Any) -> Value:
    return w.power(x, float(exponent), at)


@_is("rsqrt")
def _rsqrt(w: Vocabulary, at: str, x: Value) -> Value:
    return w.power(x, -0.5, at)


@_is("reciprocal")
def _reciprocal(w: Vocabulary, at: str, x: Value) -> Value:
    return w.power(x, -1.0, at)


@_is("sqrt")
def _sqrt(w: Vocabulary, at: str, x: Value) -> Value:
    return w.power(x, 0.5, at)


def _plain(name: str) -> Handler:
    return lambda w, at, x: w.pointwise(name, x, at)


HANDLERS.update({name: _plain(name) for name in ("abs", "erf", "exp", "log", "sigmoid", "tanh")})


# ------------------------------------------------------------------ layout


@_is("permute")
def _permute(w: Vocabulary, at: str, x: Value, order: Sequence[int]) -> Value:
    return w.permute(x, order, at)


@_is("transpose")
def _transpose(w: Vocabulary, at: str, x: Form, first: int, second: int) -> Value:
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    return w.permute(x, order, at)


@_is("t")
def _turned(w: Vocabulary, at: str, x: Form) -> Value:
    return w.permute(x, range(len(x.shape))[::-1], at)


@_is("view", "_unsafe_view", "_reshape_alias")
def _reshape(w: Vocabulary, at: str, x: Value, shape: Sequence[int], *_: Any) -> Value:
    if isinstance(shape, torch.dtype):
        raise UnsupportedModelError(f"the bits of {at} read as {shape} have no normal form")
    return w.reshape(x, shape, at)


@_is("unsqueeze")
def _unsqueeze(w: Vocabulary, at: str, x: Form, axis: int) -> Value:
    place = axis % (len(x.shape) + 1)
    return w.reshape(x, (*x.shape[:place], 1, *x.shape[place:]), at)


@_is("squeeze")
def _squeeze(w: Vocabulary, at: str, x: Form, axes: Any = None) -> Value:
    dims = len(x.shape)
    chosen = range(dims) if axes is None else [a % dims for a in _many(axes, 1)]
    return w.reshape(x, [n for k, n in enumerate(x.shape) if n != 1 or k not in chosen], at)


@_is("expand")
def _expand(w: Vocabulary, at: str, x: Form, shape: Sequence[int], **_: Any) -> Value:
    offset = len(shape) - len(x.shape)
    wanted = [x.shape[k - offset] if n == -1 else n for k, n in enumerate(shape)]
    return w.spread(x, wanted, at)


@_is("mean")
def _mean(w: Vocabulary, at: str, x: Form, axes: Any = None, keep: bool = False, **_: Any) -> Value:
    chosen = range(len(x.shape)) if axes is None else _many(axes, 1)
    return w.mean(x, tuple(chosen), at, keep=keep)


@_is("sum")
def _total(w: Vocabulary, at: str, x: Any, axes: Any = None, keep: bool = False, **_: Any) -> Value:
    chosen = _many(range(len(x.shape)) if axes is None else axes, 1)
    count = math.prod(x.shape[axis] for axis in chosen)
    return w.mul(w.mean(x, chosen, at, keep=keep), float(count), at)


@_is("linalg_vector_norm")
def _norm(
    w: Vocabulary,
    at: str,
    x: Form,
    power: float = 2,
    axes: Any = None,
    keep: bool = False,
    **_: Any,
) -> Value:
    if power != 2:
        raise UnsupportedModelError(f"the norm of power {power} at {at} has no normal form")
    return _sqrt(w, at, _total(w, at, w.power(x, 2.0, at), axes, keep))


@_is("amax")
def _amax(w: Vocabulary, at: str, x: Form, axes: Any = (), keep: bool = False) -> Value:
    return w.amax(x, _many(axes, 1), at, keep=keep)


@_is("cat")
def _cat(w: Vocabulary, at: str, parts: Sequence[Value], axis: int = 0) -> Value:
    return w.cat(parts, axis, at)


@_is("stack")
def _stack(w: Vocabulary, at: str, parts: Sequence[Value], axis: int = 0) -> Value:
    forms = [w.form(part) for part in parts]
    return w.cat([_unsqueeze(w, at, form, axis) for form in forms], axis, at)


@_is("slice")
def _slice(
    w: Vocabulary, at: str, x: Form, axis: int = 0, start: Any = None, stop: Any = None,
    step: int = 1,
) -> Value:  # fmt: skip
    return w.slice(x, axis, start, stop, step, at)


@_is("copy", "fill")
def _copied(w: Vocabulary, at: str, x: Value, by: Value, *_: Any) -> Value:
    shape = torch.as_tensor(x).shape if not isinstance(x, Form) else x.shape
    return w.spread(by, shape, at) if isinstance(by, Form) else torch.as_tensor(by).expand(shape)


@_is("slice_scatter")
def _slice_scatter(
    w: Vocabulary, at: str, x: Value, by: Value, axis: int = 0, start: Any = None, stop: Any = None,
    step: int = 1,
) -> Value:  # fmt: skip
    return w.overwrite(x, by, axis, start, stop, step, at)


@_is("select_scatter")
def _select_scatter(w: Vocabulary, at: str, x: Value, by: Value, axis: int, index: int) -> Value:
    whole = w.form(x, at)
    place, size = axis % len(whole.shape), whole.shape[axis]
    row = w.reshape(by, (*whole.shape[:place], 1, *whole.shape[place + 1 :]), at)
    return w.overwrite(whole, row, place, index % size, index % size + 1, 1, at)


@_is("select")
def _select(w: Vocabulary, at: str, x: Form, axis: int, index: int) -> Value:
    place = axis % len(x.shape)
    kept = w.take(x, place, [index % x.shape[place]], at)
    return w.reshape(kept, [n for k, n in enumerate(x.shape) if k != place], at)


@_is("split", "split_with_sizes")
def _split(w: Vocabulary, at: str, x: Form, sizes: Any, axis: int = 0) -> list[Value]:
    whole = x.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, whole - k) for k in range(0, whole, sizes)]
    parts: list[Value] = []
    start = 0
    for size in sizes:
        parts.append(w.slice(x, axis, start, start + size, 1, at))
        start += size
    return parts


@_is("unbind")
def _unbind(w: Vocabulary, at: str, x: Form, axis: int = 0) -> list[Value]:
    return [_select(w, at, x, axis, index) for index in range(x.shape[axis])]


@_is("repeat")
def _repeat(w: Vocabulary, at: str, x: Form, times: Sequence[int]) -> Form:
    if len(times) > len(x.shape):
        raise UnsupportedModelError(f"repeating along a new axis at {at} has no normal form")
    for axis, count in zip(range(-len(times), 0), times, strict=True):
        x = w.gather(x, axis, torch.arange(x.shape[axis]).repeat(count), at)
    return x


@_is("index_select")
def _index_select(w: Vocabulary, at: str, x: Form, axis: int, index: Tensor) -> Value:
    return w.gather(x, axis, index, at)


@_is("index")
def _index(w: Vocabulary, at: str, x: Form, indices: Sequence[Any]) -> Value:
    chosen = [k for k, each in enumerate(indices) if each is not None]
    if len(chosen) != 1 or indices[chosen[0]].dtype is torch.bool:
        raise UnsupportedModelError(f"reading by several tables at {at} has no normal form")
    return w.gather(x, chosen[0], indices[chosen[0]], at)


@_is("as_strided")
def _as_strided(
    w: Vocabulary, at: str, x: Form, size: Sequence[int], stride: Sequence[int], offset: int = 0
) -> Value:
    table = torch.arange(math.prod(x.shape)).as_strided(size, stride, offset or 0)
    return w.gather(w.form(w.reshape(x, (-1,), at)), 0, table, at)


@_is("flip")
def _flip(w: Vocabulary, at: str, x: Form, axes: Sequence[int]) -> Value:
    for axis in axes:
        x = w.take(x, axis, range(x.shape[axis])[::-1], at)
    return x


@_is("channel_shuffle")
def _shuffled(w: Vocabulary, at: str, x: Form, groups: int) -> Value:
    order = torch.arange(x.shape[1]).view(groups, -1).T.flatten()
    return w.take(x, 1, order.tolist(), at)


@_is("glu")
def _glu(w: Vocabulary, at: str, x: Form, axis: int = -1) -> Value:
    half = x.shape[axis] // 2
    gate = w.pointwise("sigmoid", w.slice(x, axis, half, None, 1, at), at)
    return w.mul(w.slice(x, axis, 0, half, 1, at), gate, at)


@_is("roll")
def _roll(w: Vocabulary, at: str, x: Value, shifts: Any, axes: Any = ()) -> Value:
    for shift, axis in zip(_many(shifts, 1), _many(axes, 1), strict=True):
        assert isinstance(x, Form)  # noqa: S101 (constants are computed as they are)
        size = x.shape[axis]
        x = w.take(x, axis, [(k - shift) % size for k in range(size)], at)
    return x


@_is("pixel_shuffle")
def _pixel_shuffle(w: Vocabulary, at: str, x: Form, factor: int) -> Value:
    return w.pixel_shuffle(x, factor, at)


@_is("pad", "constant_pad_nd")
def _pad(
    w: Vocabulary, at: str, x: Form, flat: Sequence[int], mode: Any = "constant", value: Any = None
) -> Value:
    if not isinstance(mode, str):
        mode, value = "constant", mode
    pads = [(flat[k], flat[k + 1]) for k in range(0, len(flat), 2)][::-1]
    return w.pad(x, pads, mode, value or 0.0, at)


@_is("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def _reflect(w: Vocabulary, at: str, x: Form, flat: Sequence[int]) -> Value:
    return _pad(w, at, x, flat, "reflect")


@_is("replication_pad1d", "replication_pad2d", "replication_pad3d")
def _replicate(w: Vocabulary, at: str, x: Form, flat: Sequence[int]) -> Value:
    return _pad(w, at, x, flat, "replicate")
