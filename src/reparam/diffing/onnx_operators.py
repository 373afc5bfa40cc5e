"""What the operators of ONNX, and those that its optimizers write, mean in normal form."""

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

Given = Sequence[Any]
Attributes = dict[str, Any]
Handler = Callable[[Vocabulary, str, Given, Attributes], Any]
Kept = TypeVar("Kept", bound=Handler)

HANDLERS: dict[str, Handler] = {}
"""By the type of a node: called with its inputs (None for those left out) and attributes."""


def _is(*names: str) -> Callable[[Kept], Kept]:
    def register(handler: Kept) -> Kept:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def _pads(
    a: Attributes, x: Form, window: Sequence[int], stride: Sequence[int]
) -> list[tuple[int, int]]:
    auto = a.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((math.ceil(n / s) - 1) * s + k - n, 0)
            for n, k, s in zip(x.shape[2:], window, stride, strict=True)
        ]
        first = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in totals]
        return [(low, total - low) for low, total in zip(first, totals, strict=True)]
    flat = a.get("pads") or [0] * 2 * len(window)
    half = len(flat) // 2
    return list(zip(flat[:half], flat[half:], strict=True))


def _numbers(value: Any) -> list[int]:
    return [int(each) for each in torch.as_tensor(value).flatten().tolist()]


def _number(value: Any) -> float:
    return float(torch.as_tensor(value).flatten()[0])


# ------------------------------------------------------------------ arithmetic


@_is("Add")
def _add(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.add(g[0], g[1], at)


@_is("Sum")
def _sum(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    total, *rest = [each for each in g if each is not None]
    for each in rest:
        total = w.add(total, each, at)
    return total  # type: ignore[no-any-return]


@_is("Sub")
def _sub(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.add(g[0], g[1], at, -1.0)


@_is("Mul")
def _mul(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.mul(g[0], g[1], at)


@_is("Div")
def _div(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.div(g[0], g[1], at)


@_is("Neg")
def _neg(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.mul(g[0], -1.0, at)


@_is("Identity", "Dropout", "Cast", "CastLike")
def _same(_w: Vocabulary, _at: str, g: Given, _: Attributes) -> Value:
    return g[0]  # type: ignore[no-any-return]


@_is("MatMul")
def _matmul(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.matmul(g[0], g[1], at)


@_is("FusedMatMul")
def _fused_matmul(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    sides = [
        w.permute(x, (*range(_rank(x) - 2), -1, -2), at) if a.get(name) else x
        for x, name in zip(g[:2], ("transA", "transB"), strict=True)
    ]
    return w.mul(w.matmul(sides[0], sides[1], at), float(a.get("alpha", 1.0)), at)


@_is("Gemm")
def _gemm(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    x = w.permute(g[0], (1, 0), at) if a.get("transA") else g[0]
    y = w.permute(g[1], (1, 0), at) if a.get("transB") else g[1]
    product = w.matmul(x, y, at)
    if a.get("alpha", 1.0) != 1:
        product = w.mul(product, float(a["alpha"]), at)
    return product if g[2] is None else w.add(product, g[2], at, float(a.get("beta", 1.0)))


def _rank(value: Any) -> int:
    return len(value.shape)


# ------------------------------------------------------------------ layers


@_is("Conv", "FusedConv")
def _conv(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    x, weight = g[0], g[1]
    dims = len(x.shape) - 2
    stride = a.get("strides") or [1] * dims
    dilation = a.get("dilations") or [1] * dims
    window = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    value = w.conv(
        x, weight, g[2], at, stride=stride, padding=_pads(a, x, window, stride), dilation=dilation,
        groups=a.get("group", 1),
    )  # fmt: skip
    if g[3] is not None:
        value = w.add(value, g[3], at)
    return _activated(w, at, value, a)


def _activated(w: Vocabulary, at: str, value: Value, a: Attributes) -> Value:
    """The activation that ONNX Runtime's optimizer has put into a convolution."""
    kind = a.get("activation")
    numbers = a.get("activation_params") or []
    match kind:
        case None | "":
            return value
        case "Relu":
            return w.relu(value, at)
        case "Clip":
            return w.clip(value, numbers[0], numbers[1], at)
        case "LeakyRelu":
            return w.pointwise("leaky_relu", value, at, slope=float(numbers[0]))
        case "HardSigmoid":
            return w.hardsigmoid(value, at, numbers[0], numbers[1])
        case "Sigmoid" | "Tanh":
            return w.pointwise(kind.lower(), value, at)
    raise UnsupportedModelError(f"the activation {kind} inside of {at} has no normal form")


@_is("ConvTranspose")
def _conv_transpose(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    dims = len(g[0].shape) - 2
    pads = a.get("pads") or [0] * 2 * dims
    if (
        pads[:dims] != pads[dims:]
        or a.get("output_shape")
        or a.get("auto_pad", "NOTSET") != "NOTSET"
    ):
        raise UnsupportedModelError(f"the padding of {at} has no normal form")
    return w.conv_transpose(
        g[0], g[1], g[2], at, stride=a.get("strides") or [1] * dims, padding=pads[:dims],
        output_padding=a.get("output_padding") or [0] * dims, groups=a.get("group", 1),
        dilation=a.get("dilations") or [1] * dims,
    )  # fmt: skip


@_is("BatchNormalization")
def _batch_norm(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.batch_norm(g[0], g[1], g[2], g[3], g[4], a.get("epsilon", 1e-5), at)


@_is("InstanceNormalization")
def _instance_norm(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.group_norm(g[0], g[0].shape[1], g[1], g[2], a.get("epsilon", 1e-5), at)


@_is("GroupNormalization")
def _group_norm(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.group_norm(g[0], a["num_groups"], g[1], g[2], a.get("epsilon", 1e-5), at)


@_is("LayerNormalization")
def _layer_norm(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    axes = range(a.get("axis", -1) % len(g[0].shape), len(g[0].shape))
    return w.layer_norm(g[0], axes, g[1], g[2], a.get("epsilon", 1e-5), at)


@_is("AveragePool")
def _average_pool(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    kernel = a["kernel_shape"]
    stride = a.get("strides") or [1] * len(kernel)
    return w.average_pool(
        g[0], at, kernel=kernel, stride=stride, pads=_pads(a, g[0], kernel, stride),
        ceil=bool(a.get("ceil_mode")), count_pads=bool(a.get("count_include_pad")),
    )  # fmt: skip


@_is("MaxPool")
def _max_pool(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    kernel = a["kernel_shape"]
    stride = a.get("strides") or [1] * len(kernel)
    dilation = a.get("dilations") or [1] * len(kernel)
    window = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    return w.max_pool(
        g[0], at, kernel=kernel, stride=stride, pads=_pads(a, g[0], window, stride),
        dilation=dilation, ceil=bool(a.get("ceil_mode")),
    )  # fmt: skip


@_is("GlobalAveragePool")
def _global_average(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.mean(g[0], range(2, len(g[0].shape)), at, keep=True)


@_is("GlobalMaxPool")
def _global_max(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.amax(g[0], range(2, len(g[0].shape)), at, keep=True)


@_is("Resize", "Upsample")
def _resize(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    x = g[0]
    # Upsample has scales as its second input, Resize as its third, or sizes as its fourth.
    sizes, scales = g[3], g[1] if g[2] is None else g[2]
    if sizes is not None and torch.as_tensor(sizes).numel():
        size = _numbers(sizes)
    else:
        given = torch.as_tensor(scales).tolist()
        size = [int(n * s) for n, s in zip(x.shape, given, strict=True)]
    how = a.get("coordinate_transformation_mode", "half_pixel")
    mode = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[
        a.get("mode", "nearest")
    ]
    whole = all(m % n == 0 for n, m in zip(x.shape[2:], size[2:], strict=True))
    if mode == "nearest" and not whole:
        raise UnsupportedModelError(f"nearest resizing by a fraction at {at} has no normal form")
    if mode != "nearest" and how not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise UnsupportedModelError(f"resizing by {how} at {at} has no normal form")
    return w.upsample(x, size[2:], mode, at, align=how == "align_corners")


# ------------------------------------------------------------------ activations


@_is("Relu")
def _relu(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.relu(g[0], at)


@_is("Clip")
def _clip(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    low = a.get("min", -math.inf) if g[1] is None else _number(g[1])
    high = a.get("max", math.inf) if g[2] is None else _number(g[2])
    return w.clip(g[0], low, high, at)


@_is("Max")
def _maximum(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    if isinstance(g[1], Tensor) and g[1].numel() == 1:
        return w.clip(g[0], _number(g[1]), math.inf, at)
    raise UnsupportedModelError(f"the maximum of two values at {at} has no normal form")


@_is("Min")
def _minimum(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    if isinstance(g[1], Tensor) and g[1].numel() == 1:
        return w.clip(g[0], -math.inf, _number(g[1]), at)
    raise UnsupportedModelError(f"the minimum of two values at {at} has no normal form")


@_is("Gelu", "BiasGelu", "FastGelu")
def _gelu(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.gated(
        g[0] if g[1] is None else w.add(g[0], g[1], at),
        "normal_tanh" if a.get("approximate") == "tanh" else "normal",
        at,
    )


@_is("QuickGelu")
def _quick_gelu(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    inner = w.mul(g[0], float(a.get("alpha", 1.702)), at)
    return w.mul(g[0], w.pointwise("sigmoid", inner, at), at)


@_is("HardSwish")
def _hardswish(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.gated(g[0], "hardsigmoid", at)


@_is("Swish")
def _swish(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.gated(g[0], "sigmoid", at)


@_is("Mish")
def _mish(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.gated(g[0], "softplus_tanh", at)


@_is("HardSigmoid")
def _hardsigmoid(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.hardsigmoid(g[0], at, a.get("alpha", 0.2), a.get("beta", 0.5))


@_is("LeakyRelu")
def _leaky_relu(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.pointwise("leaky_relu", g[0], at, slope=float(a.get("alpha", 0.01)))


@_is("Elu")
def _elu(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.pointwise("elu", g[0], at, alpha=float(a.get("alpha", 1.0)))


@_is("PRelu")
def _prelu(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    slopes = w.build.constant(Sized.of(g[1].flatten()), at)
    return w.build.operation("prelu", [g[0], slopes], g[0].shape, at)


@_is("Softmax")
def _softmax(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.pointwise("softmax", g[0], at, axis=a.get("axis", -1) % len(g[0].shape))


@_is("Pow")
def _pow(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.power(g[0], _number(g[1]), at)


@_is("Sqrt")
def _sqrt(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.power(g[0], 0.5, at)


@_is("Reciprocal")
def _reciprocal(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.power(g[0], -1.0, at)


def _plain(name: str) -> Handler:
    return lambda w, at, g, _: w.pointwise(name, g[0], at)


HANDLERS.update(
    {
        name: _plain(name.lower())
        for name in ("Abs", "Erf", "Exp", "Log", "Sigmoid", "Softplus", "Tanh")
    }
)


# ------------------------------------------------------------------ layout


@_is("Transpose")
def _transpose(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.permute(g[0], a.get("perm") or range(len(g[0].shape))[::-1], at)


@_is("Reshape")
def _reshape(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    sizes = _numbers(g[1])
    if not a.get("allowzero"):
        sizes = [g[0].shape[k] if n == 0 else n for k, n in enumerate(sizes)]
    return w.reshape(g[0], sizes, at)


@_is("Flatten")
def _flatten(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    axis = a.get("axis", 1) % (len(g[0].shape) + 1)
    return w.reshape(g[0], (math.prod(g[0].shape[:axis]), -1), at)


@_is("Unsqueeze")
def _unsqueeze(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    axes = a.get("axes") or _numbers(g[1])
    shape = list(g[0].shape)
    for axis in sorted(axis % (len(g[0].shape) + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return w.reshape(g[0], shape, at)


@_is("Squeeze")
def _squeeze(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    axes = a.get("axes") or (range(len(g[0].shape)) if g[1] is None else _numbers(g[1]))
    gone = {axis % len(g[0].shape) for axis in axes}
    return w.reshape(g[0], [n for k, n in enumerate(g[0].shape) if k not in gone or n != 1], at)


@_is("Expand")
def _expand(w: Vocabulary, at: str, g: Given, _: Attributes) -> Value:
    return w.spread(g[0], torch.broadcast_shapes(g[0].shape, tuple(_numbers(g[1]))), at)


def _axes(g: Given, a: Attributes) -> list[int]:
    if a.get("axes"):
        return list(a["axes"])
    return list(range(len(g[0].shape))) if g[1] is None else _numbers(g[1])


@_is("ReduceMean")
def _mean(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.mean(g[0], _axes(g, a), at, keep=bool(a.get("keepdims", 1)))


@_is("ReduceSum")
def _total(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    axes = _axes(g, a)
    count = math.prod(g[0].shape[axis] for axis in axes)
    return w.mul(w.mean(g[0], axes, at, keep=bool(a.get("keepdims", 1))), float(count), at)


@_is("ReduceL2")
def _norm(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.power(_total(w, at, [w.power(g[0], 2.0, at), *g[1:]], a), 0.5, at)


@_is("ReduceMax")
def _amax(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.amax(g[0], _axes(g, a), at, keep=bool(a.get("keepdims", 1)))


@_is("Concat")
def _concat(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    return w.cat([each for each in g if each is not None], a["axis"], at)


@_is("Split")
def _split(w: Vocabulary, at: str, g: Given, a: Attributes) -> list[Value]:
    axis = a.get("axis", 0)
    whole = g[0].shape[axis]
    sizes = a.get("split") or (None if g[1] is None else _numbers(g[1]))
    if sizes is None:
        each = -(-whole // a["num_outputs"])
        sizes = [min(each, whole - k) for k in range(0, whole, each)]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [
        w.slice(g[0], axis, start, start + size, 1, at)
        for start, size in zip(starts, sizes, strict=True)
    ]


@_is("Slice")
def _slice(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    starts = a.get("starts") or _numbers(g[1])
    ends = a.get("ends") or _numbers(g[2])
    axes = a.get("axes") or (range(len(starts)) if g[3] is None else _numbers(g[3]))
    steps = [1] * len(starts) if g[4] is None else _numbers(g[4])
    value: Form = g[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            raise UnsupportedModelError(f"a slice that runs backwards at {at} has no normal form")
        value = w.slice(value, axis, start, end, step, at)
    return value


@_is("Tile")
def _tile(w: Vocabulary, at: str, g: Given, _: Attributes) -> Form:
    value: Form = g[0]
    for axis, count in enumerate(_numbers(g[1])):
        value = w.gather(value, axis, torch.arange(value.shape[axis]).repeat(count), at)
    return value


@_is("Gather")
def _gather(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    if isinstance(g[1], Form):
        raise UnsupportedModelError(f"gathering by a computed table at {at} has no normal form")
    return w.gather(g[0], a.get("axis", 0), torch.as_tensor(g[1]), at)


@_is("ScatterND")
def _scatter_nd(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    x, table = w.form(g[0], at), torch.as_tensor(g[1])
    depth = table.shape[-1]
    shape = x.shape[:depth]
    sizes = torch.tensor(shape)
    flat = (table.long() % sizes).reshape(-1, depth)
    written = torch.zeros(shape, dtype=torch.bool)
    written[flat.unbind(1)] = True
    slabs = [k for k in range(depth) if _is_slab(written, k)]
    if a.get("reduction", "none") != "none" or not slabs:
        raise UnsupportedModelError(f"ScatterND at {at} writes no whole slices")
    axis = slabs[0]
    rows = written.movedim(axis, 0).reshape(shape[axis], -1)
    index = rows[:, 0].nonzero().flatten().tolist()
    by = g[2]
    if not isinstance(by, Form):
        whole = torch.zeros(x.shape, dtype=torch.float64)
        whole[flat.unbind(1)] = torch.as_tensor(by).double().reshape(-1, *x.shape[depth:])
        by = whole.index_select(axis, torch.tensor(index))
    elif depth > 1 or flat.flatten().tolist() != index:
        raise UnsupportedModelError(f"ScatterND at {at} writes in an order of its own")
    if index != list(range(index[0], index[-1] + 1)):
        raise UnsupportedModelError(f"ScatterND at {at} writes positions that are apart")
    return w.overwrite(x, by, axis, index[0], index[-1] + 1, 1, at)


def _is_slab(written: Tensor, axis: int) -> bool:
    """Whether along this axis, positions are written either everywhere or nowhere."""
    rows = written.movedim(axis, 0).reshape(written.shape[axis], -1)
    return bool((rows == rows[:, :1]).all())


@_is("SplitToSequence")
def _split_to_sequence(w: Vocabulary, at: str, g: Given, a: Attributes) -> Any:
    # One size for every part, or one for each; the sequence is a single result.
    whole, axis = g[0].shape[a.get("axis", 0)], a.get("axis", 0)
    sizes = [1] * whole if g[1] is None else _numbers(g[1])
    if g[1] is not None and not torch.as_tensor(g[1]).dim():
        sizes = [min(sizes[0], whole - k) for k in range(0, whole, sizes[0])]
    return [_split(w, at, [g[0], None], {"axis": axis, "split": sizes})]


@_is("SequenceAt")
def _sequence_at(_w: Vocabulary, _at: str, g: Given, _: Attributes) -> Value:
    return g[0][_numbers(g[1])[0]]  # type: ignore[no-any-return]


@_is("DepthToSpace")
def _depth_to_space(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    if a.get("mode", "DCR") != "CRD":
        raise UnsupportedModelError(f"DepthToSpace by rows at {at} has no normal form")
    return w.pixel_shuffle(g[0], a["blocksize"], at)


@_is("Pad")
def _pad(w: Vocabulary, at: str, g: Given, a: Attributes) -> Value:
    flat = a.get("pads") or _numbers(g[1])
    half = len(flat) // 2
    pads = list(zip(flat[:half], flat[half:], strict=True))
    if g[3] is not None:
        axes = _numbers(g[3])
        full = [(0, 0)] * len(g[0].shape)
        for axis, pair in zip(axes, pads, strict=True):
            full[axis] = pair
        pads = full
    if any(any(pair) for pair in pads[:2]):
        raise UnsupportedModelError(f"padding of batch or channels at {at} has no normal form")
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    value = a.get("value", 0.0) if g[2] is None else _number(g[2])
    return w.pad(g[0], pads[2:], mode[a.get("mode", "constant")], value, at)
