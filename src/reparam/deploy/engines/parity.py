"""Does an engine compute what the reference model computes? Judged against rounding, not a guess.

The candidate is compared with the reference as PyTorch runs it. Single precision is judged as
:func:`reparam.verify` judges: by the reference's own rounding error (the *noise control*). For
bfloat16 and float16 the control is the reference itself run in that type, and for weights in eight
bits (``"int8-weights"``) the reference with its weights rounded so, a step for each output channel.
What is allowed is :data:`FACTORS` times the control: a candidate sums in another order, and in
float32 it may use a Winograd convolution, which loses a few bits more than a direct one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from reparam._support.arguments import running_on
from reparam._support.untouched import untouched
from reparam.deploy.engines._inputs import flat_outputs
from reparam.errors import UnsupportedModelError, VerificationError
from reparam.frontends.torch.copying import own_copy
from reparam.verifying import (
    Difference,
    constant_outputs,
    differences,
    judge,
    rounding_of,
    unsound_weight,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

FACTORS = {"fp32": 8.0, "bf16": 4.0, "fp16": 4.0, "int8-weights": 4.0}
"""How many times the reference's own rounding error a candidate may be away, by precision.

Over RepVGG-A0, MobileOne-S0, FastViT-T8 and ResNet-18, train and deploy form, in ONNX Runtime and
OpenVINO, the ratio reached 3.5 in float32 and 1.0 in bfloat16.
"""

_LARGEST = 127
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Parity:
    """How far a candidate is from the exact answer, and how far rounding alone is.

    Attributes:
        max_abs: Largest absolute difference between candidate and reference.
        max_rel: ``max_abs`` over the largest absolute value of the reference.
        noise: Rounding error of the reference itself in the candidate's precision.
        tolerance: The largest ``max_abs`` that passes.
        top1_agreement: Share of samples whose largest output is at the same place in candidate and
            reference; ``None`` where the output is not
            (samples, classes).
        samples: Number of samples compared.
        ok: Whether something was compared, ``max_abs`` is at most ``tolerance``, and integers and
            booleans are equal.
        problem: Why the numbers show nothing, where they do not (they are not finite, or none).
        unequal: Number of integers and booleans that differ.
    """

    max_abs: float
    max_rel: float
    noise: float
    tolerance: float
    top1_agreement: float | None
    samples: int
    ok: bool
    problem: str | None = None
    unequal: int = 0

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
        if self.problem is not None:
            return f"shows nothing beside the reference: {self.problem}"
        verb = "agrees with" if self.ok else "differs from"
        agreement = (
            ""
            if self.top1_agreement is None
            else f"; top-1 agrees on {self.top1_agreement:.2%} of {self.samples} samples"
        )
        integers = f"; {self.unequal:,} integers are not equal" if self.unequal else ""
        return (
            f"{verb} the reference: max error {self.max_abs:.2e} where {self.tolerance:.2e} is "
            f"allowed (the reference's own rounding error is {self.noise:.2e}){integers}{agreement}"
        )


class Reference:
    """The answers of a reference model on fixed inputs, computed once and compared with many.

    Args:
        model: The model everything is compared with, in eval mode. It is not changed.
        inputs: Its positional inputs.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        self._model = model
        self._inputs = tuple(inputs)
        with torch.no_grad(), running_on("the reference", self._inputs), untouched([model]):
            self._outputs = flat_outputs(model(*self._inputs))
        self._culprit = unsound_weight(model)
        self._noise: dict[str, Difference] = {}

    def compare(self, outputs: Sequence[torch.Tensor], precision: str = "fp32") -> Parity:
        """Judge the flattened outputs of a candidate that ran in ``precision``.

        Raises:
            VerificationError: The outputs differ in number or shape from the reference's.
            UnsupportedModelError: The reference does not run in that precision.
        """
        self._check_shapes(outputs)
        noise = self._noise_in(precision)
        verdict = judge(self._outputs, list(outputs), noise, factor=FACTORS[precision])
        return Parity(
            max_abs=verdict.max_abs,
            max_rel=verdict.max_rel,
            noise=verdict.control,
            tolerance=verdict.tolerance,
            top1_agreement=verdict.agreement,
            samples=self._inputs[0].shape[0] if self._inputs[0].dim() else 1,
            ok=verdict.ok and self._culprit is None,
            problem=self._culprit or verdict.problem,
            unequal=verdict.unequal,
        )

    def allowed(self, precision: str) -> float:
        """The largest difference that passes of a candidate that runs in ``precision``.

        Raises:
            UnsupportedModelError: The reference does not run in that precision.
        """
        return FACTORS[precision] * self._noise_in(precision).max_abs

    def on(self, inputs: Sequence[torch.Tensor]) -> Reference:
        """The answers of the same model on other inputs."""
        return Reference(self._model, inputs)

    def is_constant(self, tolerance: float) -> bool:
        """Whether no output changes with the inputs by more than what counts as rounding."""

        def run(inputs: Any) -> Any:
            return self._model(*inputs)

        rounding = [tolerance] * len(self._outputs)
        constant = constant_outputs(run, self._inputs, self._outputs, rounding)
        return len(constant) == sum(1 for y in self._outputs if y.numel())

    def _noise_in(self, precision: str) -> Difference:
        if precision not in self._noise:
            self._noise[precision] = self._measure_noise(precision)
        return self._noise[precision]

    def _measure_noise(self, precision: str) -> Difference:
        with torch.no_grad():
            if precision == "fp32":
                return rounding_of(self._model, self._inputs, self._outputs)
            if precision == "int8-weights":
                return differences(self._outputs, self._in_eight_bits())
            return differences(self._outputs, self._in_half(_HALVES[precision]))

    def _in_eight_bits(self) -> list[torch.Tensor]:
        rounded = own_copy(self._model)
        for module in rounded.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.nn.Parameter) and weight.dim() > 1:
                axis = 1 if getattr(module, "transposed", False) else 0
                others = [k for k in range(weight.dim()) if k != axis]
                step = (weight.abs().amax(others, keepdim=True) / _LARGEST).clamp(min=1e-30)
                weight.copy_((weight / step).round() * step)
        return flat_outputs(rounded(*self._inputs))

    def _in_half(self, dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = (x.to(dtype) if x.is_floating_point() else x for x in self._inputs)
        try:
            return flat_outputs(own_copy(self._model).to(dtype)(*inputs))
        except RuntimeError as error:
            raise UnsupportedModelError(
                f"{type(self._model).__name__} does not run in {dtype}, which is needed to tell "
                f"an error from the rounding of that type: {error}"
            ) from error

    def _check_shapes(self, outputs: Sequence[torch.Tensor]) -> None:
        found = [tuple(y.shape) for y in outputs]
        needed = [tuple(y.shape) for y in self._outputs]
        if found != needed:
            raise VerificationError(
                f"the outputs have the shapes {found}, and those of the reference are {needed}"
            )
