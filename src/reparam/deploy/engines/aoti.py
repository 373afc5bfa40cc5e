"""AOTInductor: a module compiled ahead of time to a package of machine code (``.pt2``)."""

from __future__ import annotations

import io
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam.deploy.engines.base import Engine, Runner, Settings, UnsupportedCaseError, register
from reparam.deploy.engines.program import Dynamic, export_program, quiet
from reparam.deploy.engines.pytorch import TorchRunner, in_precision, is_package
from reparam.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

__all__ = ["AotInductorEngine", "package_metadata", "write_aoti"]


def write_aoti(
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    path: Path,
    *,
    dynamic: Dynamic = Dynamic.AUTO,
    metadata: Mapping[str, str] | None = None,
) -> tuple[dict[int, str], ...]:
    """Compile ``model`` for this machine's processor and write the package.

    Returns:
        The variable dimensions of each input, by position.

    Raises:
        ExportError: The model cannot be traced or compiled; a C++ compiler is needed.
    """
    from torch._inductor import aoti_compile_and_package

    program = export_program(model, inputs, dynamic)
    with tempfile.TemporaryDirectory(prefix="reparam-", ignore_cleanup_errors=True) as folder:
        # Elsewhere first: where the disk is full, PyTorch's own file writer ends the process.
        package = Path(folder) / "package.pt2"
        options = {"aot_inductor.metadata": dict(metadata or {})}
        try:
            with quiet(), redirect_stderr(io.StringIO()):
                aoti_compile_and_package(
                    program.exported, package_path=str(package), inductor_configs=options
                )
        except Exception as error:
            raise ExportError(
                f"AOTInductor could not compile {type(model).__name__} (it needs a C++ compiler): "
                f"{error}"
            ) from error
        path.write_bytes(package.read_bytes())
    return program.axes


def package_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that a package holds."""
    return dict(_load(path).get_metadata())


@register
class AotInductorEngine(Engine):
    """The module compiled ahead of time by AOTInductor; the first compilation takes a while."""

    name: ClassVar[str] = "aoti"
    suffixes: ClassVar[tuple[str, ...]] = (".pt2",)
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")

    def prepare(
        self,
        model: nn.Module,
        example_inputs: Sequence[torch.Tensor],
        settings: Settings,
        folder: Path,
    ) -> Runner:
        """Compile the module for fixed shapes."""
        self.check(settings)
        path = folder / "model.pt2"
        cast = in_precision(model, settings.precision)
        inputs = TorchRunner(cast, settings).cast(example_inputs)
        write_aoti(cast, inputs, path, dynamic=Dynamic.NONE)
        return TorchRunner(_load(path), settings)

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
