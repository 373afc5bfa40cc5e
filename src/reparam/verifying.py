"""Compare two models that should compute the same, with a tolerance that is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from reparam.errors import InputError, VerificationError

__all__ = ["Verdict", "call", "verify"]

_FACTOR = 8.0
"""How many times the reference's own rounding error a candidate may differ by."""

Runnable = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a candidate is from a reference.

    Attributes:
        max_abs: Largest absolute difference of any output element.
        max_rel: The same relative to the largest absolute value of the reference's outputs.
        tolerance: Largest absolute difference that counts as rounding.
        control: Rounding error of the reference itself, from which the tolerance comes.
        agreement: Share of rows with the same top-1 class where the first output is
            ``(N, classes)``, else None.

    """

    max_abs: float
    max_rel: float
    tolerance: float
    control: float
    agreement: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the difference is no more than rounding (false for NaN)."""
        return self.max_abs <= self.tolerance

    def raise_if_different(self) -> None:
        """Raise VerificationError unless ``ok``."""
        if not self.ok:
            msg = (
                f"the two models differ: largest difference {self.max_abs:.3e} "
                f"({self.max_rel:.1e} of the largest output), where rounding explains "
                f"{self.tolerance:.3e} ({_FACTOR:g} times the reference's own {self.control:.1e})"
            )
            raise VerificationError(msg)

    def __str__(self) -> str:
        """One line for a person."""
        word = "equal" if self.ok else "DIFFERENT"
        top = "" if self.agreement is None else f", top-1 agreement {100 * self.agreement:.2f} %"
        return (
            f"{word}: largest difference {self.max_abs:.2e} "
            f"(tolerance {self.tolerance:.2e} from a noise control){top}"
        )


@torch.no_grad()
def verify(
    reference: nn.Module,
    candidate: Runnable,
    example_inputs: Any,
    *,
    tolerance: float | None = None,
) -> Verdict:
    r"""Compare a candidate with a reference on real inputs.

    The tolerance is not guessed: it is 8 times the larger of two measured rounding errors of the
    reference, its difference from itself in float64 and its difference from itself with noise of
    one unit in the last place behind every operation.

    Args:
        reference: The model as trained, in eval mode.
        candidate: The fused model, or any callable that takes the same arguments and returns the
            same structure of tensors.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        tolerance: Largest absolute difference to accept instead of the measured one.

    Raises:
        InputError: The two return different structures or shapes.

    >>> import torch, reparam
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    >>> verify(net, reparam.fuse(net), torch.randn(2, 3, 8, 8)).ok
    True

    """
    expected = list(tensors(call(reference, example_inputs)))
    found = list(tensors(call(candidate, example_inputs)))
    _check_same(expected, found)
    control = 0.0
    if tolerance is None:
        control = noise_control(reference, example_inputs, expected)
        tolerance = _FACTOR * control
    max_abs = largest_difference(expected, found)
    scale = max((float(t.abs().max()) for t in expected if t.numel()), default=0.0)
    return Verdict(
        max_abs, max_abs / scale if scale else max_abs, tolerance, control,
        _agreement(expected, found),
    )  # fmt: skip


def call(model: Runnable, example_inputs: Any) -> Any:
    """Call a model with a tensor, a tuple of arguments or a dict of keyword arguments.

    The model gets copies: one that writes into its inputs leaves the next one the same numbers.
    """
    example_inputs = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, example_inputs)
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    if isinstance(example_inputs, tuple):
        return model(*example_inputs)
    return model(example_inputs)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a structure of lists, tuples, dicts and objects with attributes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "shape") and hasattr(value, "__array__"):
        yield torch.as_tensor(value)
    elif hasattr(value, "__dict__"):
        yield from tensors(vars(value))


def largest_difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Largest absolute difference, in float64; NaN where either has one that the other lacks."""
    worst = 0.0
    for left, right in zip(expected, found, strict=True):
        if not left.numel():
            continue
        a, b = left.detach().cpu().to(torch.float64), right.detach().cpu().to(torch.float64)
        same = (a == b) | (a.isnan() & b.isnan())
        difference = torch.where(same, torch.zeros_like(a), (a - b).abs())
        value = float(difference.max())
        worst = value if value != value or value > worst else worst  # noqa: PLR0124 (NaN)
    return worst


def noise_control(reference: nn.Module, example_inputs: Any, expected: list[Tensor]) -> float:
    """Measure the rounding error of the reference itself."""
    errors = []
    if any(t.is_floating_point() and t.dtype != torch.float64 for t in expected):
        try:
            twin = copy.deepcopy(reference).to(torch.float64)
            errors.append(
                largest_difference(expected, list(tensors(call(twin, _as_double(example_inputs)))))
            )
        except (RuntimeError, TypeError, ValueError):
            # A model with a fixed type inside cannot run in float64; the noise below remains.
            errors = []
    for seed in range(2):
        with _RoundingNoise(seed):
            errors.append(
                largest_difference(expected, list(tensors(call(reference, example_inputs))))
            )
    return max(errors)


class _RoundingNoise(TorchFunctionMode):
    """Multiply the results of arithmetic by one plus or minus one unit in the last place."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        noisy = isinstance(result, Tensor) and result.is_floating_point()
        if not noisy or name not in _ARITHMETIC:
            return result
        with torch._C.DisableTorchFunction():  # noqa: SLF001 (no public name)
            noise = torch.rand(result.shape, generator=self._generator, dtype=torch.float64)
            factor = 1 + torch.finfo(result.dtype).eps * (2 * noise - 1)
            return (result.double() * factor.to(result.device)).to(result.dtype)


_ARITHMETIC = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "linear", "batch_norm", "layer_norm", "group_norm", "matmul", "bmm", "einsum", "add", "sub",
    "mul", "div", "truediv", "__add__", "__mul__", "__sub__", "__truediv__", "softmax", "gelu",
    "silu", "avg_pool2d", "adaptive_avg_pool2d", "mean", "scaled_dot_product_attention", "baddbmm",
    "addmm",
}  # fmt: skip


def _as_double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(torch.float64) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: _as_double(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_as_double(v) for v in value)
    return value


def _check_same(expected: list[Tensor], found: list[Tensor]) -> None:
    shapes = [[tuple(t.shape) for t in part] for part in (expected, found)]
    if shapes[0] != shapes[1]:
        msg = (
            f"the two models return different shapes: {shapes[0]} from the reference, "
            f"{shapes[1]} from the candidate"
        )
        raise InputError(msg)


def _agreement(expected: list[Tensor], found: list[Tensor]) -> float | None:
    if not expected or expected[0].dim() != 2 or expected[0].shape[1] < 2:
        return None
    left, right = expected[0].argmax(1).cpu(), found[0].argmax(1).cpu()
    return float((left == right).double().mean())
