"""Whether outputs change with the inputs; one that does not shows nothing, whatever it equals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from reparam.verifying.outputs import is_inexact, numbers, tensors

_SHARE = 0.25
"""Largest share of an output's changes that may count as rounding."""


class NothingShownWarning(UserWarning):
    """Two models agree, and their outputs do not change with the inputs: that shows nothing."""


@torch.no_grad()
def constant_outputs(
    run: Callable[[Any], Any], inputs: Any, outputs: Sequence[Tensor], rounding: Sequence[float]
) -> set[int]:
    """Positions of the outputs that hardly change with the inputs.

    The samples of a batch are compared with one another; only where there is one, or they do not
    differ, does the model run once more: on the numbers in other places, and half as large.

    Args:
        run: Runs the model on inputs.
        inputs: What it ran on.
        outputs: What it returned.
        rounding: For each output, what counts as rounding; four times that is no change.

    """
    constant = unvaried(inputs, outputs, rounding)
    if constant:
        try:
            constant -= changed(outputs, list(tensors(run(moved(inputs)))), rounding)
        except Exception:  # noqa: BLE001 (any error of the user's model, which takes no such inputs)
            return constant
    return constant


def unvaried(inputs: Any, outputs: Sequence[Tensor], rounding: Sequence[float]) -> set[int]:
    """Positions of the outputs that hardly differ between the samples of a batch, if it is one."""
    constant = {k for k, y in enumerate(outputs) if y.numel()}
    sizes = {len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(sizes) == 1 and min(sizes) > 1:
        turned = [y.roll(1, 0) if y.dim() and len(y) in sizes else y for y in outputs]
        constant -= changed(outputs, turned, rounding)
    return constant


def moved(inputs: Any) -> Any:
    """Inputs with the numbers in other places, and half as large.

    Noise remains noise when it is moved, of which a net that averages makes the same.
    """
    return tree_map(lambda leaf: _moved(leaf) if isinstance(leaf, Tensor) else leaf, inputs)


def other_inputs(inputs: Any) -> Iterator[Any]:
    """Inputs of the same shapes with other numbers: those of images, 0 to 1, and normal ones."""
    if not any(isinstance(v, Tensor) and v.is_floating_point() for v in tree_leaves(inputs)):
        return
    yield tree_map(partial(_drawn, torch.rand), inputs)
    yield tree_map(partial(_drawn, torch.randn), inputs)


def _drawn(draw: Callable[..., Tensor], leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    generator = torch.Generator().manual_seed(leaf.dim())
    return draw(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)


class unsaturated(TorchFunctionMode):  # noqa: N801 (used as a context, like torch.no_grad)
    """Let activations with an upper or lower bound pass their input on.

    What stands before them can then be seen at the outputs. Folding has no part in such functions,
    so that two models that are equal remain so.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "").partition(".")[0].strip("_") in _BOUNDED:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


_BOUNDED = {
    "clamp", "clamp_max", "clamp_min", "clip", "hardsigmoid", "hardtanh", "log_softmax", "relu",
    "relu6", "sigmoid", "softmax", "softmin", "tanh",
}  # fmt: skip


def changed(
    outputs: Sequence[Tensor], others: Sequence[Tensor], rounding: Sequence[float]
) -> set[int]:
    """Positions of the outputs that differ from others by more than rounding explains."""
    if [y.shape for y in outputs] != [y.shape for y in others]:
        return set(range(len(outputs)))
    return {
        k
        for k, (y, other) in enumerate(zip(outputs, others, strict=True))
        if y.numel() and _change(y, other) > (rounding[k] / _SHARE if is_inexact(y) else 0)
    }


def _change(left: Tensor, right: Tensor) -> float:
    change = (numbers(left) - numbers(right)).abs()
    finite = change[change.isfinite()]
    return float(finite.max()) if finite.numel() else math.nan


def _moved(value: Tensor) -> Tensor:
    """The numbers of each sample in the opposite order; samples change places."""
    turned = value.flip(tuple(range(value.dim())))
    return turned / 2 if value.is_floating_point() else turned
