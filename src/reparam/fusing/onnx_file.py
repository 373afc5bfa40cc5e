"""Fuse an ONNX file into another one, which is compared with the first before it is written."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from reparam._support.files import atomic_path
from reparam.errors import InputError, VerificationError
from reparam.frontends.onnx.inputs import freeze_inputs as frozen
from reparam.frontends.onnx.tensors import MOST_BYTES, bytes_of, onnx_module
from reparam.frontends.onnx.valid import check_readable
from reparam.fusing.onnx_compare import compare_onnx_files, no_comparison
from reparam.fusing.onnx_cutting import asked_onnx
from reparam.fusing.plans import plan as plan_model
from reparam.verifying import Verdict

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

    from reparam.fusing.asked import Fixed, Outputs
    from reparam.fusing.chosen import Where
    from reparam.fusing.driver import Plan

_EXTERNAL_FROM = 1024
"""Bytes from which a tensor goes to the data file, where there is one."""


@dataclass(frozen=True, slots=True)
class FusedFile:
    """A fused ONNX file.

    Attributes:
        path: The file that was written.
        plan: What was folded and what not.
        verdict: How far its outputs are from those of the original, in ONNX Runtime; None if it
            was not compared.
        before: Operations of the original, counted by kind.
        after: Operations of the fused file, counted by kind.
        size_bytes: Bytes written, those beside the file included.

    """

    path: Path
    plan: Plan[ModelProto]
    verdict: Verdict | None
    before: dict[str, int]
    after: dict[str, int]
    size_bytes: int


def fuse_onnx_file(  # noqa: PLR0913 (each is one decision of the user)
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    check: bool = True,
    freeze_inputs: bool = False,
    where: Where | None = None,
    outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> FusedFile:
    """Fold everything in an ONNX file that folds exactly, and write the result to another file.

    The new model is checked by ``onnx.checker`` and compared with the original in ONNX Runtime
    before it takes its place; whatever goes wrong, nothing is written. The original is only read.
    Weights that lie beside the original, or that one file cannot hold, are written to
    ``<out>.data`` beside the new one.

    Args:
        path: The file to read, with its weights inside or beside it.
        out: The file to write.
        input_shapes: Shapes of inputs by name, to compare on; needed where the file leaves them
            open and does not take a batch of 2 or 1 and one of some usual sizes.
        check: Compare with the original in ONNX Runtime; if not, each fold is still compared with
            what it replaces.
        freeze_inputs: Take the defaults of inputs for good, as old exporters list all weights as
            inputs; see :func:`reparam.fusing.freeze_inputs`.
        where: What may be folded, as for :func:`reparam.plan`.
        outputs: The outputs to keep, as there.
        fixed: Values of inputs that never change, as there.

    Raises:
        InputError: ``path`` is no valid ONNX file, or ONNX Runtime does not run it; or ``out``
            cannot be written.
        VerificationError: The fused file computes something else.
        MissingExtraError: onnx or onnxruntime is not installed.

    """
    source, target = Path(path), Path(out)
    model = read_onnx_file(source)
    _check_apart(source, target)
    external = _external_files(source)
    given: Any = frozen(model) if freeze_inputs else model
    plan = plan_model(given, where=where, outputs=outputs, fixed=fixed)
    fused = plan.apply()
    before, after = _counts(model), _counts(fused)
    outside = bool(external) or bytes_of(fused) > MOST_BYTES
    with atomic_path(target) as staged:
        _write(fused, staged, outside=outside)
        verdict = None
        if check:
            with _reference(source, model, outputs, fixed) as (reference, asked):
                verdict = compare_onnx_files(reference, staged, asked, input_shapes)
            _raise_if_different(verdict, source)
        size = sum(file.stat().st_size for file in staged.parent.iterdir())
    return FusedFile(target, plan, verdict, before, after, size)


@contextmanager
def _reference(
    source: Path, model: ModelProto, outputs: Outputs | None, fixed: Fixed | None
) -> Iterator[tuple[Path, ModelProto]]:
    """The file to compare with: the original, or a copy that does no more than was asked for."""
    if outputs is None and fixed is None:
        yield source, model
        return
    asked = asked_onnx(model, outputs, fixed)
    with TemporaryDirectory() as folder:
        path = Path(folder, source.name)
        _write(asked, path, outside=bytes_of(asked) > MOST_BYTES)
        yield path, asked


def read_onnx_file(path: str | os.PathLike[str]) -> ModelProto:
    """Read a model with its weights, those in other files included.

    Raises:
        InputError: The file is missing, cut short, or no valid ONNX model.

    """
    onnx, message = onnx_module(), onnx_module("google.protobuf.message")
    file = Path(path)
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "does not exist"
        msg = f"cannot read {file}: it {found}; needed an ONNX file"
        raise InputError(msg)
    try:
        model: ModelProto = onnx.load(str(file), format="protobuf")
        _check_weights(model)
    except message.DecodeError as error:
        msg = f"cannot read {file}: it is no ONNX file, or it is cut short ({error})"
        raise InputError(msg) from error
    except (onnx.checker.ValidationError, OSError, ValueError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0]
        msg = f"cannot read {file}: it is no whole, valid ONNX model ({why})"
        raise InputError(msg) from error
    with _naming(file):
        check_readable(model)
    return model


def _check_weights(model: ModelProto) -> None:
    """Notice a data file that is cut short, which onnx reads without a word."""
    helper = onnx_module("onnx.helper")
    for tensor in model.graph.initializer:
        if not tensor.HasField("raw_data"):
            continue
        numbers = math.prod(tensor.dims)
        width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        # Types of less than a byte are packed; they have no width of their own in numpy.
        if numbers * width != len(tensor.raw_data) and tensor.data_type in _WHOLE_BYTES:
            msg = (
                f"the tensor {tensor.name!r} of shape {tuple(tensor.dims)} needs "
                f"{numbers * width} bytes and has {len(tensor.raw_data)}"
            )
            raise ValueError(msg)


_WHOLE_BYTES = {1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16}
"""ONNX's numbers of the types from bool and int8 to float64, bfloat16 included."""


def _check_apart(source: Path, target: Path) -> None:
    """Refuse a destination that would write over what is read."""
    read = {file.resolve() for file in (source, *_external_files(source))}
    for file in (target, _data_file(target)):
        if file.resolve() in read:
            msg = (
                f"cannot write {file}: it is a part of the model that is read; choose another name"
            )
            raise InputError(msg)


def _external_files(path: Path) -> set[Path]:
    """The files beside a model that hold weights of it."""
    bare = onnx_module().load(str(path), format="protobuf", load_external_data=False)
    return {path.parent / location for location in _locations(bare)}


def _locations(model: ModelProto) -> Iterator[str]:
    tensors: list[TensorProto] = [*model.graph.initializer]
    tensors += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    for tensor in tensors:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")


def _data_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _write(model: ModelProto, path: Path, *, outside: bool) -> None:
    onnx = onnx_module()
    if outside:
        onnx.save_model(
            model, str(path), save_as_external_data=True, all_tensors_to_one_file=True,
            location=_data_file(path).name, size_threshold=_EXTERNAL_FROM,
        )  # fmt: skip
    else:
        path.write_bytes(model.SerializeToString())


def _raise_if_different(verdict: Verdict, source: Path) -> None:
    if verdict.problem is not None:
        msg = (
            f"nothing can be shown for {source.name}, and nothing is written: {verdict.problem}"
            f"{no_comparison()}"
        )
        raise VerificationError(msg)
    if not verdict.ok:
        msg = (
            f"fusing {source.name} would change what it returns by {verdict.max_abs:.1e} in ONNX "
            f"Runtime, where rounding explains {verdict.tolerance:.1e}; nothing is written. Please "
            f"report this model"
        )
        raise VerificationError(msg)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file an error is about."""
    try:
        yield
    except InputError as error:
        msg = f"cannot read {path}: {error}"
        raise InputError(msg) from error


def _counts(model: ModelProto) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph.node).most_common())
