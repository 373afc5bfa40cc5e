"""Export a model: write it, load it back in its engine, compare, and only then put it in place."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam._support.arguments import FLAG, MODULE, NONE, PATH, TEXT, a, takes
from reparam._support.files import atomic_path
from reparam._support.spelling import advice
from reparam._support.untouched import leaves_untouched
from reparam.deploy.engines import Format, UnsupportedCaseError, get_engine
from reparam.deploy.engines._inputs import as_tuple, check_eval
from reparam.deploy.engines.parity import Parity, Reference
from reparam.deploy.engines.program import Axes, Conversion, Dynamic, other_shapes
from reparam.deploy.exporting.certificate import Certificate, certified
from reparam.deploy.exporting.content import KEPT_IN
from reparam.deploy.exporting.formats import find_format
from reparam.deploy.exporting.metadata import FORMS, describe_model, write_sidecar
from reparam.errors import ExportError, InputError, ReparamError
from reparam.verifying import NothingShownWarning, other_inputs

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import torch
    from torch import nn

    from reparam.deploy.engines import Runner


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how it compares with the reference.

    Attributes:
        path: The file (for a format of several files, the main one).
        format: Name of the format.
        engine: The engine it was loaded back in.
        parity: Comparison with the reference on the given inputs.
        dynamic_axes: For each input, the names of its variable dimensions by position.
        metadata: What the file says about itself.
        size_bytes: Size of the file or files.
        seconds: Time it took to write and check.
        certificate: What was proven of the file, where that was asked for.
    """

    path: Path
    format: str
    engine: str
    parity: Parity
    dynamic_axes: Axes
    metadata: dict[str, str]
    size_bytes: int
    seconds: float
    certificate: Certificate | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a dictionary that JSON can hold."""
        axes = [{str(i): name for i, name in each.items()} for each in self.dynamic_axes]
        return asdict(self) | {"path": self.path.name, "dynamic_axes": axes}

    def __str__(self) -> str:
        size = f"{self.size_bytes / 1e6:.1f} MB"
        return f"{self.path.name} ({self.format}, {size}) in {self.engine}: {self.parity}"


@takes(
    model=MODULE,
    path=PATH,
    reference=MODULE | NONE,
    dynamic=FLAG | TEXT,
    backend=TEXT | NONE,
    form=TEXT | NONE,
    source=TEXT | NONE,
    notes=a("a mapping of names to texts", Mapping) | NONE,
    certify=FLAG,
)
@leaves_untouched
def export(  # noqa: PLR0913 - each is one decision of the user
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: torch.Tensor | Sequence[torch.Tensor],
    *,
    reference: nn.Module | None = None,
    dynamic: bool | str = True,
    backend: str | None = None,
    form: str | None = None,
    source: str | None = None,
    notes: Mapping[str, str] | None = None,
    certify: bool = False,
) -> ExportResult:
    """Write a model in the format that the suffix names, checked in the engine that reads it.

    The file is written under a temporary name, loaded back in its real engine, and compared on
    ``example_inputs`` with ``reference``; where shapes may vary, a second time on other shapes.
    The allowed difference is a small multiple of the reference's own rounding error (see
    :mod:`reparam.deploy.engines.parity`). Only then does the file take its place; whatever fails
    before leaves the folder as it was.

    Args:
        model: The model to write, in eval mode. It is not changed.
        path: The file. ``.safetensors`` holds the weights alone; ``.pt2`` is an exported PyTorch
            program (``backend="aoti"``: machine code for this processor); ``.onnx`` is ONNX;
            ``.xml`` is OpenVINO (with a ``.bin`` beside it); ``.pte`` is ExecuTorch with XNNPACK;
            ``.param`` is ncnn (with a ``.bin``); ``.tflite`` is LiteRT (``backend="fp16"``:
            weights in float16; ``"nhwc"``: images with the channels last; ``"nhwc-fp16"``: both);
            ``.engine`` is TensorRT for this GPU; these four hold no metadata, which then stands in
            ``<file>.json`` beside them. ``.mlpackage`` is Core ML (``backend="fp16"``: computed in
            float16; ``"int8"``: with weights in eight bits, too), a folder; away from Apple's
            systems it is read back and computed in PyTorch.
        example_inputs: A tensor or tuple of tensors, dimension 0 the batch. Real inputs make the
            comparison mean something.
        reference: What the file is compared with, in eval mode: the model that was trained.
            ``None`` compares with ``model``.
        dynamic: ``True`` lets the batch vary, and the height and width where the model allows it
            (the result says); ``"batch"`` only the batch; ``"size"`` insists on both; ``False``
            fixes every shape.
        backend: Picks among formats of one suffix.
        form: ``"train"`` or ``"fused"``, for the file's metadata. ``None`` says ``"fused"`` if a
            reference other than the model itself is given, and ``"train"`` otherwise.
        source: What the model was made from, for the file's metadata. ``None`` is its class.
        notes: More for the file's metadata, by names of your own.
        certify: Also prove the file equal to the reference by :func:`reparam.diff`, number by
            number, and write into its metadata what was shown. Of ``.onnx`` and ``.pt2`` the file
            itself is compared, of other kinds the model that it is written from; what was sampled
            in its engine is noted beside it. That takes about as long as fusing. Core ML and
            machine code (``"aoti"``) cannot hold it.

    Returns:
        The record of what was written and how it compares.

    Raises:
        InputError: An argument cannot be used.
        MissingExtraError: The exporter or the engine is not installed.
        TrainingModeError: The model or the reference is in training mode.
        ExportError: The model cannot be written in this format, the folder or the disk cannot take
            it, or the engine computes something else.
    """
    target, inputs = Path(path), as_tuple(example_inputs)
    entry = find_format(target, backend)
    shapes = Dynamic.of(dynamic)
    if form is None:
        form = "train" if reference is None or reference is model else "fused"
    elif form not in FORMS:
        raise InputError(f"form is {form!r}; it must be one of {', '.join(FORMS)}")
    if certify and (entry.suffix not in KEPT_IN or entry.backend == "aoti"):
        raise InputError(
            f"{entry.name} files cannot hold a certificate; kinds that do: {', '.join(KEPT_IN)}"
        )
    check_eval(model, "exporting")
    trained = model if reference is None else reference
    check_eval(trained, "exporting against a reference")
    expected = Reference(trained, inputs)
    get_engine(entry.engine).require()
    named = source or f"{type(model).__module__}.{type(model).__qualname__}"
    metadata = describe_model(model, entry, form=form, source=named, inputs=inputs, notes=notes)

    start = time.perf_counter()
    with _nothing_kept(target, entry, model), atomic_path(target) as temporary:
        axes = entry.write(Conversion(model, inputs, shapes, metadata), temporary)
        if entry.read_metadata is None:
            write_sidecar(temporary, metadata)
        parity = _check(expected, entry.load(temporary, model), inputs, axes, entry)
        certificate = None
        if certify:
            certificate = certified(trained, temporary, inputs, model, _sampled(entry, parity))
        size = sum(f.stat().st_size for f in temporary.parent.rglob("*") if f.is_file())
    seconds = time.perf_counter() - start
    return ExportResult(
        target, entry.name, entry.engine, parity, axes, metadata, size, seconds, certificate
    )


@contextmanager
def _nothing_kept(target: Path, entry: Format, model: nn.Module) -> Iterator[None]:
    """Say of whatever went wrong what could not be written, and that nothing is left of it."""
    try:
        yield
    except UnsupportedCaseError:
        raise
    except ExportError as error:
        raise ExportError(f"{error}; nothing was kept") from error
    except InputError as error:
        raise ExportError(str(error)) from error
    except ReparamError:
        raise
    except Exception as error:
        raise ExportError(
            f"{target} could not be written as {entry.name}: {error}; "
            f"nothing was kept{_lack_of_room(target, model)}"
        ) from error


def _sampled(entry: Format, parity: Parity) -> str:
    return (
        f"sampled in {entry.engine}: {parity.samples} samples, largest difference "
        f"{parity.max_abs:.1e}, where rounding explains {parity.tolerance:.1e}"
    )


def _lack_of_room(target: Path, model: nn.Module) -> str:
    """Say so if the disk cannot hold the model: not every writer tells why it failed."""
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    free = shutil.disk_usage(target.parent).free
    if free >= needed:
        return ""
    return f"; its disk has {free / 1e6:.1f} MB free, and the weights need {needed / 1e6:.1f} MB"


def _check(
    reference: Reference,
    runner: Runner,
    inputs: tuple[torch.Tensor, ...],
    axes: Axes,
    entry: Format,
) -> Parity:
    """Compare on the inputs, and on other shapes where shapes may vary; return the first."""
    parity = _compare(reference, runner, inputs, entry, "")
    if any(axes):
        others = other_shapes(inputs, axes)
        shape = ", ".join(str(tuple(x.shape)) for x in others)
        _compare(reference.on(others), runner, others, entry, f" with inputs of shape {shape}")
    if reference.is_constant(parity.tolerance):
        _compare_elsewhere(reference, runner, inputs, entry)
    return parity


def _compare_elsewhere(
    reference: Reference, runner: Runner, inputs: tuple[torch.Tensor, ...], entry: Format
) -> None:
    """Compare on inputs on which an output varies; warn if there are none."""
    for others in other_inputs(inputs):
        here = reference.on(others)
        parity = _compare(here, runner, others, entry, "")
        if not here.is_constant(parity.tolerance):
            return
    warnings.warn(
        f"the {entry.name} file agrees with the reference, and no output of the reference changes "
        f"with the inputs by more than rounding does, so that nothing was shown; give "
        f"example_inputs on which it does",
        NothingShownWarning,
        stacklevel=6,
    )


def _compare(
    reference: Reference, runner: Runner, inputs: tuple[torch.Tensor, ...], entry: Format, on: str
) -> Parity:
    what = f"the {entry.name} file, run in {entry.engine}{on},"
    try:
        outputs = runner.run(inputs)
    except Exception as error:
        hint = advice("; try {dynamic}", dynamic="batch") + advice("; try {dynamic}", dynamic=False)
        hint = hint if on else ""
        raise ExportError(f"{what} fails: {error}{hint}") from error
    try:
        parity = reference.compare(outputs, entry.precision)
        parity.raise_if_different(what)
    except ReparamError as error:
        raise ExportError(str(error)) from error
    return parity
