"""Compute what the program of a Core ML file says, in PyTorch: the check where Core ML cannot run.

The file's operations and numbers are read back by coremltools; each operation is computed as the
reference of its MIL (model intermediate language) operation sets defines it, in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from reparam.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_TYPES = {
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int32": torch.int32,
    "bool": torch.bool,
}


def run_program(function: Any, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Compute a function of a MIL program.

    Args:
        function: As coremltools reads it.
        inputs: Its inputs, in order.

    Raises:
        ExportError: It has an operation that is not known here.
    """
    values: dict[str, Any] = dict(zip(function.inputs, inputs, strict=True))
    for operation in function.operations:
        if operation.op_type == "const":
            values[operation.outputs[0].name] = _constant(operation.outputs[0].val)
            continue
        if operation.op_type not in _OPERATIONS:
            raise ExportError(
                f"the file has the operation {operation.op_type!r}, which cannot be computed here "
                "to check it, and Core ML runs on Apple's systems alone"
            )
        arguments = {
            key: [values[v.name] for v in found] if isinstance(found, list | tuple)
            else values[found.name]
            for key, found in operation.inputs.items()
            if found is not None
        }  # fmt: skip
        found = _OPERATIONS[operation.op_type](arguments)
        outputs = found if isinstance(found, list | tuple) else [found]
        for variable, value in zip(operation.outputs, outputs, strict=True):
            values[variable.name] = value
    return [values[variable.name] for variable in function.outputs]


def _constant(value: Any) -> Any:
    """A number, a text, or a tensor; floats in float32, whatever they are stored in."""
    if isinstance(value, str | bool | int | float):
        return value
    if not getattr(value, "ndim", 0):
        return value.item() if hasattr(value, "item") else value
    found = torch.from_numpy(value.copy())
    return found.float() if found.is_floating_point() else found


def _ints(value: Any) -> list[int]:
    return [int(v) for v in (value.tolist() if isinstance(value, torch.Tensor) else value)]


def _tensor(value: Any) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.tensor(value)


def _padding(a: Mapping[str, Any], window: Sequence[int], steps: Sequence[int]) -> list[int]:
    """The zeros to add, as torch.nn.functional.pad takes them."""
    kind, sizes = a.get("pad_type", "valid"), a["x"].shape[2:]
    if kind == "custom":
        return _last_first(_ints(a["pad"]))
    if kind not in ("same", "same_lower"):
        return [0] * 2 * len(sizes)
    pads = []
    for size, reach, step in zip(sizes, window, steps, strict=True):
        total = max(0, (-(-size // step) - 1) * step + reach - size)
        small, large = total // 2, total - total // 2
        pads += [small, large] if kind == "same" else [large, small]
    return _last_first(pads)


def _last_first(pads: Sequence[int]) -> list[int]:
    """Pairs of sizes, the last dimension first, as torch.nn.functional.pad takes them."""
    return [n for i in range(len(pads) - 2, -1, -2) for n in pads[i : i + 2]]


def _conv(a: Mapping[str, Any]) -> torch.Tensor:
    spatial = a["x"].dim() - 2
    strides, dilations = (_ints(a.get(key, [1] * spatial)) for key in ("strides", "dilations"))
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, a["weight"].shape[2:], strict=True)]
    x = functional.pad(a["x"], _padding(a, reach, strides))
    return _convolution(a, x, strides, dilations, transposed=False)


def _conv_transpose(a: Mapping[str, Any]) -> torch.Tensor:
    spatial = a["x"].dim() - 2
    strides, dilations = (_ints(a.get(key, [1] * spatial)) for key in ("strides", "dilations"))
    y = _convolution(a, a["x"], strides, dilations, transposed=True)
    pads = _ints(a["pad"]) if a.get("pad_type") == "custom" else [0] * 2 * spatial
    sizes = _ints(a["output_shape"])[-spatial:] if "output_shape" in a else None
    for axis in range(spatial):
        before, after = pads[2 * axis : 2 * axis + 2]
        length = sizes[axis] if sizes else y.shape[axis + 2] - before - after
        missing = before + length - y.shape[axis + 2]
        if missing > 0:  # positions that no input reaches hold the bias alone
            shape = list(y.shape)
            shape[axis + 2] = missing
            fill = a["bias"].view(1, -1, *[1] * spatial) if "bias" in a else torch.zeros(1)
            y = torch.cat([y, fill.expand(shape)], axis + 2)
        y = y.narrow(axis + 2, before, length)
    return y


def _convolution(
    a: Mapping[str, Any], x: torch.Tensor, strides: list[int], dilations: list[int], *,
    transposed: bool,
) -> torch.Tensor:  # fmt: skip
    none = [0] * len(strides)
    return torch.convolution(
        x, a["weight"], a.get("bias"), strides, none, dilations, transposed, none,
        int(a.get("groups", 1)),
    )  # fmt: skip


def _pool(kind: str) -> Callable[[Mapping[str, Any]], torch.Tensor]:
    def run(a: Mapping[str, Any]) -> torch.Tensor:
        window = _ints(a["kernel_sizes"])
        strides, x = _ints(a.get("strides", [1] * len(window))), a["x"]
        pads = _padding(a, window, strides)
        if a.get("ceil_mode", False):
            for axis, (size, reach, step) in enumerate(
                zip(reversed(x.shape[2:]), reversed(window), reversed(strides), strict=True)
            ):
                room = size + pads[2 * axis] + pads[2 * axis + 1] - reach
                pads[2 * axis + 1] += -room % step
        pooled = getattr(functional, f"{kind}_pool{len(window)}d")
        around = -torch.inf if kind == "max" else 0.0
        y: torch.Tensor = pooled(functional.pad(x, pads, value=around), window, strides)
        if a.get("exclude_padding_from_average", False):
            y = y / pooled(functional.pad(torch.ones_like(x), pads), window, strides)
        return y

    return run


def _reduce(name: str) -> Callable[[Mapping[str, Any]], torch.Tensor]:
    def run(a: Mapping[str, Any]) -> torch.Tensor:
        axes = _ints(a["axes"]) if "axes" in a else list(range(a["x"].dim()))
        found: torch.Tensor = getattr(torch, name)(a["x"], dim=axes, keepdim=bool(a["keep_dims"]))
        return found

    return run


def _slice(a: Mapping[str, Any]) -> torch.Tensor:
    x, dims = a["x"], a["x"].dim()
    steps = _ints(a["stride"]) if "stride" in a else [1] * dims
    masks = {
        key: _ints(a[key]) if key in a else [0] * dims
        for key in ("begin_mask", "end_mask", "squeeze_mask")
    }
    index: list[Any] = []
    for axis, (start, stop) in enumerate(zip(_ints(a["begin"]), _ints(a["end"]), strict=True)):
        if masks["squeeze_mask"][axis]:
            index.append(start)
            continue
        first = None if masks["begin_mask"][axis] else start
        last = None if masks["end_mask"][axis] else stop
        index.append(slice(first, last, steps[axis]))
    found: torch.Tensor = x[tuple(index)]
    return found


def _split(a: Mapping[str, Any]) -> list[torch.Tensor]:
    x, axis = a["x"], int(a["axis"])
    if "split_sizes" in a:
        return list(torch.split(x, _ints(a["split_sizes"]), axis))
    return list(torch.split(x, x.shape[axis] // int(a["num_splits"]), axis))


def _pad(a: Mapping[str, Any]) -> torch.Tensor:
    sizes, mode = _last_first(_ints(a["pad"])), a.get("mode", "constant")
    if mode in ("reflect", "replicate"):
        return functional.pad(a["x"], sizes, mode=mode)
    return functional.pad(a["x"], sizes, value=float(a.get("constant_val", 0.0)))


def _norm(a: Mapping[str, Any]) -> torch.Tensor:
    return functional.batch_norm(
        a["x"], a["mean"], a["variance"], a.get("gamma"), a.get("beta"), eps=float(a["epsilon"])
    )


def _layer_norm(a: Mapping[str, Any]) -> torch.Tensor:
    axes = _ints(a["axes"])
    mean = a["x"].mean(axes, keepdim=True)
    var = (a["x"] - mean).square().mean(axes, keepdim=True)
    y: torch.Tensor = (a["x"] - mean) * torch.rsqrt(var + float(a["epsilon"]))
    y = y * a.get("gamma", torch.ones(()))
    return y + _tensor(a.get("beta", 0.0))


def _matmul(a: Mapping[str, Any]) -> torch.Tensor:
    x, y = _tensor(a["x"]), _tensor(a["y"])
    x = x.mT if a.get("transpose_x", False) else x
    return x @ (y.mT if a.get("transpose_y", False) else y)


def _gelu(a: Mapping[str, Any]) -> torch.Tensor:
    if a.get("mode") == "SIGMOID_APPROXIMATION":
        y: torch.Tensor = a["x"] * torch.sigmoid(1.702 * a["x"])
        return y
    exact = a.get("mode", "EXACT") == "EXACT"
    return functional.gelu(a["x"], approximate="none" if exact else "tanh")


def _upsample(mode: str) -> Callable[[Mapping[str, Any]], torch.Tensor]:
    def run(a: Mapping[str, Any]) -> torch.Tensor:
        scale = [float(a["scale_factor_height"]), float(a["scale_factor_width"])]
        corners = {} if mode == "nearest" else {"align_corners": bool(a.get("align_corners", True))}
        return functional.interpolate(a["x"], scale_factor=scale, mode=mode, **corners)

    return run


def _cast(a: Mapping[str, Any]) -> torch.Tensor:
    """Rounding to float16 is rounding; the result is kept in float32."""
    found = _tensor(a["x"]).to(_TYPES[a["dtype"]])
    return found.float() if found.is_floating_point() else found


def _widened(a: Mapping[str, Any]) -> torch.Tensor:
    """Weights in integers, with a step and a zero for each slice along an axis, or for all."""
    weight = _tensor(a["quantized_data"]).float()
    sizes = [1] * weight.dim()
    sizes[int(a["axis"])] = -1
    step, zero = (_tensor(a[key]).float() for key in ("scale", "zero_point"))
    if step.dim():
        step, zero = step.reshape(sizes), zero.reshape(sizes if zero.dim() else [])
    found: torch.Tensor = (weight - zero) * step
    return found


def _unary(run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Mapping[str, Any]], Any]:
    return lambda a: run(_tensor(a["x"]))


def _binary(run: Callable[..., torch.Tensor]) -> Callable[[Mapping[str, Any]], Any]:
    return lambda a: run(_tensor(a["x"]), _tensor(a["y"]))


_OPERATIONS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    **{
        name: _unary(getattr(torch, name))
        for name in ("abs", "ceil", "cos", "erf", "exp", "floor", "round", "sign", "sin", "sigmoid",
                     "square", "sqrt", "tanh", "relu")
    },
    **{f"reduce_{name}": _reduce(run) for name, run in (
        ("max", "amax"), ("mean", "mean"), ("min", "amin"), ("sum", "sum"))},
    **{name: _binary(run) for name, run in (
        ("add", torch.add), ("equal", torch.eq), ("floor_div", torch.floor_divide),
        ("greater", torch.gt), ("greater_equal", torch.ge), ("less", torch.lt),
        ("less_equal", torch.le), ("maximum", torch.maximum), ("minimum", torch.minimum),
        ("mul", torch.mul), ("not_equal", torch.ne), ("pow", torch.pow), ("sub", torch.sub),
        ("real_div", torch.div), ("mod", torch.remainder))},
    "avg_pool": _pool("avg"),
    "batch_norm": _norm,
    "cast": _cast,
    "clip": lambda a: a["x"].clamp(a["alpha"], a["beta"]),
    "concat": lambda a: torch.cat([_tensor(v).reshape(-1) if not _tensor(v).dim() else v
                                   for v in a["values"]], int(a["axis"])),
    "clamped_relu": lambda a: functional.leaky_relu(a["x"], a["alpha"]).clamp(max=a["beta"]),
    "constexpr_affine_dequantize": _widened,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "crop": lambda a: _cropped(a["x"], _ints(a["crop_height"]), _ints(a["crop_width"])),
    "elu": lambda a: functional.elu(a["x"], float(a["alpha"])),
    "expand_dims": lambda a: _expanded(_tensor(a["x"]), _ints(a["axes"])),
    "fill": lambda a: torch.full(_ints(a["shape"]), a["value"]),
    "gather": lambda a: _gather(_tensor(a["x"]), _tensor(a["indices"]), int(a.get("axis", 0))),
    "gelu": _gelu,
    "identity": lambda a: a["x"],
    "layer_norm": _layer_norm,
    "leaky_relu": lambda a: functional.leaky_relu(a["x"], float(a["alpha"])),
    "linear": lambda a: functional.linear(a["x"], a["weight"], a.get("bias")),
    "log": lambda a: torch.log(a["x"] + float(a.get("epsilon", 0.0))),
    "matmul": _matmul,
    "max_pool": _pool("max"),
    "pad": _pad,
    "pixel_shuffle": lambda a: functional.pixel_shuffle(a["x"], int(a["upscale_factor"])),
    "pixel_unshuffle": lambda a: functional.pixel_unshuffle(a["x"], int(a["downscale_factor"])),
    "prelu": lambda a: functional.prelu(a["x"], a["alpha"]),
    "relu6": lambda a: functional.relu6(a["x"]),
    "reshape": lambda a: _reshaped(a["x"], _ints(a["shape"])),
    "rsqrt": lambda a: torch.rsqrt(a["x"] + float(a.get("epsilon", 0.0))),
    "select": lambda a: torch.where(_tensor(a["cond"]), _tensor(a["a"]), _tensor(a["b"])),
    "shape": lambda a: torch.tensor(a["x"].shape, dtype=torch.int32),
    "sigmoid_hard": lambda a: (a["alpha"] * a["x"] + a["beta"]).clamp(0, 1),
    "silu": lambda a: functional.silu(a["x"]),
    "slice_by_index": _slice,
    "softmax": lambda a: torch.softmax(a["x"], int(a["axis"])),
    "softplus": lambda a: functional.softplus(a["x"]),
    "split": _split,
    "squeeze": lambda a: torch.squeeze(a["x"], tuple(_ints(a["axes"]))),
    "stack": lambda a: torch.stack([_tensor(v) for v in a["values"]], int(a["axis"])),
    "thresholded_relu": lambda a: torch.where(a["x"] >= a["alpha"], a["x"], 0.0),
    "tile": lambda a: a["x"].repeat(_ints(a["reps"])),
    "transpose": lambda a: a["x"].permute(_ints(a["perm"])),
    "upsample_bilinear": _upsample("bilinear"),
    "upsample_nearest_neighbor": _upsample("nearest"),
}  # fmt: skip


def _expanded(x: torch.Tensor, axes: list[int]) -> torch.Tensor:
    for axis in sorted(a % (x.dim() + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


def _cropped(x: torch.Tensor, rows: list[int], columns: list[int]) -> torch.Tensor:
    height, width = x.shape[-2:]
    return x[..., rows[0] : height - rows[1], columns[0] : width - columns[1]]


def _gather(x: torch.Tensor, indices: torch.Tensor, axis: int) -> torch.Tensor:
    axis %= x.dim()
    found = x.index_select(axis, indices.reshape(-1).long() % x.shape[axis])
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _reshaped(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """A size of zero keeps what stands at its place."""
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)])
