"""Hypothesis strategies: random small networks of the operators that a fold meets.

A network is drawn as Python source, statement by statement. Each statement is run as soon as it is
drawn, at two input sizes, so that only programs that run are produced, and a failing example is
shown as the forward a person would have written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn

from authors import draw_module
from statements import KINDS

__all__ = ["Network", "networks"]

_SIZES = {1: (9,), 2: (7, 6), 3: (5, 4, 5)}


@dataclass(frozen=True, eq=False)
class Network:
    """A drawn model in float64 and eval mode, and the input shapes it runs at."""

    model: nn.Module
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    source: str

    def inputs(self, which: int = 0) -> torch.Tensor:
        """Draw the example input (0) or one of another batch and size (1)."""
        rng = torch.Generator().manual_seed(which)
        return torch.randn(self.shapes[which], generator=rng, dtype=torch.float64)

    def __repr__(self) -> str:
        """Show what a person needs to run the example again."""
        return f"\n{self.source}\n{self.model}\ninput shapes: {self.shapes}"


@st.composite
def networks(draw: st.DrawFn, max_steps: int = 9) -> Network:
    """Draw a network of up to ``max_steps`` statements, some of which are blocks of several."""
    rank = draw(st.sampled_from([2, 1, 3]))
    channels = draw(st.sampled_from([2, 1, 4, 3, 6]))
    fixed = draw(st.booleans())
    shape = (2, channels, *_SIZES[rank])
    other = (
        3,
        channels,
        *(_SIZES[rank] if fixed else (n + 2 + i for i, n in enumerate(_SIZES[rank]))),
    )
    model, source = draw_module(draw, (shape, other), KINDS, max_steps, depth=0)
    return Network(model, (shape, other), source)
