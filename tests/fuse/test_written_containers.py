"""What forwards put into lists, dicts and parts of tensors while they run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import reparam
from checking import assert_same_function
from small_nets import TOLERANCE, Pair, image
from zoo import randomise

X, OTHER = image(2, 6, 9, 8), image(1, 6, 5, 11)


class Base(nn.Module):
    """Two branches, which become one layer where the forward around them is read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Pair(), Pair()

    def both(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x)


class Decoded(Base):
    """The last lines of a detector: parts of its output become coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = [torch.tensor([2.0, 3.0], dtype=torch.float64)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.both(x).permute(0, 2, 3, 1).sigmoid()
        y[..., 0:2] = (y[..., 0:2] * 2.0 - 0.5 + self.grid[0]) * 3
        y[..., 2:4] = (y[..., 2:4] * 2) ** 2
        return y.reshape(x.shape[0], -1, 6)


class Masked(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.both(x)
        y[y < 0] = 0.5
        y[:, 1] *= 2
        return y


class Assembled(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[:, :2] = x[:, 4:]
        y[:, 2:] = x[:, :4]
        return self.both(y)


class SeenElsewhere(Base):
    """Other names of a value see what is put into it, a layer that has run does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        before, view = self.both(y).relu(), y.flatten(2)
        view[:, 0] = 7.0
        return before + y


class Head(nn.Module):
    """It replaces the parts of its list; its branch on a number cannot be read in a trace."""

    def __init__(self, *, readable: bool) -> None:
        super().__init__()
        self.pairs, self.readable = nn.ModuleList([Pair(), Pair()]), readable

    def forward(self, x: list[torch.Tensor]) -> Any:
        done = []
        for k, pair in enumerate(self.pairs):
            x[k] = pair(x[k])
            x[k] = x[k].flatten(2).contiguous()
            if not self.readable and float(x[k].sum().item()) > 1e9:
                return x
            done.append(x[k].sigmoid())
        return torch.cat(done, 1), x


class Listed(Base):
    def __init__(self, *, readable: bool) -> None:
        super().__init__()
        self.head = Head(readable=readable)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head([self.both(x).relu(), x])


class Filling(nn.Module):
    def __init__(self, *, readable: bool) -> None:
        super().__init__()
        self.pair, self.readable = Pair(), readable

    def forward(self, data: dict[str, Any]) -> None:
        data["y"] = self.pair(data["x"])
        if not self.readable:
            data["count"] = int((data["y"] > 0).nonzero().shape[0])
        data.update({"z": data["y"] * 2})


class Filled(Base):
    """Data that every part of the model adds its results to."""

    def __init__(self, *, readable: bool) -> None:
        super().__init__()
        self.fill = Filling(readable=readable)

    def forward(self, x: torch.Tensor) -> Any:
        data = {"x": self.both(x).relu()}
        self.fill(data)
        return data["y"] + data["z"]


class Kept(Base):
    """A list that a child returned, changed by its caller."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Listed(readable=True)

    def forward(self, x: torch.Tensor) -> Any:
        _, parts = self.body(x)
        parts[0] = self.both(parts[0].unflatten(2, x.shape[2:]))
        parts.append(parts[0] * 2)
        return parts


NETS = {
    "decoded": (Decoded, 1),
    "masked": (Masked, 1),
    "assembled": (Assembled, 1),
    "seen elsewhere": (SeenElsewhere, 1),
    "kept": (Kept, 4),
    "listed": (lambda: Listed(readable=True), 3),
    "unread list": (lambda: Listed(readable=False), 3),
    "filled": (lambda: Filled(readable=True), 2),
    "unread dict": (lambda: Filled(readable=False), 3),
}


@pytest.mark.parametrize("example", [X, None], ids=["example", "no example"])
@pytest.mark.parametrize("name", NETS)
def test_what_is_written_on_the_way_stays_right(name: str, example: torch.Tensor | None) -> None:
    make, convs = NETS[name]
    net = randomise(make().double())
    fused = reparam.fuse(net, example)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) == 0
    assert sum(isinstance(m, nn.Conv2d) for m in fused.modules()) == convs
    for x in (X, OTHER):
        assert_same_function(net, fused, x, tolerance=TOLERANCE)
    with torch.no_grad():
        next(p for p in fused.parameters() if p.dim() == 4).mul_(1.01)
    with pytest.raises(AssertionError):
        assert_same_function(net, fused, X, tolerance=1e-6)


def test_a_norm_behind_a_written_value_stays() -> None:
    class Between(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first.conv(x)
            y[:, 0] = 0
            return self.second(self.first.norm(y))

    net = randomise(Between().double())
    fused = reparam.fuse(net, X)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) == 1
    assert_same_function(net, fused, OTHER, tolerance=TOLERANCE)


MEAN = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).view(1, 6, 1, 1)


class OfTheClass(Base):
    mean = MEAN + 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.both(x - self.mean).relu() * self.mean


class Global(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.both(x).relu() / MEAN


class InAList(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scales = [MEAN * 2, MEAN * 3]
        self.shift = {"by": MEAN * 4}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.both(x).relu() * self.scales[0]
        return (y.sigmoid() * self.scales[1] + self.shift["by"]) * self.scales[0]


class InAFunction(Base):
    def __init__(self) -> None:
        super().__init__()
        scale = MEAN * 5
        self.scaled = lambda y: y * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(self.both(x).relu())


class Twice(nn.Module):
    """One block that reads another tensor in each of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.scales = Scaled(), [MEAN, MEAN * 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for scale in self.scales:
            self.block.scale = [scale]
            x = self.block(x)
        return x


class Scaled(Base):
    scale = (MEAN,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.both(x).relu() * self.scale[0]


@pytest.mark.parametrize("example", [X, None], ids=["example", "no example"])
@pytest.mark.parametrize("make", [OfTheClass, Global, InAList, InAFunction, Scaled])
@pytest.mark.parametrize("deep", [False, True], ids=["model", "child"])
def test_tensors_that_no_module_holds_are_stored_where_they_are_read(
    make: type[Base], *, deep: bool, example: torch.Tensor | None
) -> None:
    net = randomise((nn.Sequential(make(), nn.ReLU(), make()) if deep else make()).double())
    fused = reparam.fuse(net, example)
    assert sum(isinstance(m, nn.Conv2d) for m in fused.modules()) == 1 + deep
    for x in (X, OTHER):
        assert_same_function(net, fused, x, tolerance=TOLERANCE)
    again = reparam.fuse(net, example)
    again.load_state_dict({k: v + 1 for k, v in fused.state_dict().items()})
    assert_same_function(net, fused, X, tolerance=TOLERANCE)  # nothing is shared with the other


@pytest.mark.parametrize("example", [X, None], ids=["example", "no example"])
def test_a_block_that_reads_another_tensor_in_each_call_is_not_written_for_one(
    example: torch.Tensor | None,
) -> None:
    net = randomise(Twice().double())
    fused = reparam.fuse(net, example)
    assert_same_function(net, fused, X, tolerance=TOLERANCE)
