"""ExecuTorch with the XNNPACK backend: the engine for phones, run here on this processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam._support.spelling import advice
from reparam.deploy.engines._quiet import converting
from reparam.deploy.engines.base import (
    Engine,
    Format,
    Runner,
    Settings,
    UnsupportedCaseError,
    get_engine,
    register,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from reparam.deploy.engines.program import Axes, Conversion


def _write(conversion: Conversion, path: Path) -> Axes:
    """Lower a model to XNNPACK; memory is planned ahead, so what varies has an upper bound."""
    module = get_engine("executorch").module
    partitioner = module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    exir = module("executorch.exir")
    program = conversion.program(bounded=True)
    with converting(f"ExecuTorch could not lower {conversion.name}"):
        lowered = exir.to_edge_transform_and_lower(
            program.exported, partitioner=[partitioner.XnnpackPartitioner()]
        )
        path.write_bytes(lowered.to_executorch().buffer)
    return program.axes


class _MethodRunner(Runner):
    def __init__(self, program: Any, bindings: Any, threads: int | None) -> None:
        # A method reads from its program without keeping it alive.
        self._program, self._method = program, program.load_method("forward")
        self._bindings, self._threads = bindings, threads

    def activate(self) -> None:
        # One pool for the whole process; making it anew costs, so only where it differs.
        if self._threads not in (None, self._bindings._threadpool_get_thread_count()):  # noqa: SLF001
            self._bindings._unsafe_reset_threadpool(self._threads)  # noqa: SLF001 - no public way

    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
        method, arguments = self._method, _arguments(inputs)
        return lambda: method.execute(arguments)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.activate()
        return [y.clone() for y in self._method.execute(_arguments(inputs))]


def _arguments(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [x.detach().cpu().contiguous() for x in inputs]


@register
class ExecuTorchEngine(Engine):
    """ExecuTorch's runtime with XNNPACK's kernels."""

    name: ClassVar[str] = "executorch"
    label: ClassVar[str] = "ExecuTorch"
    suffixes: ClassVar[tuple[str, ...]] = (".pte",)
    formats: ClassVar[tuple[Format, ...]] = (
        Format("ExecuTorch", ".pte", name, _write, packages=("executorch",)),
    )
    requirements: ClassVar[tuple[str, ...]] = ("executorch",)
    extra: ClassVar[str] = "mobile"

    def open(self, path: Path, settings: Settings) -> Runner:
        """Load a ``.pte`` file."""
        runtime = self.module("executorch.runtime")
        bindings = self.module("executorch.extension.pybindings.portable_lib")
        if settings.threads and not hasattr(bindings, "_unsafe_reset_threadpool"):
            raise UnsupportedCaseError(
                "this version of ExecuTorch does not let its number of threads be set"
                + advice("; leave {threads} out", threads=...)
            )
        # From memory, so that the file may go: the program reads its weights while it runs.
        program = runtime.Runtime.get().load_program(path.read_bytes())
        return _MethodRunner(program, bindings, settings.threads)
