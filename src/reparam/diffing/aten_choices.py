"""What operators of ATen that compare, choose and look elsewhere mean in normal form."""

from __future__ import annotations

from reparam.diffing.shaping import Value
from reparam.diffing.table import HANDLERS, means
from reparam.diffing.values import Form
from reparam.diffing.vocabulary import Vocabulary


def _together(w: Vocabulary, kind: str, *values: Value) -> Form:
    """An operation on values of any shapes that go together, element by element."""
    return w.build.operation(kind, [w.spread(w.form(v), w.shape) for v in values], w.shape)


HANDLERS |= {
    "eq": lambda w, x, y: _together(w, "equal", x, y),
    "ge": lambda w, x, y: _together(w, "at_least", x, y),
    "gt": lambda w, x, y: _together(w, "greater", x, y),
    "le": lambda w, x, y: _together(w, "at_least", y, x),
    "lt": lambda w, x, y: _together(w, "greater", y, x),
    "maximum": lambda w, x, y: _together(w, "maximum", x, y),
    "minimum": lambda w, x, y: _together(w, "minimum", x, y),
    "ne": lambda w, x, y: _together(w, "unequal", x, y),
    "where": lambda w, chosen, x, y: _together(w, "where", chosen, x, y),
}


@means("masked_fill")
def _masked_fill(w: Vocabulary, x: Value, mask: Value, value: Value) -> Form:
    return _together(w, "where", mask, value, x)


@means("grid_sampler_2d", "grid_sampler_3d")
def _grid_sample(
    w: Vocabulary, x: Value, grid: Value, mode: int, padding: int, align: bool
) -> Form:  # fmt: skip
    return w.build.operation(
        "grid_sample", [w.form(x), w.form(grid)], w.shape, mode=mode, padding=padding, align=align
    )
