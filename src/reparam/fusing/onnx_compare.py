"""Run two ONNX files side by side in ONNX Runtime, with a tolerance that is measured."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reparam._support.optional import require
from reparam._support.spelling import advice
from reparam.errors import InputError, VerificationError
from reparam.frontends.onnx.inputs import open_sizes
from reparam.frontends.onnx.nodes import remove_bounds, sorted_model
from reparam.frontends.onnx.tensors import (
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
from reparam.fusing.onnx_samples import samples
from reparam.verifying import (
    Difference,
    NothingShownWarning,
    Verdict,
    constant_outputs,
    differences,
    judge,
    other_inputs,
)

if TYPE_CHECKING:
    from types import ModuleType

    from onnx import ModelProto, TensorProto

_FACTOR = 8.0
"""How many times the original's own rounding error the fused model may differ by."""

_MOST = 0.25
"""Largest share of the original's largest result that may count as rounding."""

_ARITHMETIC = {
    "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization",
    "LayerNormalization", "GroupNormalization", "PRelu", "Add", "Sub", "Mul", "Div",
}  # fmt: skip
"""Operations whose constants are weights; others read sizes, bounds and factors of sizes."""

_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"}

_PASS_ON = {
    "Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Concat",
    "Slice", "Split", "Expand", "DequantizeLinear",
}  # fmt: skip
"""Operations that weights go through on their way to arithmetic."""

Shapes = Mapping[str, Sequence[int]]
Feeds = Mapping[str, Tensor]


def compare_onnx_files(
    reference: Path, candidate: Path, model: ModelProto, input_shapes: Shapes | None = None
) -> Verdict:
    """Run both files on the same random inputs.

    The tolerance is not guessed: it is 8 times the largest of three measured rounding errors of the
    original: its difference from itself with the runtime's graph optimisations switched off, and
    from itself with weights that are changed by up to one unit in the last place, two times anew.
    Outputs are judged each by its own. One that does not change with the inputs, as behind a
    saturated sigmoid, is compared on other inputs, too, and before such functions.

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

    Warns:
        NothingShownWarning: No output changes with the inputs.

    """
    feeds, expected = _first_run(reference, model, input_shapes or {})
    verdict, rounding = _judged(reference, candidate, model, feeds, expected)
    unsound = _unsound(model)
    if unsound is not None:
        found = "" if verdict.problem is None else f", and {verdict.problem}"
        return replace(verdict, problem=f"{unsound}{found}")
    if not verdict.ok:
        return verdict
    session = _Session(reference)
    constant = constant_outputs(session.run, feeds, expected, rounding)
    for others, bounded in _attempts(feeds) if constant else ():
        session = _Session(reference, bounded=bounded)
        outputs = session.run(others)
        elsewhere, rounding = _judged(reference, candidate, model, others, outputs, bounded=bounded)
        if not elsewhere.ok and elsewhere.problem is None:
            return elsewhere
        constant &= constant_outputs(session.run, others, outputs, rounding)
        if not constant:
            break
    if len(constant) == sum(1 for value in expected if value.numel()):
        warnings.warn(
            f"the two files agree, and no output of {reference.name} changes with its inputs by "
            f"more than rounding does, so that nothing was shown",
            NothingShownWarning,
            stacklevel=2,
        )
    return verdict


def _attempts(feeds: Feeds) -> Iterator[tuple[Feeds, bool]]:
    """Other inputs, and the same ones with the bounds of activations taken off."""
    yield from ((others, True) for others in other_inputs(feeds))
    yield feeds, False


def _judged(
    reference: Path, candidate: Path, model: ModelProto, feeds: Feeds, expected: list[Tensor],
    *, bounded: bool = True,
) -> tuple[Verdict, list[float]]:  # fmt: skip
    """Compare the files on some inputs: the worst output's verdict, and each output's tolerance."""
    found = _Session(candidate, bounded=bounded).run(feeds)
    controls = _rounding(reference, model, feeds, expected, bounded=bounded)
    if any(math.isinf(control.max_abs) for control in controls):
        msg = (
            f"how many results {reference.name} gives depends on its rounding (as that of boxes "
            f"behind a non-maximum suppression does), so files cannot be compared by them; fuse "
            f"the net without that step{no_comparison()}"
        )
        raise InputError(msg)
    shapes = [[tuple(value.shape) for value in values] for values in (expected, found)]
    if shapes[0] != shapes[1]:
        msg = (
            f"{candidate.name} gives results of the shapes {shapes[1]}, where {reference.name} "
            f"gives {shapes[0]}"
        )
        raise VerificationError(msg)
    verdicts = [
        _telling(judge([left], [right], control, factor=_FACTOR), left)
        for left, right, control in zip(expected, found, controls, strict=True)
        if left.numel()
    ]
    empty = judge(expected, found, Difference())
    worst = max(verdicts, key=lambda v: (not v.ok, v.max_abs / (v.tolerance or 1.0)), default=empty)
    return worst, [_FACTOR * control.max_abs for control in controls]


def _telling(verdict: Verdict, expected: Tensor) -> Verdict:
    """A verdict whose tolerance could hide errors shows nothing."""
    largest = float(expected.abs().max()) if expected.is_floating_point() else math.inf
    if verdict.problem is not None or verdict.tolerance <= _MOST * largest:
        return verdict
    problem = (
        f"rounding alone changes results by up to {verdict.control:.1e}, where the largest one is "
        f"{largest:.1e}"
    )
    return replace(verdict, problem=problem)


def _unsound(model: ModelProto) -> str | None:
    """Name the first weight of a layer with a number that is not finite."""
    layers = (node for node in model.graph.node if node.op_type in _LAYERS)
    read = {name for node in layers for name in node.input}
    for tensor in model.graph.initializer:
        weight = tensor.name in read and tensor.data_type in FLOATS
        if weight and not bool(to_torch(tensor).isfinite().all()):
            return f"the weight {tensor.name} has numbers that are not finite"
    return None


def _rounding(
    reference: Path, model: ModelProto, feeds: Feeds, expected: list[Tensor], *, bounded: bool
) -> list[Difference]:
    """How far rounding alone brings each output of the original from itself.

    Noise is compared without optimisation on both sides: the runtime's optimiser transposes some
    constants, and would do so with those that are given for them a second time.
    """
    plain = _Session(reference, optimise=False, bounded=bounded).run(feeds)
    pairs = [(expected, plain)]
    for seed in range(2):
        noisy = _Session(reference, optimise=False, bounded=bounded, noise=_Noise(model, seed))
        pairs.append((plain, noisy.run(feeds)))
    worst = [Difference()] * len(expected)
    for left, right in pairs:
        apart = (differences([a], [b]) for a, b in zip(left, right, strict=True))
        worst = [known.worse(other) for known, other in zip(worst, apart, strict=True)]
    return worst


def _first_run(
    path: Path, model: ModelProto, shapes: Shapes
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Make inputs on which the original runs."""
    try:
        session = _Session(path)
    except Exception as error:
        msg = f"ONNX Runtime does not load {path.name}: {_first_line(error)}{no_comparison()}"
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
        f"{no_comparison()}"
    )
    raise InputError(msg) from failure[1]


def no_comparison() -> str:
    """Advice to do without, where that is on offer."""
    return advice(", or write without this comparison with {check}", check=False)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


class _Noise:
    """The weights of a model, each changed by up to one unit in the last place."""

    def __init__(self, model: ModelProto, seed: int) -> None:
        self._model = model
        self._generator = torch.Generator().manual_seed(seed)
        self._read = _read_as_weights(model)

    def source(self, path: Path, *, bounded: bool) -> str | bytes:
        """The file; or, where Constant nodes hold weights, a copy of it with these changed."""
        if not any(self._constants(self._model)) or bytes_of(self._model) > MOST_BYTES:
            return _source(path, bounded=bounded)
        twin: ModelProto = type(self._model)()
        twin.CopyFrom(self._model)
        _prepare(twin, bounded=bounded)
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
    """A file in ONNX Runtime, with bounds of activations or without.

    Sizes that it declares as -1 or 0 are open.
    """

    def __init__(
        self, path: Path, *, optimise: bool = True, noise: _Noise | None = None,
        bounded: bool = True,
    ) -> None:  # fmt: skip
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
        read = _source if noise is None else noise.source
        self._session = runtime.InferenceSession(
            read(path, bounded=bounded), options, providers=["CPUExecutionProvider"]
        )

    def run(self, feeds: Feeds) -> list[Tensor]:
        """Results for inputs by name."""
        values = self._session.run(None, {name: as_array(value) for name, value in feeds.items()})
        return [from_array(value) for value in values]


_BESIDE = "session.model_external_initializers_file_folder_path"
"""Where the runtime looks for weights that lie beside a file, of which it is given the content."""


def _source(path: Path, *, bounded: bool) -> str | bytes:
    """The file; or, where it has to be another than it is on disk, its content."""
    model: ModelProto = onnx_module().load(str(path), format="protobuf", load_external_data=False)
    return model.SerializeToString() if _prepare(model, bounded=bounded) else str(path)


def _prepare(model: ModelProto, *, bounded: bool) -> bool:
    """Open the sizes that the runtime would insist on; was anything changed?"""
    opened = open_sizes(model)
    return (not bounded and remove_bounds(model)) or opened
