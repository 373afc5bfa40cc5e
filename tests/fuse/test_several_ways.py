"""Code that goes one way or another: what folds in every way is folded, and no more."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from reparam import Why
from zoo import randomise


class PadsBySize(nn.Module):
    """Pads by plain numbers that it makes of the size of its input, as TensorFlow does."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, stride, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        height, stride = int(x.shape[-2]), self.conv.stride[0]
        over = height % stride or stride
        pad = max(self.conv.kernel_size[0] - over, 0)
        x = F.pad(x, (pad // 2, pad - pad // 2, pad // 2, pad - pad // 2))
        return self.norm(self.conv(x))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 1), (1, 1), (5, 3)])
def test_a_norm_folds_where_the_padding_depends_on_the_size(kernel: int, stride: int) -> None:
    net = randomise(PadsBySize(4, kernel, stride).double()).eval()
    fused = reparam.fuse(net, torch.randn(2, 4, 12, 12).double())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    for size in (9, 11, 12, 14):
        x = torch.randn(1, 4, size, size).double()
        torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)


class ReturnsMore(nn.Module):
    """Two layers that follow each other; what lies between is a result, too, if asked for."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.between = between
        self.second = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor, more: bool = False) -> Tensor | tuple[Tensor, Tensor]:  # noqa: FBT001, FBT002
        middle = self.first(x)
        y = self.second(self.between(middle))
        return (y, middle) if more else y


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("between", [nn.Identity(), nn.ReLU()], ids=["nothing", "an activation"])
def test_less_folds_where_more_would_hide_another_result(between: nn.Module, more: bool) -> None:  # noqa: FBT001
    net = randomise(ReturnsMore(between).double()).eval()
    x = torch.randn(2, 4, 6, 6).double()
    fused = reparam.fuse(net, {"x": x, "more": more})
    # Alone, each pair folds; both in one would lose what the other call returns.
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert sum(isinstance(m, nn.Conv2d) for m in fused.modules()) == 2
    for asked in (False, True):
        torch.testing.assert_close(fused(x, more=asked), net(x, more=asked), rtol=1e-12, atol=1e-12)


def test_a_norm_that_one_way_needs_by_itself_is_left() -> None:
    class Needs(ReturnsMore):
        def forward(self, x: Tensor, more: bool = False) -> Tensor:  # noqa: FBT001, FBT002
            y = self.first[0](x)
            return self.first[1](y.relu() if more else y)

    net = randomise(Needs(nn.Identity()).double()).eval()
    x = torch.randn(2, 4, 6, 6).double()
    plan = reparam.plan(net, x)
    assert not plan.regions
    kinds = {refusal.where: refusal.reason.kind for refusal in plan.refusals}
    assert kinds["first.1"] is Why.NOT_IN_EVERY_WAY
    fused = plan.apply()
    for asked in (False, True):
        torch.testing.assert_close(fused(x, more=asked), net(x, more=asked), rtol=0, atol=0)


class SizesPassed(nn.Module):
    """Hands plain numbers of the sizes of its input to a part that adds branches."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.three = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.one = nn.Conv2d(4, 4, 1, bias=False)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
            x = x.reshape(x.shape[0], 4, *size)
            return self.norm(self.three(x)) + self.one(x)

    def __init__(self) -> None:
        super().__init__()
        self.branches = self.Branches()

    def forward(self, x: Tensor) -> Tensor:
        size = int(x.shape[2]), int(x.shape[3])
        return self.branches(x.flatten(2), size)


def test_a_part_that_is_handed_sizes_as_numbers_still_runs_at_other_sizes() -> None:
    net = randomise(SizesPassed().double()).eval()
    fused = reparam.fuse(net, torch.randn(2, 4, 8, 8).double())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    for size in (6, 8, 11):
        x = torch.randn(1, 4, size, size + 1).double()
        torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)


def test_numbers_in_a_tuple_of_arguments_may_be_others() -> None:
    net = randomise(SizesPassed.Branches().double()).eval()
    fused = reparam.fuse(net, (torch.randn(2, 4, 64).double(), (8, 8)))
    assert sum(isinstance(m, nn.Conv2d) for m in fused.modules()) == 1
    for size in ((6, 7), (8, 8)):
        x = torch.randn(1, 4, size[0] * size[1]).double()
        torch.testing.assert_close(fused(x, size), net(x, size), rtol=1e-12, atol=1e-12)


def fills_in(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Give an option a value of its own where it is not given by name."""

    @functools.wraps(forward)
    def wrapper(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        kwargs["scale"] = kwargs.get("scale") or 2.0
        return forward(self, *args, **kwargs)

    return wrapper


class Decorated(nn.Module):
    """Two branches, and an option that a decorator of the forward fills in."""

    def __init__(self) -> None:
        super().__init__()
        self.three = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.one = nn.Conv2d(4, 4, 1, bias=False)

    @fills_in
    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        return (self.three(x) + self.one(x)).relu() * scale


@pytest.mark.parametrize("with_example", [False, True])
def test_a_decorator_may_take_an_option_by_name_alone(with_example: bool) -> None:  # noqa: FBT001
    net = randomise(Decorated().double()).eval()
    x = torch.randn(2, 4, 8, 8).double()
    fused = reparam.fuse(net, x if with_example else None)
    assert sum(isinstance(m, nn.Conv2d) for m in fused.modules()) == 1
    torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)


class Tries(nn.Module):
    """Hands every layer a length, and calls it without where it takes none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.ReLU()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            try:
                x = layer(x, lengths=None)
            except TypeError:
                x = layer(x)
        return x


def test_a_caller_catches_what_a_layer_does_not_take() -> None:
    net = randomise(Tries().double()).eval()
    x = torch.randn(2, 4, 8).double()
    fused = reparam.fuse(net, x)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in fused.modules())
    torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)
