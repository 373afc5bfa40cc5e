"""Do two models compute the same? And was there anything to see?

A comparison has shown something if both returned the same structure of results, with numbers in it,
finite ones, which change with the inputs by more than what counts as rounding.
"""

from __future__ import annotations

from reparam.verifying.calling import call
from reparam.verifying.inside import Inside, agree_inside
from reparam.verifying.outputs import (
    Difference,
    differences,
    largest_difference,
    structural_difference,
    tensors,
)
from reparam.verifying.rounding import rounding_of
from reparam.verifying.showing import NothingShownWarning, constant_outputs, other_inputs
from reparam.verifying.verdict import Verdict, judge, verify
from reparam.verifying.weights import unsound_weight

__all__ = [
    "Difference",
    "Inside",
    "NothingShownWarning",
    "Verdict",
    "agree_inside",
    "call",
    "constant_outputs",
    "differences",
    "judge",
    "largest_difference",
    "other_inputs",
    "rounding_of",
    "structural_difference",
    "tensors",
    "unsound_weight",
    "verify",
]
