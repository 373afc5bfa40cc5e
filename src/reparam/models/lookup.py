"""From a string to a model: this package's names, timm's, torchvision's, the user's own code."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from reparam._support.optional import available, require
from reparam.checkpoints import load_checkpoint
from reparam.errors import ArgumentError, InputError
from reparam.models.zoo import SPECS, canonical_name, create, names, suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

FORMS = "repvgg_a0, timm:NAME, torchvision:NAME, ultralytics:FILE or package.module:factory"


def resolve(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build the model that a string stands for.

    Args:
        name: ``"repvgg_a0"`` or another of :func:`reparam.models.names`; ``"timm:NAME"``;
            ``"torchvision:NAME"``; ``"ultralytics:FILE"``, a ``.yaml`` of theirs, or a ``.pt``,
            which ultralytics reads by running the pickle in it; or ``"package.module:factory"``, a
            callable that returns a module, or a module. The user's code is looked for in the
            working directory too.
        num_classes: Number of classes, where it is to be other than the model's default.
        in_channels: Channels of the images, where they are to be other than the default. In timm
            the argument is called ``in_chans``; torchvision's models have none.
        **options: Further arguments of whatever builds the model. The ``checkpoint_path`` of timm
            is read by :func:`reparam.load_checkpoint`, which executes no pickle.

    Returns:
        The model, as it was built: in training mode for the first three.

    Raises:
        InputError: The name is unknown, the code cannot be imported, or it returned something that
            is no module.
        ArgumentError: The user's code does not take the arguments.
        CheckpointError: The file at ``checkpoint_path`` is of no use.
        MissingExtraError: timm or torchvision is asked for and is not installed.

    >>> type(resolve("repvgg_a0", num_classes=10)).__name__
    'RepVGG'
    """
    given = {"num_classes": num_classes, "in_channels": in_channels}
    arguments = {key: value for key, value in given.items() if value is not None} | options
    source, colon, rest = name.partition(":")
    if not colon:
        return _own(name, arguments)
    if not source or not rest:
        raise InputError(f"{name!r} lacks a name beside the colon; a model is given as {FORMS}")
    builders = {
        "timm": _from_timm,
        "torchvision": _from_torchvision,
        "ultralytics": _from_ultralytics,
    }
    if source in builders:
        return builders[source](rest, arguments)
    return _from_code(source, rest, arguments)


def _own(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a model of this package; where the name is unknown, say where else it exists."""
    key = canonical_name(name)
    if key in SPECS:
        return create(key, **arguments)
    if Path(name).suffix:
        raise InputError(
            f"{name!r} looks like a file, and here a model is given as {FORMS}; "
            f"a file with weights goes into a model with reparam.load_checkpoint"
        )
    elsewhere = [f"{source}:{name}" for source in ("timm", "torchvision") if _offers(source, name)]
    hint = f" (did you mean {' or '.join(elsewhere)}?)" if elsewhere else suggestion(key, names())
    raise InputError(f"there is no model {name!r}{hint}; a model is given as {FORMS}")


def _offers(source: str, name: str) -> bool:
    """Say whether an optional package is there, can be imported, and has a model of that name."""
    if not available(source):
        return False
    try:
        if source == "timm":
            return bool(importlib.import_module("timm").is_model(name))
        return name in importlib.import_module("torchvision.models").list_models()
    except (ImportError, RuntimeError, AttributeError):
        return False  # a broken installation is no reason to lose the message that needs this


def _from_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    timm = require("timm", extra="all", purpose=f"Building timm:{name}")
    if not timm.is_model(name):
        known = suggestion(name, timm.list_models())
        raise InputError(f"timm {timm.__version__} has no model {name!r}{known}")
    renamed = {"in_chans" if key == "in_channels" else key: v for key, v in arguments.items()}
    # timm would unpickle the file, which may run any code; here it is read as weights alone.
    weights = renamed.pop("checkpoint_path", None)
    model = _module(f"timm:{name}", timm.create_model(name, **renamed))
    if weights:
        load_checkpoint(model, weights)
    return model


def _from_torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    package = require("torchvision", extra="train", purpose=f"Building torchvision:{name}")
    models = require("torchvision.models", extra="train", purpose=f"Building torchvision:{name}")
    known = models.list_models()
    if name not in known:
        raise InputError(
            f"torchvision {package.__version__} has no model {name!r}{suggestion(name, known)}"
        )
    if "in_channels" in arguments:
        raise InputError(
            f"torchvision:{name} has a fixed number of input channels; leave in_channels out"
        )
    return _module(f"torchvision:{name}", models.get_model(name, **arguments))


def _from_ultralytics(file: str, arguments: dict[str, Any]) -> nn.Module:
    package = require("ultralytics", extra="yolo", purpose=f"Building ultralytics:{file}")
    if arguments:
        raise InputError(
            f"ultralytics:{file} says itself what it is built with; leave "
            f"{', '.join(arguments)} out"
        )
    # Else it would be downloaded.
    if Path(file).suffix != ".yaml" and not Path(file).is_file():
        raise InputError(
            f"ultralytics:{file}: there is no such file; give a .pt that is here, or the .yaml of "
            f"a model, such as yolo11n.yaml. Nothing is downloaded here"
        )
    try:
        return _module(f"ultralytics:{file}", package.YOLO(file, verbose=False).model).float()
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"ultralytics cannot read {file}: {error}") from error


def _from_code(module_name: str, attribute: str, arguments: dict[str, Any]) -> nn.Module:
    """Import the user's callable and call it; a module in its place is taken as it is."""
    label = f"{module_name}:{attribute}"
    with _working_directory_on_path():
        found = _factory(module_name, attribute, arguments)
        return found if isinstance(found, nn.Module) else _module(label, found(**arguments))


def accepts(name: str, **arguments: object) -> bool:
    """Say whether what builds a model takes the arguments, without building it.

    The names of this package, of timm and of torchvision take a number of classes; code of the
    user's may know it itself.

    Raises:
        InputError: the user's code cannot be imported, or holds nothing of that name.

    >>> accepts("repvgg_a0", num_classes=10), accepts("torch.nn:Identity", num_classes=10)
    (True, True)
    """
    source, colon, attribute = name.partition(":")
    if not colon or source in ("timm", "torchvision"):
        return True
    if source in ("hf", "ultralytics"):
        return False
    try:
        with _working_directory_on_path():
            _factory(source, attribute, arguments)
    except ArgumentError:
        return False
    return True


def _factory(module_name: str, attribute: str, arguments: dict[str, Any]) -> Any:
    """Find what builds the user's model, which takes the arguments, or the model itself."""
    label = f"{module_name}:{attribute}"
    found = _attribute(_import(module_name, label), attribute, label)
    if isinstance(found, nn.Module):
        if arguments:
            raise ArgumentError(
                f"{label} is a module that is built already, and takes no "
                f"{', '.join(arguments)}; leave that out, or name what builds it"
            )
        return found
    if not callable(found):
        raise InputError(
            f"{label} is of type {type(found).__name__}; needed is a function or class that "
            f"returns a torch.nn.Module"
        )
    _check_arguments(found, arguments, label)
    return found


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Let code beside which the command was started be imported, as ``python -m`` does."""
    here = str(Path.cwd())
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _import(module_name: str, label: str) -> ModuleType:
    """Import the user's module, and tell "it is not there" from "it does not work"."""
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"there is no Python module {error.name!r} to take {label!r} from, neither in "
                f"{Path.cwd()} nor among the installed packages; a model is given as {FORMS}"
            ) from error
        raise InputError(f"importing {module_name!r} for {label!r} failed: {error}") from error
    except (ImportError, SyntaxError, ValueError, TypeError) as error:
        raise InputError(f"importing {module_name!r} for {label!r} failed: {error}") from error


def _attribute(module: ModuleType, attribute: str, label: str) -> object:
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [item for item in dir(found) if not item.startswith("_")]
            where = os.fspath(getattr(module, "__file__", None) or module.__name__)
            raise InputError(f"{label}: {where} defines no {part!r}{suggestion(part, public)}")
        found = getattr(found, part)
    return found


def _check_arguments(factory: Callable[..., object], arguments: dict[str, Any], label: str) -> None:
    """Refuse arguments that the user's callable does not take, before its own code runs."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # some builtin callables have no signature; calling them is the only way to know
    try:
        signature.bind(**arguments)
    except TypeError as error:
        passed = ", ".join(arguments) or "no arguments"
        raise ArgumentError(
            f"{label}{signature} cannot be called with {passed}: {error}"
        ) from error


def _module(label: str, built: object) -> nn.Module:
    if isinstance(built, nn.Module):
        return built
    raise InputError(f"{label} returned a {type(built).__name__}; needed is a torch.nn.Module")
