"""Run the old and the new model side by side, once, before the new one is handed out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves, tree_map

from reparam.errors import VerificationError
from reparam.frontends.torch.copying import own_copy
from reparam.frontends.torch.eager import with_numbers
from reparam.frontends.torch.frames import first_line
from reparam.frontends.torch.running import Arguments
from reparam.frontends.torch.skeleton import runnable_copy, shared_copy
from reparam.verifying import (
    Inside,
    NothingShownWarning,
    Verdict,
    agree_inside,
    constant_outputs,
    differences,
    largest_difference,
    structural_difference,
    tensors,
    verify,
)

_LOOSE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-1, torch.bfloat16: 1e-1}
"""Differences, relative to the largest output, below which no closer look is needed.

The folds themselves are compared in float64; this run is to notice a wrongly connected graph.
"""


@torch.no_grad()
def compare_runs(
    model: nn.Module, fused: nn.Module, calls: Mapping[str, Arguments], *,
    needs_hooks: bool = False, writes_weights: bool = False,
) -> None:  # fmt: skip
    """Compare every module that was traced with its successor, on the inputs of its trace.

    Args:
        model: The old model.
        fused: The new one.
        calls: The arguments of the modules, by path.
        needs_hooks: Whether they do not run without their hooks.
        writes_weights: Whether running them may change their parameters.

    Raises:
        VerificationError: One of them returns something else, or nothing that can be compared.

    """
    for path, call in calls.items():
        successor = _find(fused, path)
        if successor is None or _covered(path, calls):
            continue
        old = model.get_submodule(path)
        if needs_hooks:
            old, successor = (shared_copy(m, needs_hooks=True) for m in (old, successor))
        name = path or type(old).__name__
        compare_models(name, old, successor, call, writes_weights=writes_weights)


@torch.no_grad()
def compare_models(
    name: str, old: nn.Module, new: nn.Module, call: Arguments, *, writes_weights: bool = False
) -> None:
    """Compare what two modules return for the arguments of one call.

    Raises:
        VerificationError: They return something else, or nothing that can be compared.

    """
    old, new = (runnable_copy(module, shares_weights=not writes_weights) for module in (old, new))
    arguments = _on_device(with_numbers(call), old)
    try:
        _compare(name, old, new, arguments)
    except VerificationError:
        raise
    except Exception:
        # Of inputs that were made up, the sizes may be wrong in a way that only numbers show.
        if not any(isinstance(t, Tensor) and t.is_meta for t in tree_leaves(call)):
            raise


def compare_unread(name: str, old: nn.Module, new: nn.Module, call: Arguments) -> None:
    """Compare two models whose code could not be read, so that what is in them may be used anyhow.

    Nothing can be said of one whose results come or go with its rounding, as those of a detector
    that picks among equal scores.

    Raises:
        VerificationError: They return something else.

    """
    try:
        compare_models(name, old, new, call, writes_weights=True)
    except VerificationError:
        old = runnable_copy(old)
        if _verdict(old, old, _on_device(with_numbers(call), old)).control != torch.inf:
            raise


def _compare(name: str, old: nn.Module, new: nn.Module, arguments: Arguments) -> None:
    with Inside() as inside_old:
        before = _run(old, arguments)
    with Inside() as inside_new:
        try:
            after = _run(new, arguments)
        except Exception as error:
            # Any error of the user's code, which may read what is no longer there.
            change = f"its forward, which would fail ({first_line(error)})"
            raise VerificationError(_accusation(name, change)) from error
    other = structural_difference(before, after, same_types=True)
    if other is not None:
        raise VerificationError(_accusation(name, f"what it returns: {other}"))
    expected, found = list(tensors(before)), list(tensors(after))
    if _nothing_finite(expected):
        _compare_sound(name, old, new, arguments)
        return
    loose = max((_LOOSE.get(t.dtype, 0.0) for t in expected), default=0.0)
    inside = agree_inside(inside_old.samples, inside_new.samples, loose)
    if _roughly_equal(old, arguments, expected, found, inside=inside):
        return
    if not all(bool(t.isfinite().all()) for t in (*expected, *found)):
        # One may overflow where the other does not: its layers are others.
        _compare_sound(name, old, new, arguments)
    elif not _equal_up_to_noise(old, new, arguments, near=_near(expected, found)):
        by = f"what it returns by {largest_difference(expected, found):.1e}"
        raise VerificationError(_accusation(name, by))


def _accusation(name: str, change: str) -> str:
    return (
        f"fusing {name} would change {change}; nothing is returned. Where its code looks at what "
        f"its layers are, fuse another part (where=); else please report this model: its folds "
        f"agree in float64, so its graph was edited wrongly"
    )


def _compare_sound(name: str, old: nn.Module, new: nn.Module, arguments: Arguments) -> None:
    """Compare in float64, which hardly overflows, without what is not finite in the weights.

    Layers with such weights are not folded, so that both models have them.
    """
    wide = tree_map(_widened, arguments)
    expected, found = (list(tensors(_run(_sound(m), wide))) for m in (old, new))
    if _nothing_finite(expected):
        msg = (
            f"{name} returns no finite number, in float64 neither, so that its fused form cannot "
            f"be compared with it and nothing is returned; look for weights that are far too large"
        )
        raise VerificationError(msg)
    loose = max(_LOOSE.get(p.dtype, 0.0) for p in old.parameters())
    for left, right in zip(expected, found, strict=True):
        if not differences([left], [right]).max_abs <= loose * _scale(left):
            by = f"what it returns by {largest_difference([left], [right]):.1e}"
            raise VerificationError(_accusation(name, by))


def _nothing_finite(outputs: Sequence[Tensor]) -> bool:
    given = [t for t in outputs if t.numel()]
    return bool(given) and not any(bool(t.isfinite().any()) for t in given)


def _sound(model: nn.Module) -> nn.Module:
    """A copy in float64 with zeros for weights, and ones for variances, that have no meaning."""
    twin = own_copy(model).to(torch.float64)
    for module in twin.modules():
        for parameter in module.parameters(recurse=False):
            parameter.nan_to_num_(0.0, 0.0, 0.0)
        if isinstance(module, _NormBase) and module.running_var is not None:
            assert module.running_mean is not None  # noqa: S101 (they come together)
            module.running_mean.nan_to_num_(0.0, 0.0, 0.0)
            sound = (module.running_var + module.eps > 0) & module.running_var.isfinite()
            module.running_var.copy_(torch.where(sound, module.running_var, 1.0))
    return twin


def _widened(value: Any) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(torch.float64) if is_float else value


def _covered(path: str, calls: Mapping[str, Arguments]) -> bool:
    """Whether a module that holds this one is compared as well."""
    return any(path != p and (p == "" or path.startswith(f"{p}.")) for p in calls)


def _run(model: nn.Module, arguments: Arguments) -> Any:
    """Run on a copy of the arguments, random operations with the same seed."""
    positional, named = with_numbers(arguments)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(0)
        return model(*positional, **named)


def _roughly_equal(
    old: nn.Module, arguments: Arguments, expected: list[Tensor], found: list[Tensor], *,
    inside: bool,
) -> bool:  # fmt: skip
    """Whether outputs differ far less than they change with the inputs.

    Where it was seen inside that the models do the same, it is enough that they hardly differ.
    """
    needed = []
    for left, right in zip(expected, found, strict=True):
        distance = differences([left], [right])
        scale = _scale(left)
        if distance.unequal or not distance.max_abs <= _LOOSE.get(left.dtype, 0.0) * scale:
            return False
        level = _LEVEL * torch.finfo(left.dtype).eps * scale if left.is_floating_point() else 0.0
        inside = inside and distance.max_abs <= level
        needed.append(_MARGIN * distance.max_abs)
    return inside or not constant_outputs(partial(_run, old), arguments, expected, needed)


_LEVEL = 256.0
"""Units in the last place of the largest output that two models may differ by at sight."""

_MARGIN = 16.0
"""How much larger than the difference rounding is taken to be, where outputs have to change."""


def _near(expected: list[Tensor], found: list[Tensor]) -> bool:
    """Whether outputs differ by little of their size, whether or not that says anything."""
    for left, right in zip(expected, found, strict=True):
        distance = differences([left], [right])
        if distance.unequal or not distance.max_abs <= _LOOSE.get(left.dtype, 0.0) * _scale(left):
            return False
    return True


def _scale(value: Tensor) -> float:
    finite = value.detach()[value.isfinite()]
    size = finite if finite.dtype == torch.bool else finite.abs()
    return float(size.max()) if size.numel() else 0.0


def _equal_up_to_noise(old: nn.Module, new: nn.Module, arguments: Arguments, *, near: bool) -> bool:
    """Look closer: models that amplify rounding differ by what their own rounding explains.

    One whose results come or go with its rounding, as those of a detector that picks among equal
    scores, explains everything: there the outputs have to be ``near``, too.
    """
    verdict = _verdict(old, new, arguments)
    return verdict.ok or (near and verdict.control == torch.inf)


def _verdict(old: nn.Module, new: nn.Module, arguments: Arguments) -> Verdict:
    positional, named = arguments
    inputs = (*positional, *named.values())
    before, after = (_Positional(model, list(named)) for model in (old, new))
    with warnings.catch_warnings():
        # Each fold agrees in float64; that a constant output shows no more is no news.
        warnings.simplefilter("ignore", NothingShownWarning)
        return verify(before, after, inputs)


class _Positional(nn.Module):
    """A model whose keyword arguments are given last, by position."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.training = False  # eval() would fail on the module of an exported program

    def forward(self, *values: Any) -> Any:
        count = len(values) - len(self.names)
        return self.model(*values[:count], **dict(zip(self.names, values[count:], strict=True)))


def _on_device(arguments: Arguments, model: nn.Module) -> Arguments:
    parameter = next(model.parameters(), None)
    if parameter is None:
        return arguments
    moved: Arguments = tree_map(
        lambda v: v.to(parameter.device) if isinstance(v, Tensor) else v, arguments
    )
    return moved


def _find(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
