r"""Does an engine compute what the reference model computes? Judged against rounding, not a guess.

The exact answer is taken from the reference in float64. Two distances from it are measured on the
same inputs: that of the candidate, and that of the reference itself when PyTorch runs it in the
candidate's precision (the *noise control*). The candidate passes when

.. math:: \max|y_c - y_{64}| \le f \cdot \max|y_{32} - y_{64}| + \epsilon \cdot \max|y_{64}|

where epsilon is the rounding unit of the precision and the factor *f* is :data:`FACTORS`. A
candidate sums in another order, and in float32 it may use a Winograd convolution, which loses a few
bits more than a direct one; the factor allows for that.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from reparam.engines._inputs import flat_outputs
from reparam.errors import UnsupportedModelError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

__all__ = ["FACTORS", "Parity", "Reference"]

FACTORS = {"fp32": 8.0, "bf16": 4.0}
"""How many times the reference's own rounding error a candidate may be away, by precision.

Over RepVGG-A0, MobileOne-S0, FastViT-T8 and ResNet-18, train and deploy form, in ONNX Runtime and
OpenVINO, the ratio reached 3.5 in float32 and 1.0 in bfloat16.
"""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Parity:
    """How far a candidate is from the exact answer, and how far rounding alone is.

    Attributes:
        max_abs: Largest absolute difference between candidate and float64 reference.
        max_rel: ``max_abs`` over the largest absolute value of the reference.
        noise: Largest absolute difference between the reference run in the candidate's precision
            and in float64.
        tolerance: The largest ``max_abs`` that passes.
        top1_agreement: Share of samples whose largest output is at the same place in candidate and
            reference (in the reference's own precision); ``None`` where the output is not
            (samples, classes).
        samples: Number of samples compared.
        ok: Whether ``max_abs`` is at most ``tolerance``.
    """

    max_abs: float
    max_rel: float
    noise: float
    tolerance: float
    top1_agreement: float | None
    samples: int
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as a dictionary that JSON can hold."""
        return asdict(self)

    def raise_if_different(self, what: str = "the candidate") -> None:
        """Raise unless the candidate passed.

        Raises:
            VerificationError: It did not; the message holds the numbers.
        """
        if not self.ok:
            raise VerificationError(f"{what} {self}")

    def __str__(self) -> str:
        verb = "agrees with" if self.ok else "differs from"
        agreement = (
            ""
            if self.top1_agreement is None
            else f"; top-1 agrees on {self.top1_agreement:.2%} of {self.samples} samples"
        )
        return (
            f"{verb} the reference: max error {self.max_abs:.2e} where {self.tolerance:.2e} is "
            f"allowed (the reference's own rounding error is {self.noise:.2e}){agreement}"
        )


class Reference:
    """The answers of a reference model on fixed inputs, computed once and compared with many.

    Args:
        model: The model everything is compared with, in eval mode. It is not changed.
        inputs: Its positional inputs.

    Raises:
        UnsupportedModelError: The model does not run in float64.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        self._model = model
        self._inputs = tuple(inputs)
        self._exact = self._answers(torch.float64)
        self._own = {torch.float32: self._answers(None)}

    def compare(self, outputs: Sequence[torch.Tensor], precision: str = "fp32") -> Parity:
        """Judge the flattened outputs of a candidate that ran in ``precision``.

        Raises:
            VerificationError: The outputs differ in number or shape from the reference's.
        """
        self._check_shapes(outputs)
        dtype = _DTYPES[precision]
        if dtype not in self._own:
            self._own[dtype] = self._answers(dtype)
        scale = max((_largest(y) for y in self._exact), default=0.0)
        error = _distance(outputs, self._exact)
        noise = _distance(self._own[dtype], self._exact)
        tolerance = FACTORS[precision] * noise + torch.finfo(dtype).eps * scale
        return Parity(
            max_abs=error,
            max_rel=error / scale if scale else error,
            noise=noise,
            tolerance=tolerance,
            top1_agreement=_top1_agreement(outputs, self._own[torch.float32]),
            samples=self._inputs[0].shape[0] if self._inputs[0].dim() else 1,
            # A candidate that is not finite compares false, and so fails.
            ok=bool(error <= tolerance),
        )

    def _answers(self, dtype: torch.dtype | None) -> list[torch.Tensor]:
        with torch.no_grad():
            if dtype is None:
                return flat_outputs(self._model(*self._inputs))
            model = copy.deepcopy(self._model).to(dtype)
            inputs = (x.to(dtype) if x.is_floating_point() else x for x in self._inputs)
            try:
                with _default_dtype(dtype):
                    return flat_outputs(model(*inputs))
            except RuntimeError as error:
                raise UnsupportedModelError(
                    f"{type(self._model).__name__} does not run in {dtype}, which is needed to "
                    f"tell an error from rounding: {error}"
                ) from error

    def _check_shapes(self, outputs: Sequence[torch.Tensor]) -> None:
        found = [tuple(y.shape) for y in outputs]
        needed = [tuple(y.shape) for y in self._exact]
        if found != needed:
            raise VerificationError(
                f"the outputs have the shapes {found}, and those of the reference are {needed}"
            )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let the tensors that a model makes on the way be of the dtype it is run in."""
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(former)


def _distance(outputs: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    pairs = zip(outputs, exact, strict=True)
    differences = [_largest(y.to(torch.float64) - z.to(torch.float64)) for y, z in pairs]
    # max() would skip a NaN, depending on the order.
    return float(torch.tensor(differences, dtype=torch.float64).max()) if differences else 0.0


def _largest(value: torch.Tensor) -> float:
    return float(value.abs().max()) if value.numel() else 0.0


def _top1_agreement(
    outputs: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]
) -> float | None:
    """Compare the predictions where the model is a classifier: one (samples, classes) output."""
    classifier = 2
    if not outputs or outputs[0].dim() != classifier or outputs[0].shape[1] < classifier:
        return None
    same: Callable[..., torch.Tensor] = torch.eq
    return float(same(outputs[0].argmax(1), reference[0].argmax(1)).double().mean())
