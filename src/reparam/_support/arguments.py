"""What public calls take: each argument is looked at before anything is done with it."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._pytree import tree_leaves, tree_map_only

from reparam.errors import InputError, ReparamError, UnsupportedModelError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of argument.

    Attributes:
        needed: What it is, for a person.
        flaw: What a value is instead; None where it is of this kind.
        error: What is raised otherwise.

    """

    needed: str
    flaw: Callable[[Any], str | None]
    error: type[InputError] = InputError

    def __or__(self, other: Kind) -> Kind:
        """Either of two kinds."""

        def flaw(value: Any) -> str | None:
            found = self.flaw(value)
            return None if found is None or other.flaw(value) is None else found

        return Kind(f"{self.needed} or {other.needed}", flaw, self.error)

    def check(self, name: str, value: Any) -> None:
        """Raise unless a value is of this kind."""
        found = self.flaw(value)
        if found is not None:
            raise self.error(f"{name} is {found}; needed {self.needed}")


def takes(**kinds: Kind) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check arguments by name before the function is called.

    >>> @takes(rounds=whole(1))
    ... def run(rounds=3):
    ...     return rounds
    >>> run(0)
    Traceback (most recent call last):
    reparam.errors.InputError: rounds is 0; needed a whole number of at least 1

    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            for name, kind in kinds.items():
                if name in given:
                    kind.check(name, given[name])
            return function(*args, **kwargs)

        return checked

    return decorate


def a(needed: str, *types: type) -> Kind:
    """Values of one of these classes."""
    return Kind(needed, lambda value: None if isinstance(value, types) else shown(value))


def whole(least: int) -> Kind:
    """Whole numbers from ``least`` on."""

    def flaw(value: Any) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
        return None if fits else shown(value)

    return Kind(f"a whole number of at least {least}", flaw)


def number() -> Kind:
    """Finite numbers."""

    def flaw(value: Any) -> str | None:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        return None if fits and math.isfinite(value) else shown(value)

    return Kind("a finite number", flaw)


def several(kind: Kind) -> Kind:
    """Lists and tuples of one kind."""

    def flaw(value: Any) -> str | None:
        if not isinstance(value, list | tuple | set | frozenset):
            return shown(value)
        found = next((f for f in map(kind.flaw, value) if f is not None), None)
        return None if found is None else f"[{', '.join(map(shown, value))}]"

    return Kind(f"a list or tuple, each of it {kind.needed}", flaw)


def check_module(name: str, model: object) -> nn.Module:
    """Return a model, once it is one that has numbers."""
    MODULE.check(name, model)
    assert isinstance(model, nn.Module)  # noqa: S101 (for the type checker)
    return model


def in_training(model: nn.Module, *, whole: bool = False) -> str | None:
    """Name the first part of a model that computes something else in training mode and is in it.

    Args:
        model: The model.
        whole: Whether the mode of the model itself counts, too.

    """
    for path, module in model.named_modules():
        counts = isinstance(module, _NormBase | _DropoutNd) or (whole and module is model)
        if module.training and counts:
            return path or type(module).__name__
    return None


@contextmanager
def running_on(name: str, inputs: Any, argument: str = "example_inputs") -> Iterator[None]:
    """Say of the errors of a user's model which argument it was run on."""
    try:
        yield
    except ReparamError:
        raise
    except Exception as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{name} does not run on inputs of shape {_shapes_in(inputs)} ({argument}): {why}"
        ) from error


def _shapes_in(inputs: Any) -> str:
    leaves = [_shape_of(v) if isinstance(v, Tensor) else shown(v) for v in tree_leaves(inputs)]
    return ", ".join(leaves) or "none"


def _shape_of(value: Tensor) -> str:
    shape = "x".join(map(str, value.shape)) or "no dimension"
    return f"{shape}, {str(value.dtype).removeprefix('torch.')}"


def shapes_of(inputs: Any) -> str:
    """Shapes and types of the tensors of a structure, for a person."""
    return ", ".join(shown(leaf) for leaf in tree_leaves(inputs)) or "nothing"


def shown(value: object) -> str:
    """What a value is, for a person, in a few words."""
    if isinstance(value, type):
        return f"the class {value.__name__}, not an object of it"
    if isinstance(value, Tensor):
        return f"a tensor of shape {_shape_of(value)}"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    article = "an" if type(value).__name__[0] in "aeiouAEIOU" else "a"
    return f"{article} {type(value).__name__}"


_LONGEST = 60


def _module_flaw(value: Any) -> str | None:
    if not isinstance(value, nn.Module):
        return shown(value)
    name = type(value).__name__
    for path, module in value.named_modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            where = f"a {name} in which {path or 'it'}" if path else f"a {name} that"
            if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
                return f"{where} is a lazy layer without weights yet (run it once on an input)"
            if tensor.is_meta:
                return (
                    f"{where} is on the meta device and holds no numbers "
                    f"(to_empty(device='cpu') gives it memory; then load its weights)"
                )
    return None


def _path_flaw(value: Any) -> str | None:
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        return shown(value)
    text = os.fspath(value)
    return None if text and "\0" not in text else shown(text)


def _inputs_flaw(value: Any) -> str | None:
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    if not isinstance(value, Tensor | list | tuple | Mapping):
        return shown(value)
    if not tensors and len(value):
        return f"{shown(value)} without a tensor in it"
    if any(t.is_meta for t in tensors):
        return "on the meta device, where tensors hold no numbers"
    return None


def _shapes_flaw(value: Any) -> str | None:
    flaw = _inputs_flaw(tree_map_only(Tensor, lambda t: t.new_empty(0, device="cpu"), value))
    sizes = [leaf.numel() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return f"{shapes_of(value)}, which holds no number" if sizes and not any(sizes) else flaw


MODULE = Kind("a torch.nn.Module with its weights", _module_flaw, UnsupportedModelError)
PATH = Kind("a path", _path_flaw)
INPUTS = Kind("a tensor, a tuple of arguments or a dict of keyword arguments", _inputs_flaw)
SHAPES = Kind(INPUTS.needed, _shapes_flaw)
TENSORS = Kind(
    "a tensor or a tuple of tensors",
    lambda value: shown(value) if isinstance(value, Mapping) else _inputs_flaw(value),
)
TEXT = a("a text", str)
FUNCTION = Kind(
    "a function",
    lambda v: None if callable(v) and not isinstance(v, type | nn.Module) else shown(v),
)
FLAG = a("True or False", bool)
NONE = a("None", type(None))
