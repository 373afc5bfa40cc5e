"""What a model that is cut down needs goes on as before: writes, state, modules, hooks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from cutting import double, equal, layer, names
from reparam import Why
from reparam.errors import InputError, UnsupportedModelError
from small_nets import conv, image


class InPlace(nn.Module):
    """What is dropped and what is kept write to each other's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(), conv()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, z = self.one(x), self.two(x)
        view = y.flatten(2)[:, 1:]
        changed = view.mul_(2.0)  # y is another one, too
        self.relu(y)
        buffer = torch.zeros_like(z)
        buffer.select(1, 0).copy_(z[:, 1])
        z += y
        return y, changed.sum(), buffer, z


@pytest.mark.parametrize("kept", [0, 1, 2, 3, [0, 2], [1, 3]])
def test_what_writes_in_place_to_what_is_kept_is_kept(kept):
    model = double(InPlace())
    cut = reparam.fuse(model, image(), outputs=kept)
    result = model(image())
    equal(cut(image()), result[kept] if isinstance(kept, int) else tuple(result[k] for k in kept))
    assert hasattr(cut, "two") == (kept not in (0, 1))


class Stateful(nn.Module):
    """Keeps a running mean of what it saw, and reads it."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.mul_(0.5).add_(x.mean())
            return x

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.kept, self.gone = conv(), conv(), self.Mean(), self.Mean()
        self.register_buffer("last", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.kept(self.one(x)) + self.last
        self.last.copy_(y[0].mean((1, 2), keepdim=True))
        return y, self.gone(self.two(x))


def test_what_is_kept_from_call_to_call_goes_on():
    model = double(Stateful())
    cut = reparam.fuse(copy.deepcopy(model), image(), outputs=0)
    for seed in range(3):
        equal(cut(image() * seed), model(image() * seed)[0])
    equal(cut.kept.seen, model.kept.seen)
    assert not hasattr(cut, "two")


class Calls(nn.Module):
    """One block is called for what is kept, for what is not, and for both."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = conv(), conv()

        def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
            left = self.left(x)
            return (left if mask is None else left * mask), self.right(x)

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.block, self.maker, self.masked = self.Block(), conv(), masked

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b = self.block(x)
        mask = self.maker(x)
        c, d = self.block(a, mask) if self.masked else self.block(a * mask)
        e, _ = self.block(b)
        return a, c, d, e


BOTH = {"left", "right"}


@pytest.mark.parametrize(("kept", "left"), [(0, {"left"}), (1, {"left"}), (2, BOTH), (3, BOTH)])
def test_calls_of_one_module_share_what_is_left_of_it(kept, left):
    model = double(Calls(masked=False))
    cut = reparam.fuse(model, image(), outputs=kept)
    equal(cut(image()), model(image())[kept])
    assert {name.split(".")[1] for name in names(cut) if "block" in name} == left


@pytest.mark.parametrize("kept", range(4))
def test_a_module_that_is_called_in_several_ways_stays_whole(kept):
    model = double(Calls(masked=True))
    plan = reparam.plan(model, image(), outputs=kept)
    cut = plan.apply()
    equal(cut(image()), model(image())[kept])
    told = [refusal for refusal in plan.refusals if refusal.reason.kind is Why.NOT_REWRITTEN]
    assert [refusal.where for refusal in told] == (["block"] if kept == 1 else [])


class TwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layer(), layer()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return self.one(x), self.two(x)


def test_code_that_goes_another_way_for_other_inputs_is_told_and_raises_there():
    model = double(TwoWays())
    even = image()[..., :6]
    plan = reparam.plan(model, even, outputs=0)
    assert Why.ONE_WAY in [refusal.reason.kind for refusal in plan.refusals]
    cut = plan.apply()
    equal(cut(even[..., :4]), model(even[..., :4])[0])
    with pytest.raises(InputError, match="planned for"):
        cut(even[..., :5])


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layer(), layer()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.from_numpy(x.detach().numpy() * 2)
        return self.one(y), self.two(x)


def test_what_cannot_be_traced_is_refused():
    with pytest.raises(UnsupportedModelError, match="traced"):
        reparam.fuse(double(Untraceable()), image(), outputs=0)
    with pytest.raises(InputError, match="example_inputs"):
        reparam.fuse(double(Untraceable()), torch.zeros(1, 7, 5, 5).double(), outputs=0)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = Untraceable(), layer()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b = self.inner(x)
        return {"a": a, "b": b, "c": self.other(x)}


@pytest.mark.parametrize("kept", ["a", "b", "c"])
def test_a_module_that_cannot_be_traced_stays_or_goes_whole(kept):
    model = double(Holder())
    cut = reparam.fuse(model, image(), outputs=kept)
    equal(cut(image()), model(image())[kept])
    assert hasattr(cut, "inner") == (kept != "c")
    assert hasattr(cut, "other") == (kept == "c")
