"""Run two ONNX files side by side in ONNX Runtime, with a tolerance that is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reparam._optional import require
from reparam._spelling import advice
from reparam.errors import InputError, VerificationError
from reparam.fusing.onnx_samples import samples
from reparam.graph.onnx_inputs import open_sizes
from reparam.graph.onnx_nodes import sorted_model
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

    from onnx import ModelProto, TensorProto

__all__ = ["compare_onnx_files"]

_FACTOR = 8.0
"""How many times the original's own rounding error the fused model may differ by."""

_MOST = 0.25
"""Largest share of the original's largest result that may count as rounding."""

_ARITHMETIC = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization",
    "LayerNormalization", "GroupNormalization", "PRelu", "Add", "Sub", "Mul", "Div",
}  # fmt: skip
"""Operations whose constants are weights; others read sizes, bounds and factors of sizes."""

_PASS_ON = {
    "Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat",
    "Slice", "Split", "Expand", "DequantizeLinear",
}  # fmt: skip
"""Operations that weights go through on their way to arithmetic."""

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
            of 2, or 1, and the first of some sizes that runs where it leaves a dimension open.

    Raises:
        InputError: ONNX Runtime does not run the original, or the number of the original's results
            depends on rounding, so that there is nothing to compare.
        VerificationError: The two give results of other shapes.

    """
    feeds, expected = _first_run(reference, model, input_shapes or {})
    found = _Session(candidate).run(feeds)
    control = _rounding(reference, model, feeds, expected)
    if math.isinf(control):
        msg = (
            f"how many results {reference.name} gives depends on its rounding (as that of boxes "
            f"behind a non-maximum suppression does), so files cannot be compared by them; fuse "
            f"the net without that step{_no_comparison()}"
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
    _check_telling(reference, expected, control)
    scale = max((float(t.abs().max()) for t in expected if t.numel()), default=0.0)
    return Verdict(max_abs, max_abs / scale if scale else max_abs, _FACTOR * control, control)


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest absolute difference; infinite where outputs are of other shapes."""
    if [value.shape for value in expected] != [value.shape for value in found]:
        return math.inf
    return largest_difference(list(expected), list(found))


def _check_telling(reference: Path, expected: Sequence[Tensor], control: float) -> None:
    """Refuse a tolerance that errors could hide in."""
    largest = max((float(t.abs().max()) for t in expected if t.numel()), default=0.0)
    if _FACTOR * control > _MOST * largest:
        msg = (
            f"nothing can be shown for {reference.name}: rounding alone changes its results by up "
            f"to {control:.1e}, the largest of which is {largest:.1e}{_no_comparison()}"
        )
        raise VerificationError(msg)


def _rounding(
    reference: Path, model: ModelProto, feeds: Mapping[str, Tensor], expected: Sequence[Tensor]
) -> float:
    """How far rounding alone brings the original from itself.

    Noise is compared without optimisation on both sides: the runtime's optimiser transposes some
    constants, and would do so with those that are given for them a second time.
    """
    plain = _Session(reference, optimise=False).run(feeds)
    noisy = (
        _Session(reference, optimise=False, noise=_Noise(model, seed)).run(feeds)
        for seed in range(2)
    )
    return max(_difference(expected, plain), *(_difference(plain, other) for other in noisy))


def _first_run(
    path: Path, model: ModelProto, shapes: Shapes
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Make inputs on which the original runs."""
    try:
        session = _Session(path)
    except Exception as error:
        msg = f"ONNX Runtime does not load {path.name}: {_first_line(error)}{_no_comparison()}"
        raise InputError(msg) from error
    failure: tuple[dict[str, Tensor], Exception] | None = None
    for feeds in samples(model, shapes):
        try:
            return feeds, session.run(feeds)
        except Exception as error:  # noqa: BLE001 (ONNX Runtime's errors share no base class)
            failure = failure or (feeds, error)
    assert failure is not None  # noqa: S101 (there is at least one sample)
    tried = ", ".join(f"{name} {tuple(value.shape)}" for name, value in failure[0].items())
    msg = (
        f"ONNX Runtime does not run {path.name} on inputs of shape {tried}: "
        f"{_first_line(failure[1])}"
        f"{advice('. Give shapes that it takes with {input_shapes}', input_shapes=...)}"
        f"{_no_comparison()}"
    )
    raise InputError(msg) from failure[1]


def _no_comparison() -> str:
    return advice(", or write without this comparison with {check}", check=False)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


class _Noise:
    """The weights of a model, each changed by up to one unit in the last place."""

    def __init__(self, model: ModelProto, seed: int) -> None:
        self._model = model
        self._generator = torch.Generator().manual_seed(seed)
        self._read = _read_as_weights(model)

    def source(self, path: Path) -> str | bytes:
        """The file; or, where Constant nodes hold weights, a copy of it with these changed."""
        if not any(self._constants(self._model)) or bytes_of(self._model) > MOST_BYTES:
            return _source(path)
        twin: ModelProto = type(self._model)()
        twin.CopyFrom(self._model)
        open_sizes(twin)
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


def _read_as_weights(model: ModelProto) -> set[str]:
    """Names of what arithmetic reads, and of what that is made from without arithmetic."""
    read: set[str] = set()
    for node in reversed(sorted_model(model).graph.node):
        if node.op_type in _ARITHMETIC or (
            node.op_type in _PASS_ON and not read.isdisjoint(node.output)
        ):
            read.update(node.input)
    return read


def _is_weight(tensor: TensorProto) -> bool:
    return tensor.data_type in FLOATS and math.prod(tensor.dims) > 1


def _jittered(tensor: TensorProto, generator: torch.Generator) -> Tensor:
    value = to_torch(tensor)
    # In place, as it may be most of the memory that there is.
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    eps = torch.finfo(value.dtype).eps
    noise = torch.rand(value.shape, generator=generator, dtype=wide)
    return noise.mul_(2 * eps).add_(1 - eps).mul_(value).to(value.dtype)


class _Session:
    """A file in ONNX Runtime; sizes that it declares as -1 or 0 are open."""

    def __init__(self, path: Path, *, optimise: bool = True, noise: _Noise | None = None) -> None:
        runtime = require("onnxruntime", extra="deploy", purpose="comparing ONNX files")
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        if not optimise:
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(_BESIDE, str(path.parent.resolve()))
        # The session reads these where they are, so they have to live as long as it does.
        self._weights = [] if noise is None else list(noise.values(runtime))
        for name, value in self._weights:
            options.add_initializer(name, value)
        source = _source(path) if noise is None else noise.source(path)
        self._session = runtime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"]
        )

    def run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """Results for inputs by name."""
        values = self._session.run(None, {name: as_array(value) for name, value in feeds.items()})
        return [from_array(value) for value in values]


_BESIDE = "session.model_external_initializers_file_folder_path"
"""Where the runtime looks for weights that lie beside a file, of which it is given the content."""


def _source(path: Path) -> str | bytes:
    """The file; or, where it declares sizes that the runtime would insist on, its content."""
    model: ModelProto = onnx_module().load(str(path), format="protobuf", load_external_data=False)
    return model.SerializeToString() if open_sizes(model) else str(path)
