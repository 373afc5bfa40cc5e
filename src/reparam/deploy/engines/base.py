"""What an engine is, and the table of the engines known by name."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from reparam._support import optional
from reparam._support.files import is_there, scratch
from reparam.deploy.engines._quiet import explained
from reparam.deploy.engines.program import Dynamic
from reparam.errors import ExportError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch
    from torch import nn

    from reparam.deploy.engines.program import Axes, Conversion

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


@dataclass(frozen=True)
class Format:
    """A deployment format: what an engine's files are, and how they are written.

    Attributes:
        name: Its name in messages and records.
        suffix: The suffix of its main file, which picks it.
        engine: Name of the engine that reads it back for the check.
        write: Writes a model, and returns the variable dimensions of each input. It may raise
            whatever its packages raise; an :class:`ExportError` says what a user can change.
        read_metadata: Reads the metadata that a file holds; None for a format that holds none, and
            has a JSON file beside it.
        packages: The packages that write it, whose versions are noted in it.
        backend: The ``backend`` argument that picks it among formats of the same suffix.
        companion: Suffix of a second file it writes beside the main one, if any.
        precision: What it is judged in: ``"fp16"`` where its weights are rounded to that,
            ``"int8-weights"`` where they are to eight bits.
        layout: How images lie in its inputs, where the format knows two ways.
        read: Makes a written file run, where more than the engine is needed for it: a file of
            weights alone takes its structure from the model that it was written from.
    """

    name: str
    suffix: str
    engine: str
    write: Callable[[Conversion, Path], Axes]
    read_metadata: Callable[[Path], dict[str, str]] | None = None
    packages: tuple[str, ...] = ()
    backend: str | None = None
    companion: str | None = None
    precision: str = "fp32"
    layout: str | None = None
    read: Callable[[Path, nn.Module], Runner] | None = None

    def load(self, path: Path, model: nn.Module) -> Runner:
        """Read a written file back, as its user will.

        Args:
            path: The main file.
            model: The model it was written from.

        Raises:
            MissingExtraError: The engine is not installed.
            ExportError: The file cannot be read.
        """
        if not is_there(path):
            raise ExportError(f"the {self.name} exporter ended without an error and without a file")
        with explained(f"the {self.name} file was written and cannot be loaded back"):
            if self.read is not None:
                return self.read(path, model)
            return get_engine(self.engine).load(path, Settings())


class Engine(ABC):
    """An inference engine: how to make a module, or a file, run in it.

    Attributes:
        name: The name it is asked for by.
        label: What it is called on a page.
        suffixes: Suffixes of the files it loads.
        formats: What :func:`reparam.export` writes for it; the first is how it runs a module.
        precisions: Precisions it can run in.
        requirements: Importable modules it needs.
        extra: The extra of this package that installs them.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    formats: ClassVar[tuple[Format, ...]] = ()
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
            self.module(module)

    def module(self, name: str) -> Any:
        """Import a package of the engine, or a module of it.

        Raises:
            MissingExtraError: It is not installed.
        """
        return optional.require(name, extra=self.extra, purpose=f"the engine {self.name!r}")

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

    def prepare(self, conversion: Conversion, settings: Settings) -> Runner:
        """Make a module run in the engine: by default, from a file with fixed shapes.

        Args:
            conversion: The module and its inputs.
            settings: Threads and precision.

        Raises:
            MissingExtraError: A package the engine needs is not installed.
            UnsupportedCaseError: The engine cannot run in this precision.
            ExportError: The model could not be converted.
        """
        self.require()
        self.check(settings)
        with scratch() as folder:
            path = folder / f"model{self.suffixes[0]}"
            self.write(replace(conversion, dynamic=Dynamic.NONE), path)
            return self.load(path, settings)

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
        with explained(f"{self.label} could not load {path.name}"):
            return self.open(path, settings)

    def write(self, conversion: Conversion, path: Path) -> Axes:
        """Write a file of the first of its suffixes, and return what varies in it.

        An engine that reads another's files, and so has no format of its own, has its own method.
        """
        return self.formats[0].write(conversion, path)

    def open(self, path: Path, settings: Settings) -> Runner:
        """Open a file of one of its suffixes; an engine that reads none has no such method.

        Whatever it raises is told as the reason why the file could not be loaded.
        """
        raise NotImplementedError

    def input_sizes(self, path: Path) -> list[list[int | None]] | None:
        """Return the sizes of each input of a file, None for one that varies.

        None for a file that does not say them.
        """
        del path
        return None


_ENGINES: dict[str, Engine] = {}
_EngineType = TypeVar("_EngineType", bound=type[Engine])


def register(engine: _EngineType) -> _EngineType:
    """Add an engine to the table under its ``name``; usable as a class decorator."""
    _ENGINES[engine.name] = engine()
    return engine


@functools.cache
def _built_in() -> None:
    """Import the modules beside this one, which register their engines."""
    package, replaced = importlib.import_module(__name__.rpartition(".")[0]), dict(_ENGINES)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    _ENGINES.update(replaced)


def engine_names() -> tuple[str, ...]:
    """Return the names of the known engines, installed or not; PyTorch's eager comes first."""
    _built_in()
    return tuple(sorted(_ENGINES, key=lambda name: (name != "eager", name)))


def get_engine(name: str) -> Engine:
    """Return the engine of that name.

    Raises:
        InputError: No engine has that name.
    """
    if name not in engine_names():
        known = ", ".join(engine_names())
        raise InputError(f"no engine is called {name!r}; known engines: {known}")
    return _ENGINES[name]


def declared_sizes_of(path: Path) -> list[int | None] | None:
    """Return the sizes of a file's only input, ``None`` for one that varies.

    Args:
        path: A file of torch.export (``.pt2``), OpenVINO (``.xml``), LiteRT (``.tflite``, the
            channels first, whichever way it takes them) or another format.

    Returns:
        The sizes; ``None`` for a file of another format, which does not say them, and for one with
        several inputs.

    Raises:
        ExportError: The file cannot be read.
        MissingExtraError: What reads it is not installed.
    """
    for engine in map(get_engine, engine_names()):
        if path.suffix.lower() in engine.suffixes:
            with explained(f"{engine.label} could not read {path.name}"):
                sizes = engine.input_sizes(path)
            if sizes is not None:
                return sizes[0] if len(sizes) == 1 else None
    return None
