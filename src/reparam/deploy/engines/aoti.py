"""AOTInductor: a module compiled ahead of time to a package of machine code (``.pt2``)."""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from reparam.deploy.engines.base import (
    Engine,
    Format,
    Runner,
    Settings,
    UnsupportedCaseError,
    register,
)
from reparam.deploy.engines.program import Axes, Conversion, quiet
from reparam.deploy.engines.pytorch import TorchRunner, in_precision, is_package
from reparam.errors import ExportError

__all__ = ["AotInductorEngine", "write_aoti"]


def write_aoti(conversion: Conversion, path: Path) -> Axes:
    """Compile a model for this machine's processor and write the package.

    Returns:
        The variable dimensions of each input, by position.

    Raises:
        ExportError: The model cannot be traced or compiled; a C++ compiler is needed.
    """
    from torch._inductor import aoti_compile_and_package

    program = conversion.program()
    with tempfile.TemporaryDirectory(prefix="reparam-", ignore_cleanup_errors=True) as folder:
        # Elsewhere first: where the disk is full, PyTorch's own file writer ends the process.
        package = Path(folder) / "package.pt2"
        options = {"aot_inductor.metadata": dict(conversion.metadata)}
        try:
            with quiet(), redirect_stderr(io.StringIO()):
                aoti_compile_and_package(
                    program.exported, package_path=str(package), inductor_configs=options
                )
        except Exception as error:
            raise ExportError(
                f"AOTInductor could not compile {conversion.name} (it needs a C++ compiler): "
                f"{error}"
            ) from error
        path.write_bytes(package.read_bytes())
    return program.axes


def _package_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that a package holds, and none for a program."""
    return dict(_load(path).get_metadata()) if is_package(path) else {}


@register
class AotInductorEngine(Engine):
    """The module compiled ahead of time by AOTInductor; the first compilation takes a while."""

    name: ClassVar[str] = "aoti"
    label: ClassVar[str] = "AOTInductor"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2",)
    formats: ClassVar[tuple[Format, ...]] = (
        Format("AOTInductor", ".pt2", name, write_aoti, _package_metadata, backend="aoti"),
    )
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")

    def prepare(self, conversion: Conversion, settings: Settings, folder: Path) -> Runner:
        """Compile the module for fixed shapes, in the precision that it is to run in."""
        self.check(settings)
        model = in_precision(conversion.model, settings.precision)
        inputs = TorchRunner(model, settings).cast(conversion.inputs)
        return super().prepare(replace(conversion, model=model, inputs=inputs), settings, folder)

    def open(self, path: Path, settings: Settings) -> Runner:
        """Load a package; its precision is the one it was compiled in."""
        if not is_package(path):
            raise UnsupportedCaseError(
                f"{path.name} holds a program and no machine code; the engine 'eager' runs it"
            )
        return TorchRunner(_load(path), settings)


def _load(path: Path) -> Any:
    from torch._inductor import aoti_load_package

    try:
        with quiet():
            return aoti_load_package(str(path))
    except Exception as error:
        raise ExportError(f"{path.name} could not be loaded by AOTInductor: {error}") from error
