"""Which convolutions of a model are meant, and which of them cannot be branched, and why."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from reparam.errors import InputError
from reparam.frontends.kinds import CONVS

Where = str | Iterable[str] | Callable[[str, nn.Module], bool] | None

_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True)
class BranchRefusal:
    """What is left as it is: where, what it is, and why."""

    where: str
    what: str
    why: str


def select(model: nn.Module, where: Where) -> dict[str, nn.Module]:
    """Find the modules that ``where`` means, by their first name, in the model's order.

    Args:
        model: The model.
        where: None for every convolution; a name, a glob pattern, or several; or a predicate of
            name and module, which is asked for every convolution. A name or pattern that matches
            a container means the convolutions inside it.

    Raises:
        InputError: A name or pattern matches nothing.

    """
    modules = dict(model.named_modules())
    convs: dict[str, nn.Module] = {n: m for n, m in modules.items() if isinstance(m, _ConvNd)}
    if where is None:
        return convs
    if callable(where):
        return {name: m for name, m in convs.items() if where(name, m)}
    patterns = [where] if isinstance(where, str) else list(where)
    chosen: set[str] = set()
    for pattern in patterns:
        exact = {name for name in modules if fnmatchcase(name, pattern)}
        inside = {name for name in convs if fnmatchcase(name, f"{pattern}.*")}
        if not exact | inside:
            raise InputError(_no_match(pattern, modules, convs))
        # A container is named for what is in it; a leaf is meant itself, if only to be refused.
        leaves = {name for name in exact if name in convs or not any(modules[name].children())}
        chosen |= leaves | inside
    return {name: m for name, m in modules.items() if name in chosen}


def _no_match(pattern: str, modules: Iterable[str], convs: Iterable[str]) -> str:
    near = difflib.get_close_matches(pattern, list(modules), n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    some = ", ".join(list(convs)[:4]) or "none"
    return f"no module is named {pattern!r}{hint} Convolutions here: {some}, ..."


def refusal(module: nn.Module, tied: Mapping[int, list[str]]) -> str | None:
    """Say why a module cannot be replaced by branches; None if it can."""
    if not isinstance(module, CONVS):
        return f"{type(module).__name__} is not a plain convolution (Conv1d, Conv2d, Conv3d)"
    if parametrize.is_parametrized(module) or "weight" not in module._parameters:
        return "its weight is computed by a parametrization; remove that first"
    base = next(cls for cls in CONVS if isinstance(module, cls))
    same = ("forward", "_conv_forward")
    if any(getattr(type(module), name) is not getattr(base, name) for name in same):
        return f"{type(module).__name__} has a forward of its own"
    unusable = _unusable(module.weight, tied)
    if unusable is None and any(getattr(module, name, None) for name in _STATE_HOOKS):
        return "it has state-dict hooks, which name its own keys"
    return unusable


def _unusable(weight: Tensor, tied: Mapping[int, list[str]]) -> str | None:
    if isinstance(weight, UninitializedParameter):
        return "it is lazy and has no weights yet; run the model once"
    if not weight.is_floating_point():
        return f"its weights are {weight.dtype}; needed real floating point"
    if not bool(weight.isfinite().all()):
        return "its weights are not finite"
    sharers = tied.get(id(weight), [])
    if len(sharers) > 1:
        return f"its weight is tied: {', '.join(sharers)} are one parameter"
    return None


def tied_weights(model: nn.Module) -> dict[int, list[str]]:
    """Names of the parameters by the identity of the tensor, counting each module once."""
    names: dict[int, list[str]] = defaultdict(list)
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names[id(parameter)].append(f"{prefix}.{name}" if prefix else name)
    return dict(names)
