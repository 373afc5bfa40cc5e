"""What an engine is, and the table of the engines known by name."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, TypeVar

from reparam._support import optional
from reparam.deploy.engines.program import Dynamic
from reparam.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from reparam.deploy.engines.program import Axes, Conversion

__all__ = [
    "MOST_THREADS",
    "PRECISIONS",
    "Engine",
    "Runner",
    "Settings",
    "UnsupportedCaseError",
    "engine_names",
    "get_engine",
    "register",
]

MOST_THREADS = max(64, os.cpu_count() or 1)
"""More than any machine like this one can use; engines start what they are told, till they fall."""

PRECISIONS = ("fp32", "bf16")
"""Arithmetic an engine may be asked for: IEEE single precision, or bfloat16."""


class UnsupportedCaseError(InputError):
    """An engine cannot run this model in this way; the message says why."""


@dataclass(frozen=True)
class Settings:
    """How an engine is to run a model.

    Attributes:
        threads: CPU threads of one inference, or ``None`` for the engine's own default.
        precision: ``"fp32"`` or ``"bf16"``.
    """

    threads: int | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise InputError(
                f"threads is {self.threads}; it must be from 1 to {MOST_THREADS}, or None"
            )
        if self.precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise InputError(f"precision is {self.precision!r}; known precisions: {known}")


class Runner(ABC):
    """A model made ready in one engine."""

    @abstractmethod
    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
        """Return a callable that runs the model on ``inputs`` and does nothing else.

        Everything that an application does once (converting the inputs to the engine's own arrays,
        looking up names) happens here, so that the callable is what one would write by hand.
        """

    @abstractmethod
    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run the model and return its outputs, flattened, as torch tensors on the CPU."""

    def activate(self) -> None:  # noqa: B027 - most engines have nothing to switch
        """Set what the engine keeps per process (a thread count) before a series of calls."""


class Engine(ABC):
    """An inference engine: how to make a module, or a file, run in it.

    Attributes:
        name: The name it is asked for by.
        suffixes: Suffixes of the files it loads.
        precisions: Precisions it can run in.
        requirements: Importable modules it needs.
        extra: The extra of this package that installs them.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "deploy"

    def available(self) -> bool:
        """Say whether everything the engine needs is installed on this machine."""
        return all(optional.available(module) for module in self.requirements)

    def require(self) -> None:
        """Raise unless the engine can be used on this machine.

        Raises:
            MissingExtraError: A package it needs is not installed.
        """
        for module in self.requirements:
            optional.require(module, extra=self.extra, purpose=f"the engine {self.name!r}")

    def check(self, settings: Settings) -> None:
        """Raise if the engine cannot run with ``settings``.

        Raises:
            UnsupportedCaseError: The precision is not one of the engine's.
        """
        if settings.precision not in self.precisions:
            known = ", ".join(self.precisions)
            raise UnsupportedCaseError(
                f"the engine {self.name!r} does not run in {settings.precision} here; "
                f"it runs in: {known}"
            )

    def prepare(self, conversion: Conversion, settings: Settings, folder: Path) -> Runner:
        """Make a module run in the engine: by default, from a file with fixed shapes.

        Args:
            conversion: The module and its inputs.
            settings: Threads and precision.
            folder: An existing folder for files that the engine needs; it may be removed after the
                call.

        Raises:
            MissingExtraError: A package the engine needs is not installed.
            UnsupportedCaseError: The engine cannot run in this precision.
            ExportError: The model could not be converted.
        """
        self.require()
        self.check(settings)
        path = folder / f"model{self.suffixes[0]}"
        self.write(replace(conversion, dynamic=Dynamic.NONE), path)
        return self.open(path, settings)

    def load(self, path: Path, settings: Settings) -> Runner:
        """Make a file run in the engine.

        Raises:
            MissingExtraError: A package the engine needs is not installed.
            UnsupportedCaseError: The engine does not read such files.
            ExportError: The file could not be read.
        """
        if path.suffix not in self.suffixes:
            raise UnsupportedCaseError(
                f"the engine {self.name!r} does not load {path.suffix or path.name!r} files"
                + (f"; it loads: {', '.join(self.suffixes)}" if self.suffixes else "")
            )
        self.check(settings)
        return self.open(path, settings)

    def write(self, conversion: Conversion, path: Path) -> Axes:
        """Write a file of the first of its suffixes, and return what varies in it.

        An engine that needs no file has no such method.
        """
        raise NotImplementedError

    def open(self, path: Path, settings: Settings) -> Runner:
        """Open a file of one of its suffixes; an engine that reads none has no such method."""
        raise NotImplementedError


_BUILT_IN = {
    "eager": "reparam.deploy.engines.pytorch",
    "compile": "reparam.deploy.engines.pytorch",
    "aoti": "reparam.deploy.engines.aoti",
    "onnxruntime": "reparam.deploy.engines.ort",
    "openvino": "reparam.deploy.engines.ov",
    "executorch": "reparam.deploy.engines.executorch",
    "ncnn": "reparam.deploy.engines.ncnn",
    "litert": "reparam.deploy.engines.litert",
    "coreml": "reparam.deploy.engines.coreml",
    "tensorrt": "reparam.deploy.engines.tensorrt",
}
_ENGINES: dict[str, Engine] = {}
_EngineType = TypeVar("_EngineType", bound=type[Engine])


def register(engine: _EngineType) -> _EngineType:
    """Add an engine to the table under its ``name``; usable as a class decorator."""
    _ENGINES[engine.name] = engine()
    return engine


def engine_names() -> tuple[str, ...]:
    """Return the names of the known engines, installed or not."""
    return tuple(dict.fromkeys((*_BUILT_IN, *_ENGINES)))


def get_engine(name: str) -> Engine:
    """Return the engine of that name.

    Raises:
        InputError: No engine has that name.
    """
    if name not in _ENGINES and name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name])
    try:
        return _ENGINES[name]
    except KeyError:
        known = ", ".join(engine_names())
        raise InputError(f"no engine is called {name!r}; known engines: {known}") from None
