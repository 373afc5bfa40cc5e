"""A scale and shift on the other side of what moves elements between channels, by action."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam.planner.crossing import after, ahead_of, are_parts
from reparam.program import Opaque, Routed


def routed(origins: list[tuple[int, ...]]) -> Routed:
    source = Opaque(inputs=(), key="x", order=0, what="input", where="x", axis=-2)
    return Routed(
        inputs=(source,), key="y", order=1, what="routed", where="y", axis=-2,
        origins=tuple(origins),
    )  # fmt: skip


def run(node: Routed, x: torch.Tensor) -> torch.Tensor:
    """``(channels, positions)``: the channels that one is made of, side by side."""
    return torch.stack([torch.cat([x[c] for c in origins]) for origins in node.origins])


def act(channels: tuple[int | None, ...], x: torch.Tensor) -> torch.Tensor:
    """Scale and shift by numbers that tell the channels of the operation apart."""
    rows = [x[k] if c is None else (c + 2) * x[k] + 7 * c + 1 for k, c in enumerate(channels)]
    return torch.stack(rows)


WIDTH = 4


@st.composite
def moves(draw: st.DrawFn) -> Routed:
    """Every channel behind is made of equally many before."""
    block = draw(st.sampled_from([1, 1, 2]))
    one = st.tuples(*[st.integers(0, WIDTH - 1)] * block)
    return routed(draw(st.lists(one, min_size=1, max_size=6)))


@given(moves())
def test_what_comes_before_does_what_came_behind(node: Routed) -> None:
    x = torch.arange(1.0, 1 + 3 * WIDTH).reshape(WIDTH, 3)
    channels = tuple(range(len(node.origins)))
    before = ahead_of(node, channels, WIDTH)
    read = [origin for origins in node.origins for origin in set(origins)]
    assert (before is None) == (len(read) != len(set(read)))
    if before is not None:
        assert torch.equal(run(node, act(before, x)), act(channels, run(node, x)))
        untouched = [k for k in range(WIDTH) if k not in read]
        assert all(before[k] is None for k in untouched)


@given(moves())
def test_what_comes_behind_does_what_came_before(node: Routed) -> None:
    x = torch.arange(1.0, 1 + 3 * WIDTH).reshape(WIDTH, 3)
    channels = tuple(range(WIDTH))
    behind = after(node, channels)
    assert (behind is None) == any(len(set(origins)) > 1 for origins in node.origins)
    if behind is not None:
        assert torch.equal(act(behind, run(node, x)), run(node, act(channels, x)))


def test_readers_of_different_channels_are_parts() -> None:
    left, right = routed([(0,), (1,)]), routed([(3,), (2,)])
    assert are_parts([left, right])
    assert not are_parts([left, routed([(1,), (2,)])])
    assert not are_parts([left, left.inputs[0]])
