"""Run two ONNX files side by side in ONNX Runtime, with a tolerance that is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reparam._optional import require
from reparam.errors import InputError, VerificationError
from reparam.graph.onnx_tensors import (
    FLOATS,
    MOST_BYTES,
    as_array,
    bytes_of,
    constant_tensors,
    from_array,
    from_torch,
    onnx_module,
    to_torch,
)
from reparam.verifying import Verdict, largest_difference

if TYPE_CHECKING:
    from types import ModuleType

    from onnx import ModelProto, TensorProto, ValueInfoProto

__all__ = ["compare_onnx_files"]

_FACTOR = 8.0
"""How many times the original's own rounding error the fused model may differ by."""

_ARITHMETIC = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization",
    "LayerNormalization", "GroupNormalization", "PRelu", "Add", "Sub", "Mul", "Div",
}  # fmt: skip
"""Operations whose constants are weights; others read sizes, bounds and factors of sizes."""

_BATCH = 2
_SIZES = (64, 224)
"""Sizes to try, in turn, for dimensions that the file leaves open."""

Shapes = Mapping[str, Sequence[int]]


def compare_onnx_files(
    reference: Path, candidate: Path, model: ModelProto, input_shapes: Shapes | None = None
) -> Verdict:
    """Run both files on the same random inputs.

    The tolerance is not guessed: it is 8 times the largest of three measured rounding errors of the
    original: its difference from itself with the runtime's graph optimisations switched off, and
    from itself with weights that are changed by up to one unit in the last place, two times anew.

    Args:
        reference: The original file.
        candidate: The fused file.
        model: The original, with its weights.
        input_shapes: Shapes of inputs by name. Otherwise what the file says is taken, with a batch
            of 2 and the first of some sizes that runs where it leaves a dimension open.

    Raises:
        InputError: ONNX Runtime does not run the original, or the number of the original's results
            depends on rounding, so that there is nothing to compare.
        VerificationError: The two give results of other shapes.

    """
    feeds, expected = _first_run(reference, model, input_shapes or {})
    found = _run(candidate, feeds)
    controls = [_run(reference, feeds, optimise=False)]
    controls += [_run(reference, feeds, noisy=_Noise(model, seed)) for seed in range(2)]
    control = max(_difference(expected, outputs) for outputs in controls)
    if math.isinf(control):
        msg = (
            f"how many results {reference.name} gives depends on its rounding (as that of boxes "
            f"behind a non-maximum suppression does), so files cannot be compared by them; fuse "
            f"the net without that step, or write without this comparison with check=False"
        )
        raise InputError(msg)
    shapes = [[tuple(value.shape) for value in values] for values in (expected, found)]
    if shapes[0] != shapes[1]:
        msg = (
            f"{candidate.name} gives results of the shapes {shapes[1]}, where {reference.name} "
            f"gives {shapes[0]}"
        )
        raise VerificationError(msg)
    max_abs = _difference(expected, found)
    scale = max((float(t.abs().max()) for t in expected if t.numel()), default=0.0)
    return Verdict(max_abs, max_abs / scale if scale else max_abs, _FACTOR * control, control)


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest absolute difference; infinite where outputs are of other shapes."""
    if [value.shape for value in expected] != [value.shape for value in found]:
        return math.inf
    return largest_difference(list(expected), list(found))


def _first_run(
    path: Path, model: ModelProto, shapes: Shapes
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Make inputs on which the original runs."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    unknown = sorted(set(shapes) - {value.name for value in inputs})
    if unknown:
        names = ", ".join(repr(value.name) for value in inputs)
        msg = f"{path.name} has no input {unknown[0]!r}; its inputs are {names}"
        raise InputError(msg)
    failure: Exception | None = None
    for size in _SIZES:
        feeds = {v.name: _sample(v, shapes.get(v.name), size) for v in inputs}
        try:
            return feeds, _run(path, feeds)
        except Exception as error:  # noqa: BLE001 (ONNX Runtime's errors share no base class)
            failure = error
    tried = ", ".join(f"{name} {tuple(value.shape)}" for name, value in feeds.items())
    why = str(failure).strip().partition("\n")[0]
    msg = (
        f"ONNX Runtime does not run {path.name} on inputs of shape {tried}: {why}. Give shapes "
        f"that it takes with input_shapes, or write without this comparison with check=False"
    )
    raise InputError(msg) from failure


def _sample(value: ValueInfoProto, shape: Sequence[int] | None, size: int) -> Tensor:
    kind = value.type.tensor_type
    if not kind.elem_type:
        msg = f"the input {value.name!r} is no tensor; write without a comparison with check=False"
        raise InputError(msg)
    if shape is None:
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
        shape = [s or (size if axis else _BATCH) for axis, s in enumerate(sizes)]
    generator = torch.Generator().manual_seed(0)
    if kind.elem_type in FLOATS:
        return torch.randn(tuple(shape), generator=generator).to(FLOATS[kind.elem_type])
    array = torch.randint(0, 2, tuple(shape), generator=generator).numpy()
    helper = onnx_module("onnx.helper")
    return from_array(array.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type)))


class _Noise:
    """The weights of a model, each changed by up to one unit in the last place."""

    def __init__(self, model: ModelProto, seed: int) -> None:
        self._model = model
        self._generator = torch.Generator().manual_seed(seed)
        self._read = {
            name for node in model.graph.node if node.op_type in _ARITHMETIC for name in node.input
        }

    def source(self, path: Path) -> str | bytes:
        """The file; or, where Constant nodes hold weights, a copy of it with these changed."""
        if not any(self._constants(self._model)) or bytes_of(self._model) > MOST_BYTES:
            return str(path)
        twin: ModelProto = type(self._model)()
        twin.CopyFrom(self._model)
        for tensor in self._constants(twin):
            value = _jittered(tensor, self._generator)
            tensor.CopyFrom(from_torch(value, tensor.name))
        content: bytes = twin.SerializeToString()
        return content

    def values(self, runtime: ModuleType) -> Iterator[tuple[str, Any]]:
        """Names and values of the initializers, in the runtime's own form."""
        for tensor in self._model.graph.initializer:
            if not (tensor.name in self._read and _is_weight(tensor)):
                continue
            value = _jittered(tensor, self._generator)
            # numpy has no bfloat16 of its own; the runtime is told the type and takes the bits.
            bits = value.view(torch.int16) if value.dtype == torch.bfloat16 else value
            yield (
                tensor.name,
                runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(
                    as_array(bits), tensor.data_type
                ),
            )

    def _constants(self, model: ModelProto) -> Iterator[TensorProto]:
        return (t for n, t in constant_tensors(model) if n in self._read and _is_weight(t))


def _is_weight(tensor: TensorProto) -> bool:
    return tensor.data_type in FLOATS and math.prod(tensor.dims) > 1


def _jittered(tensor: TensorProto, generator: torch.Generator) -> Tensor:
    value = to_torch(tensor)
    # In place, as it may be most of the memory that there is.
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    eps = torch.finfo(value.dtype).eps
    noise = torch.rand(value.shape, generator=generator, dtype=wide)
    return noise.mul_(2 * eps).add_(1 - eps).mul_(value).to(value.dtype)


def _run(
    path: Path, feeds: Mapping[str, Tensor], *, optimise: bool = True, noisy: _Noise | None = None
) -> list[Tensor]:
    runtime = require("onnxruntime", extra="deploy", purpose="comparing ONNX files")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    if not optimise:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # The session reads these where they are, so they have to live as long as it does.
    weights = [] if noisy is None else list(noisy.values(runtime))
    for name, value in weights:
        options.add_initializer(name, value)
    source = str(path) if noisy is None else noisy.source(path)
    session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: as_array(value) for name, value in feeds.items()})
    return [from_array(value) for value in outputs]
