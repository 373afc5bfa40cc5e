"""What the operators of an exported program (ATen) mean in normal form."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.diffing import aten_choices, aten_layers  # noqa: F401 (they enter their operators)
from reparam.diffing.shaping import Value
from reparam.diffing.table import HANDLERS, means, spread
from reparam.diffing.values import Form, Sized
from reparam.diffing.vocabulary import Vocabulary
from reparam.errors import UnsupportedModelError


def _pointwise(w: Vocabulary, x: Value, *, kind: str) -> Value:
    return w.pointwise(kind, x)


def _hardsigmoid(w: Vocabulary, x: Value) -> Value:
    """``clip(x / 6 + 1 / 2, 0, 1)``."""
    return w.clip(w.add(w.mul(x, 1 / 6), 0.5), 0.0, 1.0)


_EACH_BY_ITSELF = (
    "abs", "ceil", "cos", "erf", "exp", "floor", "log", "round", "sigmoid", "sign", "sin", "tanh",
)  # fmt: skip

HANDLERS |= {
    "add": Vocabulary.add,
    "addcmul": lambda w, x, y, z, *, value=1.0: w.add(x, w.mul(y, z), value),
    "bmm": Vocabulary.matmul,
    "cat": Vocabulary.cat,
    "div": Vocabulary.div,
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda w, x: w.mul(x, _hardsigmoid(w, x)),
    "hardtanh": lambda w, x, low=-1.0, high=1.0: w.clip(x, low, high),
    "index_select": Vocabulary.gather,
    "leaky_relu": lambda w, x, slope=0.01: w.pointwise("leaky_relu", x, slope=float(slope)),
    "mish": lambda w, x: w.mul(x, w.pointwise("tanh", w.pointwise("softplus", x))),
    "mm": Vocabulary.matmul,
    "mul": Vocabulary.mul,
    "neg": lambda w, x: w.mul(x, -1.0),
    "permute": Vocabulary.permute,
    "pow": lambda w, x, exponent: w.power(x, float(exponent)),
    "reciprocal": lambda w, x: w.power(x, -1.0),
    "relu": lambda w, x: w.clip(x, 0.0, math.inf),
    "rsqrt": lambda w, x: w.power(x, -0.5),
    "rsub": lambda w, x, y, alpha=1.0: w.add(y, x, -alpha),
    "silu": lambda w, x: w.mul(x, w.pointwise("sigmoid", x)),
    "slice": Vocabulary.slice,
    "slice_scatter": Vocabulary.overwrite,
    "sqrt": lambda w, x: w.power(x, 0.5),
    "sub": lambda w, x, y, *, alpha=1.0: w.add(x, y, -alpha),
    **{name: functools.partial(_pointwise, kind=name) for name in _EACH_BY_ITSELF},
}


# ------------------------------------------------------------------ arithmetic


@means("alias", "clone", "detach", "lift_fresh_copy", "_to_copy", "_assert_tensor_metadata")
def _same(w: Vocabulary, x: Value, *rest: Any, dtype: Any = None, **_: Any) -> Value:
    kinds = [each for each in (*rest, dtype) if isinstance(each, torch.dtype)]
    if not all(kind.is_floating_point for kind in kinds):
        raise UnsupportedModelError(f"rounding to {kinds[0]} at {w.at} has no normal form")
    return x


@means("addmm", "baddbmm")
def _addmm(
    w: Vocabulary, bias: Value, x: Value, y: Value, *, beta: float = 1.0,
    alpha: float = 1.0,
) -> Value:  # fmt: skip
    product = w.matmul(x, y)
    return w.add(product if alpha == 1 else w.mul(product, alpha), bias, beta)


@means("_scaled_dot_product_flash_attention_for_cpu")
def _attention(
    w: Vocabulary, q: Form, k: Form, v: Form, dropout: float = 0.0,
    is_causal: bool = False, *, attn_mask: Value | None = None, scale: float | None = None,
) -> Any:  # fmt: skip
    if is_causal or dropout:
        raise UnsupportedModelError(f"causal attention at {w.at} has no normal form")
    turned = w.permute(k, (*range(len(k.shape) - 2), -1, -2))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = w.mul(w.matmul(q, turned), factor)
    scores = scores if attn_mask is None else w.add(scores, attn_mask)
    shares = w.pointwise("softmax", scores, axis=len(q.shape) - 1)
    return w.matmul(shares, v), None


# ------------------------------------------------------------------ activations


@means("gelu")
def _gelu(w: Vocabulary, x: Value, *, approximate: str = "none") -> Value:
    """``x`` times the normal law, or what is near it."""
    if approximate == "none":
        kind, inner = "erf", w.mul(x, math.sqrt(0.5))
    else:
        cube = w.mul(w.power(x, 3.0), 0.044715)
        kind, inner = "tanh", w.mul(w.add(x, cube), math.sqrt(2 / math.pi))
    return w.mul(x, w.add(w.mul(w.pointwise(kind, inner), 0.5), 0.5))


@means("clamp", "clamp_min", "clamp_max")
def _clamp(w: Vocabulary, x: Value, low: Any = None, high: Any = None) -> Value:
    return w.clip(x, -math.inf if low is None else low, math.inf if high is None else high)


@means("elu")
def _elu(
    w: Vocabulary, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> Value:
    if input_scale != 1:
        raise UnsupportedModelError(f"celu at {w.at} has no normal form")
    value = w.pointwise("elu", x, alpha=float(alpha))
    return value if scale == 1 else w.mul(value, float(scale))


@means("softplus")
def _softplus(w: Vocabulary, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    if threshold < _STRAIGHT:
        raise UnsupportedModelError(f"softplus that is cut short at {w.at} has no normal form")
    return w.div(w.pointwise("softplus", w.mul(x, beta)), beta)


_STRAIGHT = 17.0
"""From here on the softplus of a number is that number, as float32 rounds."""


@means("_prelu_kernel")
def _prelu(w: Vocabulary, x: Form, weight: Tensor) -> Value:
    return w.build.operation("prelu", [x, w.build.constant(Sized.of(weight.flatten()))], x.shape)


@means("_softmax")
def _softmax(w: Vocabulary, x: Form, axis: int, *_: Any) -> Value:
    return w.pointwise("softmax", x, axis=axis % len(x.shape))


# ------------------------------------------------------------------ layout


@means("transpose")
def _transpose(w: Vocabulary, x: Form, first: int, second: int) -> Value:
    order = list(range(len(x.shape)))
    order[first], order[second] = order[second], order[first]
    return w.permute(x, order)


@means("view", "_unsafe_view", "_reshape_alias")
def _reshape(w: Vocabulary, x: Value, shape: Sequence[int], *_: Any) -> Value:
    if isinstance(shape, torch.dtype):
        raise UnsupportedModelError(f"the bits of {w.at} read as {shape} have no normal form")
    return w.reshape(x, shape)


@means("unsqueeze")
def _unsqueeze(w: Vocabulary, x: Form, axis: int) -> Value:
    place = axis % (len(x.shape) + 1)
    return w.reshape(x, (*x.shape[:place], 1, *x.shape[place:]))


@means("squeeze")
def _squeeze(w: Vocabulary, x: Form, axes: Any = None) -> Value:
    dims = len(x.shape)
    chosen = range(dims) if axes is None else [a % dims for a in spread(axes, 1)]
    return w.reshape(x, [n for k, n in enumerate(x.shape) if n != 1 or k not in chosen])


@means("expand")
def _expand(w: Vocabulary, x: Form, shape: Sequence[int], **_: Any) -> Value:
    offset = len(shape) - len(x.shape)
    wanted = [x.shape[k - offset] if n == -1 else n for k, n in enumerate(shape)]
    return w.spread(x, wanted)


@means("mean")
def _mean(w: Vocabulary, x: Form, axes: Any = None, keep: bool = False, **_: Any) -> Value:
    chosen = range(len(x.shape)) if axes is None else spread(axes, 1)
    return w.mean(x, tuple(chosen), keep=keep)


@means("sum")
def _total(w: Vocabulary, x: Any, axes: Any = None, keep: bool = False, **_: Any) -> Value:
    chosen = spread(range(len(x.shape)) if axes is None else axes, 1)
    count = math.prod(x.shape[axis] for axis in chosen)
    return w.mul(w.mean(x, chosen, keep=keep), float(count))


@means("linalg_vector_norm")
def _norm(
    w: Vocabulary,
    x: Form,
    power: float = 2,
    axes: Any = None,
    keep: bool = False,
    **_: Any,
) -> Value:
    if power != 2:
        raise UnsupportedModelError(f"the norm of power {power} at {w.at} has no normal form")
    return w.power(_total(w, w.power(x, 2.0), axes, keep), 0.5)


@means("amax")
def _amax(w: Vocabulary, x: Form, axes: Any = (), keep: bool = False) -> Value:
    at = tuple(
        sorted(
            axis % len(x.shape)
            for axis in spread(tuple(axes) if isinstance(axes, (list, tuple)) else axes, 1)
        )
    ) or range(len(x.shape))
    return w.build.operation("amax", [x], w.shape, axes=tuple(at), keep=keep)


@means("stack")
def _stack(w: Vocabulary, parts: Sequence[Value], axis: int = 0) -> Value:
    forms = [w.form(part) for part in parts]
    return w.cat([_unsqueeze(w, form, axis) for form in forms], axis)


@means("copy", "fill")
def _copied(w: Vocabulary, x: Value, by: Value, *_: Any) -> Value:
    shape = torch.as_tensor(x).shape if not isinstance(x, Form) else x.shape
    return w.spread(by, shape) if isinstance(by, Form) else torch.as_tensor(by).expand(shape)


@means("select_scatter")
def _select_scatter(w: Vocabulary, x: Value, by: Value, axis: int, index: int) -> Value:
    whole = w.form(x)
    place, size = axis % len(whole.shape), whole.shape[axis]
    row = w.reshape(by, (*whole.shape[:place], 1, *whole.shape[place + 1 :]))
    return w.overwrite(whole, row, place, index % size, index % size + 1, 1)


@means("select")
def _select(w: Vocabulary, x: Form, axis: int, index: int) -> Value:
    place = axis % len(x.shape)
    kept = w.take(x, place, [index % x.shape[place]])
    return w.reshape(kept, [n for k, n in enumerate(x.shape) if k != place])


@means("split", "split_with_sizes")
def _split(w: Vocabulary, x: Form, sizes: Any, axis: int = 0) -> list[Value]:
    whole = x.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, whole - k) for k in range(0, whole, sizes)]
    parts: list[Value] = []
    start = 0
    for size in sizes:
        parts.append(w.slice(x, axis, start, start + size, 1))
        start += size
    return parts


@means("repeat")
def _repeat(w: Vocabulary, x: Form, times: Sequence[int]) -> Form:
    if len(times) > len(x.shape):
        raise UnsupportedModelError(f"repeating along a new axis at {w.at} has no normal form")
    for axis, count in zip(range(-len(times), 0), times, strict=True):
        x = w.gather(x, axis, torch.arange(x.shape[axis]).repeat(count))
    return x


@means("index")
def _index(w: Vocabulary, x: Form, indices: Sequence[Any]) -> Value:
    chosen = [k for k, each in enumerate(indices) if each is not None]
    if len(chosen) != 1 or indices[chosen[0]].dtype is torch.bool:
        raise UnsupportedModelError(f"reading by several tables at {w.at} has no normal form")
    return w.gather(x, chosen[0], indices[chosen[0]])


@means("as_strided")
def _as_strided(
    w: Vocabulary, x: Form, size: Sequence[int], stride: Sequence[int], offset: int = 0
) -> Value:
    table = torch.arange(math.prod(x.shape)).as_strided(size, stride, offset or 0)
    return w.gather(w.form(w.reshape(x, (-1,))), 0, table)


@means("flip")
def _flip(w: Vocabulary, x: Form, axes: Sequence[int]) -> Value:
    for axis in axes:
        x = w.take(x, axis, range(x.shape[axis])[::-1])
    return x


@means("pad", "constant_pad_nd")
def _pad(
    w: Vocabulary, x: Form, flat: Sequence[int], mode: Any = "constant", value: Any = None
) -> Value:
    if not isinstance(mode, str):
        mode, value = "constant", mode
    pads = [(flat[k], flat[k + 1]) for k in range(0, len(flat), 2)][::-1]
    return w.pad(x, pads, mode, value or 0.0)


@means("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def _reflect(w: Vocabulary, x: Form, flat: Sequence[int]) -> Value:
    return _pad(w, x, flat, "reflect")


@means("replication_pad1d", "replication_pad2d", "replication_pad3d")
def _replicate(w: Vocabulary, x: Form, flat: Sequence[int]) -> Value:
    return _pad(w, x, flat, "replicate")
