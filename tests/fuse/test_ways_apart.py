"""What one way through the code of a model does differently, and what folds all the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.frontends.torch.repeated import Repeated
from reparam.frontends.torch.trace import trace
from reparam.frontends.torch.ways import Way, other_ways
from zoo import randomise


def pair(kernel: int = 3) -> nn.Sequential:
    """A convolution and its norm."""
    return nn.Sequential(
        nn.Conv2d(4, 4, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(4)
    )


class Decides(nn.Module):
    """Goes another way for large inputs; what it does there is told."""

    def __init__(self, large: Callable[[Decides, Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.inside, self.behind = pair(), pair(1), pair()
        self.large = large

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        y = self.large(self, y) if x.shape[-1] > 8 else self.inside(y.relu())
        return self.behind(y.relu())


def convolution_alone(net: Decides, y: Tensor) -> Tensor:
    """Runs the convolution of a pair without its norm."""
    return net.inside[0](y.relu())


def norm_alone(net: Decides, y: Tensor) -> Tensor:
    """Runs the norm of a pair without its convolution."""
    return net.inside[1](y.relu())


def twice(net: Decides, y: Tensor) -> Tensor:
    """Runs the pair twice."""
    return net.inside(net.inside(y.relu()).relu())


def norm_as_well(net: Decides, y: Tensor) -> Tensor:
    """Runs the norm by itself before the pair, where it would fold by itself, too."""
    return net.inside(net.inside[1](y).relu())


def weight_read(net: Decides, y: Tensor) -> Tensor:
    """Computes with the weight of the pair."""
    return net.inside(y.relu()) * net.inside[0].weight.mean()


def statistics_read(net: Decides, y: Tensor) -> Tensor:
    """Computes with the statistics of the pair before."""
    return net.inside(y.relu()) + net.before[1].running_mean.view(-1, 1, 1)


def changed_in_place(net: Decides, y: Tensor) -> Tensor:
    """Changes what the pair returns."""
    z = net.inside(y.relu())
    z.mul_(2.0)
    return z


def folds_of(net: nn.Module, x: Tensor | None) -> tuple[nn.Module, set[str]]:
    """A fused net, and the norms that are gone."""
    fused = reparam.fuse(net, x)
    left = {n for n, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d)}
    return fused, {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)} - left


OTHERS = {
    "nothing": (lambda _net, y: y.relu(), {"before.1", "inside.1", "behind.1"}),
    "another activation": (
        lambda net, y: net.inside(y.tanh()),
        {"before.1", "inside.1", "behind.1"},
    ),
    "the convolution alone": (convolution_alone, {"before.1", "behind.1"}),
    "the norm alone": (norm_alone, {"before.1", "behind.1"}),
    "the norm as well": (norm_as_well, {"before.1", "behind.1"}),
    "the pair twice": (twice, {"before.1", "inside.1", "behind.1"}),
    "the weight": (weight_read, {"before.1", "behind.1"}),
    "the statistics": (statistics_read, {"inside.1", "behind.1"}),
    "a change in place": (changed_in_place, {"before.1", "inside.1", "behind.1"}),
}


@pytest.mark.parametrize("with_example", [False, True])
@pytest.mark.parametrize("large", OTHERS)
def test_what_folds_folds_in_both_ways(large: str, with_example: bool) -> None:  # noqa: FBT001
    does, gone = OTHERS[large]
    net = randomise(Decides(does).double()).eval()
    fused, folded = folds_of(net, torch.randn(2, 4, 6, 6).double() if with_example else None)
    assert folded <= gone
    for size in (6, 12):
        x = torch.randn(2, 4, size, size).double()
        torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("large", ["nothing", "another activation"])
def test_pairs_fold_that_the_other_way_has_as_they_are(large: str) -> None:
    does, gone = OTHERS[large]
    net = randomise(Decides(does).double()).eval()
    assert folds_of(net, torch.randn(2, 4, 6, 6).double())[1] == gone


class Hands(nn.Module):
    """A part that returns what it computes on the way as well; one way reads it."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return self.norm(y), y

    def __init__(self) -> None:
        super().__init__()
        self.part, self.last = self.Part(), pair()

    def forward(self, x: Tensor) -> Tensor:
        y, inner = self.part(x)
        return self.last(y.relu() + inner if x.shape[-1] > 8 else y.relu())


@pytest.mark.parametrize("with_example", [False, True])
def test_a_value_that_one_way_reads_is_kept(with_example: bool) -> None:  # noqa: FBT001
    net = randomise(Hands().double()).eval()
    fused, folded = folds_of(net, torch.randn(2, 4, 6, 6).double() if with_example else None)
    assert folded == {"last.1"}
    for size in (6, 12):
        x = torch.randn(2, 4, size, size).double()
        torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)


class Branches(nn.Module):
    """Branches of one value in one way, of two values in the other."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.three, self.one = pair(), pair(1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.three(x) + self.one(y)

    def __init__(self) -> None:
        super().__init__()
        self.sum = self.Sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(x, x.tanh() if x.shape[-1] > 8 else x)


@pytest.mark.parametrize("with_example", [False, True])
def test_branches_stay_apart_that_read_two_values_in_one_way(with_example: bool) -> None:  # noqa: FBT001
    net = randomise(Branches().double()).eval()
    fused, folded = folds_of(net, torch.randn(2, 4, 6, 6).double() if with_example else None)
    assert folded == {"sum.three.1", "sum.one.1"}
    assert sum(isinstance(m, nn.Conv2d) for m in fused.modules()) == 2
    for size in (6, 12):
        x = torch.randn(2, 4, size, size).double()
        torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)


class Rounds(nn.Module):
    """Runs the first of two norms once more for large inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        if x.shape[-1] > 8:
            x = self.first(x)
        return self.second(self.first(x))


@pytest.mark.parametrize("with_example", [False, True])
def test_norms_stay_of_which_one_way_runs_one_twice(with_example: bool) -> None:  # noqa: FBT001
    net = randomise(Rounds().double()).eval()
    fused, _ = folds_of(net, torch.randn(2, 4, 6, 6).double() if with_example else None)
    for size in (6, 12):
        x = torch.randn(2, 4, size, size).double()
        torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)


class Handed(nn.Module):
    """A part whose code decides, and runs modules that it is handed: they are not below it."""

    class Runs(nn.Module):
        def forward(self, first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
            if x.shape[-1] > 8:
                return first(x).relu() + second(x)
            return first(x) + second(x)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.runs = pair(), pair(1), self.Runs()

    def forward(self, x: Tensor) -> Tensor:
        return self.runs(self.first, self.second, x * 1.0)


@pytest.mark.parametrize("with_example", [False, True])
def test_modules_fold_that_a_part_is_handed_which_decides(with_example: bool) -> None:  # noqa: FBT001
    net = randomise(Handed().double()).eval()
    fused, folded = folds_of(net, torch.randn(2, 4, 6, 6).double() if with_example else None)
    assert folded == {"first.1", "second.1"}
    for size in (6, 12):
        x = torch.randn(2, 4, size, size).double()
        torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)


class Rows(nn.Module):
    """A linear layer and a norm of rows in one way, of rows of rows in the other."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm, self.act = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.norm(self.linear(x)))

    def __init__(self) -> None:
        super().__init__()
        self.head = self.Head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x if x.shape[0] > 3 else x.unsqueeze(1).expand(-1, 6, -1))


def test_a_norm_after_a_linear_layer_is_of_other_channels_where_there_are_more_axes() -> None:
    net = randomise(Rows().double()).eval()
    fused = reparam.fuse(net, torch.randn(4, 6).double())
    for count in (2, 5):
        x = torch.randn(count, 6).double()
        torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)


def test_what_ways_have_in_common_is_traced_once() -> None:
    net = randomise(Decides(lambda net, y: net.inside(y.tanh())).double()).eval()
    first = Way(trace(net, example=((torch.randn(2, 4, 6, 6).double(),), {})))
    (other,) = other_ways(net, first, ((torch.randn(2, 4, 6, 6).double(),), {}))
    assert not any(isinstance(n.target, Repeated) for n in first.trace.graph.nodes)
    assert not any(isinstance(n.target, Repeated) for n in other.whole().trace.graph.nodes)


class Counting(nn.Module):
    """Two branches; what it does besides, if asked to, cannot be read."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (pair() for _ in range(2))
        self.last = 0

    def forward(self, x: torch.Tensor, count: bool = False) -> torch.Tensor:  # noqa: FBT001, FBT002
        y = self.left(x) + self.right(x)
        if count:
            self.last = int((y > 0).nonzero()[-1, 0])
        return y.relu()


class Asked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = Counting(), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor, count: bool = False) -> torch.Tensor:  # noqa: FBT001, FBT002
        return self.norm(self.body(x, count))


@pytest.mark.parametrize("example", [True, False])
def test_an_option_that_cannot_be_read_keeps_nothing_from_folding(*, example: bool) -> None:
    net = randomise(Asked().double())
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    fused = reparam.fuse(net, x if example else None)
    assert sum(isinstance(m, nn.Conv2d) for m in fused.modules()) == 1
    torch.testing.assert_close(fused(x), net(x), rtol=1e-10, atol=1e-10)


class Unread(nn.Module):
    """A part of which the code cannot be read for large inputs, and what it does there."""

    def __init__(self, large: Callable[[Unread, Tensor], Tensor]) -> None:
        super().__init__()
        self.pair, self.conv, self.norm, self.large = pair(), *pair(), large

    def forward(self, x: Tensor, large: bool) -> Tensor:  # noqa: FBT001
        if large and int((x > 0).nonzero()[-1, 0]) >= 0:
            return self.large(self, x)
        return self.norm(self.conv(self.pair(x).relu()))


class Unreadable(nn.Module):
    def __init__(self, large: Callable[[Unread, Tensor], Tensor]) -> None:
        super().__init__()
        self.part = Unread(large)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, x.shape[-1] > 8)


def same_there(part: Unread, x: Tensor) -> Tensor:
    return part.pair(x)


def conv_alone_there(part: Unread, x: Tensor) -> Tensor:
    return part.conv(x) + part.pair(x)


def conv_of_a_pair_there(part: Unread, x: Tensor) -> Tensor:
    return part.pair[0](x)


@pytest.mark.parametrize("large", [same_there, conv_alone_there, conv_of_a_pair_there])
@pytest.mark.parametrize("size", [6, 12, None])
def test_what_cannot_be_read_in_another_way_stays_right(
    large: Callable[[Unread, Tensor], Tensor], size: int | None
) -> None:
    net = randomise(Unreadable(large).double())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", reparam.FoldWarning)
        example = None if size is None else torch.randn(2, 4, 5, size, dtype=torch.float64)
        fused = reparam.fuse(net, example)
    for width in (6, 12):
        x = torch.randn(2, 4, 5, width, dtype=torch.float64)
        torch.testing.assert_close(fused(x), net(x), rtol=1e-10, atol=1e-10)
