"""PyTorch's own ways to run a model: eager, ``torch.compile``, and what it exports (``.pt2``).

That is a program, or a package of machine code (AOTInductor).
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam._support.files import scratch, write_bytes
from reparam._support.processor import multiplies_bf16
from reparam.deploy.engines._inputs import flat_outputs
from reparam.deploy.engines._quiet import converting, explained, quiet
from reparam.deploy.engines.base import (
    Engine,
    Format,
    Runner,
    Settings,
    UnsupportedCaseError,
    register,
)
from reparam.errors import ExportError, MachineWarning
from reparam.frontends.torch.copying import own_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn
    from torch.export import ExportedProgram

    from reparam.deploy.engines.program import Axes, Conversion

METADATA_FILE = "reparam.json"
"""Name of the metadata inside the archive."""


class TorchRunner(Runner):
    """Calls something that takes and returns torch tensors, in inference mode."""

    def __init__(self, call: Callable[..., object], settings: Settings) -> None:
        self._call = call
        self._threads = settings.threads
        self._dtype = torch.bfloat16 if settings.precision == "bf16" else None

    def activate(self) -> None:
        """Set PyTorch's number of threads, which is one setting for the whole process."""
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)

    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
        """Return ``call(*inputs)`` under :func:`torch.inference_mode`."""
        call, arguments = self._call, self.cast(inputs)

        def once() -> object:
            with torch.inference_mode():
                return call(*arguments)

        def finished() -> object:
            output = once()
            torch.cuda.synchronize()
            return output

        # A GPU works on after the call returns; only when it is done is there a result.
        return finished if any(x.is_cuda for x in arguments) else once

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run the model and return its outputs."""
        self.activate()
        return flat_outputs(self.bind(inputs)())

    def cast(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return the inputs in the precision the model runs in."""
        if self._dtype is None:
            return tuple(inputs)
        return tuple(x.to(self._dtype) if x.is_floating_point() else x for x in inputs)


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """Return the model itself for fp32, and a copy with bfloat16 parameters for bf16.

    Warns where the processor has no instructions for bf16.
    """
    if precision != "bf16":
        return model
    if not any(parameter.is_cuda for parameter in model.parameters()) and not multiplies_bf16():
        warnings.warn(
            "this processor has no instructions for bf16, which PyTorch emulates: the times are "
            "longer than those in fp32, and say nothing of processors that have them",
            MachineWarning,
            stacklevel=3,
        )
    return own_copy(model).to(torch.bfloat16)


def _write(conversion: Conversion, path: Path) -> Axes:
    program = conversion.program()
    path.write_bytes(_saved(program.exported, conversion.metadata))
    return program.axes


def save_program(program: ExportedProgram, path: Path) -> int:
    """Write a program whole, or not at all; return its number of bytes."""
    content = _saved(program, {})
    write_bytes(path, content)
    return len(content)


def _saved(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """The content of a file; where the disk is full, PyTorch's own writer ends the process."""
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(dict(metadata))})
    return content.getvalue()


def _metadata(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(METADATA_FILE):
                content: dict[str, str] = json.loads(archive.read(name))
                return content
    return {}


@register
class EagerEngine(Engine):
    """PyTorch as it is: one operator at a time."""

    name: ClassVar[str] = "eager"
    label: ClassVar[str] = "eager"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2",)
    formats: ClassVar[tuple[Format, ...]] = (
        Format("torch.export", ".pt2", name, _write, _metadata),
    )
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")

    def prepare(self, conversion: Conversion, settings: Settings) -> Runner:
        """Run the module as it is."""
        self.check(settings)
        return TorchRunner(in_precision(conversion.model, settings.precision), settings)

    def open(self, path: Path, settings: Settings) -> Runner:
        """Load an exported program (``.pt2``)."""
        if is_package(path):
            raise UnsupportedCaseError(
                f"{path.name} holds machine code, which the engine 'aoti' runs"
            )
        return TorchRunner(in_precision(load_program(path).module(), settings.precision), settings)

    def input_sizes(self, path: Path) -> list[list[int | None]] | None:
        """Return the sizes of a program's inputs; None for a package of machine code."""
        if is_package(path):
            return None
        program = load_program(path)
        wanted = program.graph_signature.user_inputs
        shapes = [
            node.meta["val"].shape
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in wanted
        ]
        return [[size if type(size) is int else None for size in shape] for shape in shapes]


@register
class CompileEngine(Engine):
    """``torch.compile`` with its default backend, compiled once for the shapes given."""

    name: ClassVar[str] = "compile"
    label: ClassVar[str] = "torch.compile"
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")

    def prepare(self, conversion: Conversion, settings: Settings) -> Runner:
        """Compile the module and run it once, so that no later call compiles."""
        self.check(settings)
        compiled: Any = torch.compile(
            in_precision(conversion.model, settings.precision), dynamic=False
        )
        runner = TorchRunner(compiled, settings)
        with explained("torch.compile could not compile the model"):
            runner.run(conversion.inputs)
        return runner


def is_package(path: Path) -> bool:
    """Say whether a ``.pt2`` file holds machine code, and not a program for PyTorch to run."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("data/aotinductor/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def load_program(path: Path) -> ExportedProgram:
    """Read an exported program.

    Raises:
        ExportError: The file is not a program that this version of PyTorch reads.
    """
    if not zipfile.is_zipfile(path):  # of which torch would log a traceback
        raise ExportError(f"{path.name} is no exported program, or it is cut short")
    with explained(f"{path.name} could not be loaded by torch.export"):
        return torch.export.load(path)


def _write_package(conversion: Conversion, path: Path) -> Axes:
    """Compile a model for this machine's processor."""
    from torch._inductor import aoti_compile_and_package

    program = conversion.program()
    compiler = f"AOTInductor could not compile {conversion.name} (it needs a C++ compiler)"
    with scratch() as folder:
        # Elsewhere first: where the disk is full, PyTorch's own file writer ends the process.
        package = folder / "package.pt2"
        options = {"aot_inductor.metadata": dict(conversion.metadata)}
        with converting(compiler), redirect_stderr(io.StringIO()):
            aoti_compile_and_package(
                program.exported, package_path=str(package), inductor_configs=options
            )
        path.write_bytes(package.read_bytes())
    return program.axes


def _package_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that a package holds, and none for a program."""
    return dict(_load_package(path).get_metadata()) if is_package(path) else {}


def _load_package(path: Path) -> Any:
    from torch._inductor import aoti_load_package

    with explained(f"{path.name} could not be loaded by AOTInductor"), quiet():
        return aoti_load_package(str(path))


@register
class AotInductorEngine(Engine):
    """The module compiled ahead of time by AOTInductor; the first compilation takes a while."""

    name: ClassVar[str] = "aoti"
    label: ClassVar[str] = "AOTInductor"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2",)
    formats: ClassVar[tuple[Format, ...]] = (
        Format("AOTInductor", ".pt2", name, _write_package, _package_metadata, backend="aoti"),
    )
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")

    def prepare(self, conversion: Conversion, settings: Settings) -> Runner:
        """Compile the module for fixed shapes, in the precision that it is to run in."""
        self.check(settings)
        model = in_precision(conversion.model, settings.precision)
        inputs = TorchRunner(model, settings).cast(conversion.inputs)
        return super().prepare(replace(conversion, model=model, inputs=inputs), settings)

    def open(self, path: Path, settings: Settings) -> Runner:
        """Load a package; its precision is the one it was compiled in."""
        if not is_package(path):
            raise UnsupportedCaseError(
                f"{path.name} holds a program and no machine code; the engine 'eager' runs it"
            )
        return TorchRunner(_load_package(path), settings)
