"""What was asked of a model: some of its results, with some of its arguments given for good."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from reparam._support.arguments import Kind, shown
from reparam.errors import InputError
from reparam.frontends.torch.copying import Copier
from reparam.frontends.torch.structures import leaves

Outputs: TypeAlias = int | str | Sequence[int | str]
"""Names or positions of parts of a result; dots lead into what is nested."""

Fixed: TypeAlias = Mapping[str, Any]
"""Values of arguments, by name."""

_RESULT = "_reparam_result"


def _outputs_flaw(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        found = next((f for f in map(_output_flaw, value) if f is not None), None)
        return found if value else shown(value)
    return _output_flaw(value)


def _output_flaw(value: Any) -> str | None:
    fits = (isinstance(value, str) and value) or (type(value) is int)
    return None if fits else shown(value)


def _fixed_flaw(value: Any) -> str | None:
    if not isinstance(value, Mapping) or not value:
        return shown(value)
    return next((shown(name) for name in value if not isinstance(name, str)), None)


OUTPUTS = Kind("a name or a position in the result, or a list of these", _outputs_flaw)
FIXED = Kind("a dict of values by the names of arguments", _fixed_flaw)


class Picked:
    """Takes out of a result what was asked for.

    One name or position gives that part itself; a list of positions a tuple, and a list with names
    a dict.
    """

    def __init__(self, outputs: Outputs) -> None:
        """Note the names."""
        self.alone = isinstance(outputs, int | str)
        self.names = list(dict.fromkeys([outputs] if isinstance(outputs, int | str) else outputs))

    def __call__(self, result: Any) -> Any:
        """Take the parts.

        Raises:
            InputError: There is no such part.

        """
        parts = [_part(result, name) for name in self.names]
        if self.alone:
            return parts[0]
        if all(str(name).replace(".", "").replace("-", "").isdigit() for name in self.names):
            return tuple(parts)
        return dict(zip(map(str, self.names), parts, strict=True))


def _part(result: Any, name: int | str) -> Any:
    rest, value = str(name), result
    while rest:
        segments = rest.split(".")
        # The longest name first: keys may have dots of their own.
        for length in range(len(segments), 0, -1):
            found = _entry(value, ".".join(segments[:length]))
            if found is not _MISSING:
                value, rest = found, ".".join(segments[length:])
                break
        else:
            held = ", ".join(_held(result)) or shown(result)
            msg = f"the result has no {name!r}; it holds {held}"
            raise InputError(msg)
    return value


def _entry(value: Any, key: str) -> Any:
    """A part of a container, by its key, position or attribute."""
    number = int(key) if key.lstrip("-").isdigit() else None
    if isinstance(value, Tensor):
        return _MISSING
    if isinstance(value, fx.Proxy):  # what a module returns that could not be traced
        return operator.getitem(value, key if number is None else number)
    if isinstance(value, Mapping):
        # The parts of dicts of classes of their own, as of transformers, have positions, too.
        parts = [] if type(value) is dict else list(value.values())
        return value.get(key, value.get(number, _at(parts, number)))
    if isinstance(value, list | tuple) and number is not None:
        return _at(value, number)
    named = hasattr(value, "__dict__") or hasattr(value, "_fields")
    return getattr(value, key, _MISSING) if named and number is None else _MISSING


def _at(parts: Sequence[Any], number: int | None) -> Any:
    there = number is not None and -len(parts) <= number < len(parts)
    return parts[number] if there and number is not None else _MISSING


_MISSING = object()


def _held(result: Any) -> list[str]:
    """The names of what a result holds, those of nested containers last."""
    if isinstance(result, Tensor):
        return []
    if dataclasses.is_dataclass(result) and not isinstance(result, Mapping):
        return [field.name for field in dataclasses.fields(result)]
    steps = [steps for steps, leaf in leaves(result) if steps or not isinstance(leaf, Tensor)]
    return list(dict.fromkeys(".".join(str(key) for _, key in found) for found in steps if found))


def asked(
    model: nn.Module, outputs: Outputs | None, fixed: Fixed | None
) -> tuple[nn.Module, dict[str, list[str]]]:
    """Make a model that does what was asked for, and computes all that it did before.

    Args:
        model: Any module; it is only read, and its numbers are shared.
        outputs: Parts of its result.
        fixed: Arguments of its forward.

    Returns:
        It, and the names of its buffers that hold fixed arguments, by argument.

    Raises:
        InputError: Its forward has no such argument.

    """
    twin = Copier(lambda tensor: tensor, keep_hooks=True).copy(model)
    own: Callable[..., Any] | None = vars(twin).pop("forward", None)
    run = own or type(model).forward
    signature = inspect.signature(model.forward)
    given, buffers = _stored(twin, signature, fixed or {})
    free = signature.replace(
        parameters=[p for name, p in signature.parameters.items() if name not in given]
    )
    if not free.parameters:
        msg = "every argument of the model is fixed; leave one that its result depends on"
        raise InputError(msg)
    pick = None if outputs is None else Picked(outputs)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        bound = free.bind(*args, **kwargs).arguments
        values = {name: _value_of(self, value) for name, value in given.items()}
        call = _call(signature, bound | values)
        result = run(*call.args, **call.kwargs) if own else run(self, *call.args, **call.kwargs)
        if any(isinstance(leaf, fx.Node) for _, leaf in leaves(result)):
            vars(self)[_RESULT] = result
        return result if pick is None else pick(result)

    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    kept = list(free.parameters.values())
    if all(p.kind is not p.POSITIONAL_ONLY for p in kept):
        this = this.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = free.replace(parameters=[this, *kept])  # type: ignore[attr-defined]
    twin.__class__ = type(type(model).__name__, (type(twin),), {"forward": forward})
    return twin, buffers


def reference_model(model: nn.Module, outputs: Outputs | None, fixed: Fixed | None) -> nn.Module:
    """Make a model that does what was asked for, and computes all that it did before.

    It is what a model that is fused with these ``outputs`` and ``fixed`` can be compared with.

    Raises:
        InputError: The forward of the model has no such argument.

    """
    return asked(model, outputs, fixed)[0]


def without_fixed(model: nn.Module, example_inputs: Any, fixed: Fixed) -> Any:
    """Leave out of an example what is fixed, so that one for the original serves, too.

    Raises:
        InputError: It has another value for what is fixed, or more values than arguments are left.

    """
    signature = inspect.signature(model.forward)
    if isinstance(example_inputs, Mapping):
        other = [n for n in fixed if n in example_inputs and not _same(example_inputs[n], fixed[n])]
        if other:
            msg = f"example_inputs has another value for {other[0]} than fixed; leave it out"
            raise InputError(msg)
        return {name: value for name, value in example_inputs.items() if name not in fixed}
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    named = zip(signature.parameters, given, strict=False)
    repeated = {k for k, (n, value) in enumerate(named) if n in fixed and _same(value, fixed[n])}
    kept = tuple(value for k, value in enumerate(given) if k not in repeated)
    free = [p for name, p in signature.parameters.items() if name not in fixed]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in free)
    if len(kept) > len(free) and not variadic:
        left = ", ".join(p.name for p in free) or "none"
        msg = (
            f"example_inputs has {len(kept)} values, where these arguments are left: {left}; "
            f"leave out what is fixed ({', '.join(fixed)})"
        )
        raise InputError(msg)
    return kept


def _same(left: Any, right: Any) -> bool:
    """Whether two arguments are equal, tensor by tensor."""
    ours, theirs = (tree_flatten(value) for value in (left, right))
    return ours[1] == theirs[1] and all(map(_same_leaf, ours[0], theirs[0]))


def _same_leaf(left: Any, right: Any) -> bool:
    left, right = _as_tensor(left), _as_tensor(right)
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        tensors = isinstance(left, Tensor) and isinstance(right, Tensor)
        return tensors and (left is right or torch.equal(left, right))
    return left is right or bool(left == right)


def _as_tensor(value: Any) -> Any:
    """Arrays of other packages as tensors; anything else as it is."""
    array = hasattr(value, "__array__") and not isinstance(value, Tensor)
    return torch.as_tensor(value) if array else value


def whole_result(traced: nn.Module) -> Any:
    """Take out of a model that was asked for a part all that it returned when it was traced."""
    return vars(traced).pop(_RESULT, None)


class _Stored:
    """A tensor that lies in a buffer."""

    def __init__(self, name: str) -> None:
        self.name = name


def _stored(
    model: nn.Module, signature: inspect.Signature, fixed: Fixed
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Store tensors in buffers, and say which values the arguments have."""
    given: dict[str, Any] = {}
    buffers: dict[str, list[str]] = {}

    def put(name: str, value: Any) -> Any:
        if type(value) in {list, tuple}:
            return type(value)(put(name, part) for part in value)
        if type(value) is dict:
            return {key: put(name, part) for key, part in value.items()}
        value = _as_tensor(value)
        if not isinstance(value, Tensor):
            return value
        free = stem = f"fixed_{name}"
        while hasattr(model, free):
            free = f"{stem}_{len(buffers.get(name, [])) + 1}"
        model.register_buffer(free, value.detach().clone())
        buffers.setdefault(name, []).append(free)
        return _Stored(free)

    for name, value in fixed.items():
        _check_is_argument(signature, name)
        given[name] = put(name, value)
    return given, buffers


def _check_is_argument(signature: inspect.Signature, name: str) -> None:
    parameters = signature.parameters
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if name in parameters and parameters[name].kind not in stars:
        return
    if name not in parameters and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    names = [n for n, p in parameters.items() if p.kind not in stars]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; near it: {near[0]}" if near else f"; it has {', '.join(names)}"
    raise InputError(f"the forward of the model has no argument {name!r} to fix{hint}")


def _value_of(model: nn.Module, value: Any) -> Any:
    if isinstance(value, _Stored):
        return getattr(model, value.name)
    if type(value) in {list, tuple}:
        return type(value)(_value_of(model, part) for part in value)
    if type(value) is dict:
        return {key: _value_of(model, part) for key, part in value.items()}
    return value


def _call(signature: inspect.Signature, arguments: dict[str, Any]) -> inspect.BoundArguments:
    """Put arguments in the order of a forward; what it has no name for goes to its ``**``."""
    names = signature.parameters
    ordered = {name: arguments[name] for name in names if name in arguments}
    more = {name: value for name, value in arguments.items() if name not in names}
    if more:
        last = next(name for name, p in names.items() if p.kind is p.VAR_KEYWORD)
        ordered[last] = {**ordered.get(last, {}), **more}
    return inspect.BoundArguments(signature, ordered)
