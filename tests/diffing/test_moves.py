"""Reshapes and permutations in a row have one way to be written, whatever way a network takes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import reparam
from reparam.diffing.moves import Moves


@st.composite
def shapes(draw, size):
    """A shape of this many elements, with axes of one."""
    shape = []
    while size > 1:
        divisor = draw(st.sampled_from([k for k in range(2, size + 1) if size % k == 0]))
        shape.append(divisor)
        size //= divisor
    for place in draw(st.lists(st.integers(0, len(shape)), max_size=2)):
        shape.insert(place, 1)
    return tuple(shape)


def moved(data, x, made):
    """A value after some moves, and the same as one, as far as it goes."""
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            order = data.draw(st.permutations(range(x.dim())))
            after, other = made.then("permute", x.permute(order).shape, order), x.permute(order)
        else:
            other = x.reshape(data.draw(shapes(x.numel())))
            after = made.then("reshape", other.shape)
        if after is None:
            break
        x, made = other, after
    return x, made


@given(st.data())
def test_the_steps_move_every_element_where_it_belongs(data):
    start = torch.arange(48).reshape(data.draw(shapes(48)))
    x, made = moved(data, start, Moves.none(start.shape))
    for kind, shape, settings in made.steps():
        start = start.permute(settings["order"]) if kind == "permute" else start.reshape(shape)
        assert start.shape == shape
    assert torch.equal(start, x)


@given(st.data())
def test_another_way_to_the_same_value_has_the_same_steps(data):
    start = torch.arange(48).reshape(data.draw(shapes(48)))
    x, made = moved(data, start, Moves.none(start.shape))
    around = made.then("reshape", (48,))
    back = None if around is None else around.then("reshape", x.shape)
    assert back is not None
    assert list(back.steps()) == list(made.steps())


class Heads(nn.Module):
    """Attention's reordering of heads, in one of two ways."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.linear, self.flat = nn.Linear(16, 16), flat

    def forward(self, x):
        y = self.linear(x).reshape(2, 8, 4, 4).permute(0, 2, 1, 3)  # batch, head, place, width
        return (self._flat if self.flat else self._turned)(y).softmax(-1)

    def _flat(self, y):
        return y.reshape(8, 8, 4).transpose(1, 2)

    def _turned(self, y):
        return y.transpose(2, 3).reshape(8, 4, 8)


def test_heads_turned_before_they_are_laid_out_and_behind_are_equal():
    torch.manual_seed(0)
    one, other = Heads(flat=True).eval(), Heads(flat=False).eval()
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 8, 16)
    assert reparam.diff(one, other, x).outcome == "equal"
    other.linear.weight.data[3, 5] *= 1 + 1e-4
    assert reparam.diff(one, other, x).outcome == "different"


class Standardised(nn.Conv2d):
    """A convolution whose kernel is normalised as it runs."""

    def forward(self, x):
        flat = self.weight.reshape(1, len(self.weight), -1)
        kernel = nn.functional.batch_norm(flat, None, None, training=True)
        return self._conv_forward(x, kernel.reshape_as(self.weight), self.bias)


def test_a_kernel_that_a_net_computes_is_compared_by_its_own_rounding():
    torch.manual_seed(0)
    model, x = Standardised(3, 64, 3).eval(), torch.randn(1, 3, 8, 8)
    stored = nn.Conv2d(3, 64, 3).eval()
    flat = model.weight.reshape(1, 64, -1)
    kernel = nn.functional.batch_norm(flat, None, None, training=True)
    stored.weight.data, stored.bias.data = kernel.reshape_as(model.weight).detach(), model.bias.data
    assert reparam.diff(model, stored, x).outcome == "equal"
    stored.weight.data[3, 1, 2, 2] *= 1 + 1e-3
    assert reparam.diff(model, stored, x).outcome == "different"
