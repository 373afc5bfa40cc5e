"""AOTInductor: a module compiled ahead of time to a package of machine code (``.pt2``)."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from reparam._support.files import scratch
from reparam.deploy.engines._quiet import converting, explained, quiet
from reparam.deploy.engines.base import (
    Engine,
    Format,
    Runner,
    Settings,
    UnsupportedCaseError,
    register,
)
from reparam.deploy.engines.program import Axes, Conversion
from reparam.deploy.engines.pytorch import TorchRunner, in_precision, is_package

__all__ = ["AotInductorEngine"]


def _write(conversion: Conversion, path: Path) -> Axes:
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


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata that a package holds, and none for a program."""
    return dict(_load(path).get_metadata()) if is_package(path) else {}


def _load(path: Path) -> Any:
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
        Format("AOTInductor", ".pt2", name, _write, _metadata, backend="aoti"),
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
        return TorchRunner(_load(path), settings)
