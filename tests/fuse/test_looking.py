"""Code that looks at its values and their sizes is traced, and stays right at other sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reparam
from checking import assert_same_function
from small_nets import TOLERANCE, Lambda, TwoBranches, check, conv, image, norm
from zoo import randomise

Forward = Callable[[Any, Any], Any]

# ------------------------------------------------------------------------------- looking at values


def _asserts(m: Any, x: torch.Tensor) -> torch.Tensor:
    assert x.shape[1] == 4, "four channels"
    assert x.dim() == 4
    return m.both(x).relu()


def _raises(m: Any, x: torch.Tensor) -> torch.Tensor:
    if x.shape[1] != 4:
        msg = f"needed 4 channels, got {x.shape[1]}"
        raise ValueError(msg)
    return m.both(x).relu()


def _raises_for_numbers(m: Any, x: torch.Tensor) -> torch.Tensor:
    if not x.isfinite().all():
        msg = "not finite"
        raise ValueError(msg)
    return m.both(x).relu()


def _by_rank(m: Any, x: torch.Tensor) -> torch.Tensor:
    if x.dim() == 3 or x.ndim == 2 or len(x.shape) != 4:
        x = x.unsqueeze(0)
    return m.both(x).relu()


def _by_kind(m: Any, x: torch.Tensor) -> torch.Tensor:
    if not isinstance(x, torch.Tensor) or x.dtype == torch.int64 or x.device.type == "mps":
        return x
    if x.requires_grad and m.training:
        return x
    return m.both(x).relu()


def _unpacks(m: Any, x: torch.Tensor) -> torch.Tensor:
    b, c = x.shape[:2]
    *_, h, w = x.size()
    return m.both(x).relu().view(b, c, h * w)


def _cache(m: Any, x: torch.Tensor) -> torch.Tensor:
    grid = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
    return m.both(x).relu() + grid * torch.as_tensor(2.0)


def _as_tensor(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.both(torch.as_tensor(x)).relu()


def _made_here(m: Any, x: torch.Tensor) -> torch.Tensor:
    return nn.ReLU()(nn.AvgPool2d(1)(m.both(x)))


def _tries(m: Any, x: torch.Tensor) -> torch.Tensor:
    try:
        out = m.both(x)
    except RuntimeError:
        out = x
    return out.relu()


def _own_parameter(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.both(x)
    return out.relu() * m.n.weight.view(1, out.shape[1], 1, 1)


def _buffer_through_a_layer(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.both(x).relu() + F.linear(m.n.running_mean, torch.diag(x.mean((0, 2, 3)))).sum()


def _plain_tensors(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(0.5) * m.both(x) + torch.as_tensor(1.0)


LOOKS = [
    _asserts, _raises, _raises_for_numbers, _by_rank, _by_kind, _unpacks, _cache, _as_tensor,
    _made_here, _tries,
]  # fmt: skip


class Looking(TwoBranches):
    def __init__(self, how: Forward) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self, x)


@pytest.mark.parametrize("how", LOOKS)
def test_code_that_looks_at_an_input_folds(how: Forward) -> None:
    check(Looking(how), convs=1, norms=0)
    check(Lambda(lambda m, x: m.a(x), Looking(how)), convs=1, norms=0)


@pytest.mark.parametrize("how", [_own_parameter, _buffer_through_a_layer, _plain_tensors])
@pytest.mark.parametrize("example", [True, False])
def test_operations_on_parameters_are_no_obstacle(how: Forward, *, example: bool) -> None:
    check(Looking(how), example=example)


def test_what_is_checked_is_checked_still() -> None:
    fused = reparam.fuse(randomise(Looking(_raises).double()), image())
    with pytest.raises((ValueError, RuntimeError)):
        fused(image(1, 5, 4, 4))


@pytest.mark.parametrize("example", [True, False])
def test_an_optional_layer_on_an_argument_that_is_not_given(*, example: bool) -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.l = conv(), norm(), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, pos: torch.Tensor | None = None) -> torch.Tensor:
            out = self.b(self.a(x))
            return out + self.l(pos) if pos is not None else out

    check(Embedded(), convs=1, norms=0, example=example)

    class Needed(Embedded):
        def forward(self, x: torch.Tensor, pos: torch.Tensor | None = None) -> torch.Tensor:
            return self.b(self.a(x)) + self.l(pos)

    model = randomise(Needed().double())
    x = (image(), image(2, 4, 9, 8))
    fused = reparam.fuse(model, x if example else None)
    assert_same_function(model, fused, *x, tolerance=TOLERANCE)


# ------------------------------------------------------------------------------- other sizes


def _pads_like_tensorflow(m: Any, x: torch.Tensor) -> torch.Tensor:
    height, width = x.shape[-2:]
    down = 3 - 2 if height % 2 == 0 else max(3 - height % 2, 0)
    right = max(3 - 2, 0) if width % 2 == 0 else max(3 - (width % 2), 0)
    x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    return m.b(m.a(x)).relu()


def _rounds_up(m: Any, x: torch.Tensor) -> torch.Tensor:
    more = (math.ceil(x.shape[-1] / 4) - 1) * 4 + 3 - x.shape[-1]
    return m.b(m.a(F.pad(x, (0, more))))


def _as_numbers(m: Any, x: torch.Tensor) -> torch.Tensor:
    size = (int(x.shape[-2] * 2), int(x.shape[-1] * 2))
    return m.b(m.a(F.interpolate(x, size=size)))


OTHER_SIZES = [_pads_like_tensorflow, _rounds_up, _as_numbers]


@pytest.mark.parametrize("how", OTHER_SIZES)
def test_a_pair_behind_arithmetic_on_sizes_folds(how: Forward) -> None:
    sizes = [image(2, 4, h, w) for h, w in [(9, 8), (8, 8), (12, 11), (7, 5)]]
    check(Lambda(how, conv(padding=0), norm()), *sizes, convs=1, norms=0)


def _another_layer(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.b(m.a(x)) if x.shape[-1] > 9 else m.b(m.c(x))


def _another_reader(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.a(x)
    return m.b(out) + out if x.shape[-1] > 9 else m.b(out)


def _between(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.a(x)
    if x.shape[-1] > 9:
        out = out.relu()
    return m.b(out)


def _by_index(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.b([m.a, m.c][int(x.shape[-1] > 9)](x))


def _as_often_as_the_size_says(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.a(x)
    for _ in range(x.shape[-1] // 10):
        out = out.relu()
    return m.b(out)


def _by_the_numbers(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.a(x)
    return m.b(out) if x.mean() > 0 else m.b(out.relu())


def _in_two_steps(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.a(x)
    if x.shape[-1] > 9 and x.shape[-2] > 9:
        out = out.relu()
    return m.b(out)


DEPENDS = [
    _another_layer, _another_reader, _between, _by_index, _as_often_as_the_size_says,
    _by_the_numbers, _in_two_steps,
]  # fmt: skip


@pytest.mark.parametrize("how", DEPENDS)
@pytest.mark.parametrize("first", [0, 1, 2])
def test_what_another_size_does_otherwise_stays_right(how: Forward, first: int) -> None:
    images = [image(2, 4, 8, 8), image(2, 4, 12, 12).abs(), -image(2, 4, 21, 22).abs()]
    order = [*images[first:], *images[:first]]
    check(Lambda(how, conv(), norm(), conv()), *order)
    check(Lambda(lambda m, x: m.a(x), Lambda(how, conv(), norm(), conv())), *order)


@pytest.mark.parametrize("first", [0, 1])
def test_a_block_that_goes_another_way_is_not_rewritten_for_one(first: int) -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        both = m.a(x) + m.b(x)
        return both.relu() if x.shape[-1] > 9 else both.tanh()

    images = [image(2, 4, 8, 8), image(2, 4, 12, 12)]
    check(Lambda(forward, conv(), conv(k=1)), *images[first:], *images[:first])


# ----------------------------------------------------------------------- what norms check of ranks


class CheckingNorm(nn.BatchNorm2d):
    """A norm that says of what it is given how many dimensions it has, as timm's do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class Checking(nn.Module):
    """Two branches with such norms, in a block that checks its own input as well."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), CheckingNorm(4))
        self.point = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), CheckingNorm(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.ndim == 4, "images wanted")
        return (self.dense(x) + self.point(x)).relu()


@pytest.mark.parametrize("example", [False, True])
def test_checks_of_norms_that_are_gone_are_gone_and_those_of_blocks_stay(*, example: bool) -> None:
    net = randomise(Checking().double()).eval()
    x = torch.randn(2, 4, 6, 7).double()
    fused = reparam.fuse(net, x) if example else reparam.fuse(net)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)
    assert [type(m) for m in fused.modules() if not isinstance(m, Checking)].count(nn.Conv2d) == 1
    asserted = [n for n in torch.fx.symbolic_trace(fused).graph.nodes if "assert" in n.name]
    assert len(asserted) <= 1
    with pytest.raises((AssertionError, reparam.ReparamError)):
        fused(x[0])


def test_a_norm_alone_keeps_its_check() -> None:
    net = nn.Sequential(randomise(CheckingNorm(4).double()), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    with pytest.raises(AssertionError):
        reparam.fuse(net.double())(torch.randn(4, 6, 7).double())
