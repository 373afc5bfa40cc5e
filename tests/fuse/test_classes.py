"""Classes of users: containers that a forward returns, and layers with a forward of their own."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reparam
from small_nets import check
from zoo import randomise


class Odd(dict):
    pass


class Row(list):
    pass


class Pair(tuple):
    __slots__ = ()


class Output(OrderedDict):
    """As Hugging Face's: entries are attributes, too."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


@dataclass
class Record:
    first: torch.Tensor
    tag: str = "a"


Named = namedtuple("Named", "first second")  # noqa: PYI024 (the form that old code uses)


def odd(y):
    made = Odd(z=y, a=y)
    made.note, made.again = "kept", y
    return made


def output(y):
    made = Output()
    made["z"], made["a"] = y, y + 1
    return made


RETURNED = {
    "ordered": lambda y: OrderedDict(z=y, a=y),
    "default": lambda y: defaultdict(list, a=y),
    "dict subclass with attributes": odd,
    "list subclass": lambda y: Row([y, y]),
    "tuple subclass": lambda y: Pair((y,)),
    "named tuple": lambda y: Named(y, y),
    "record": lambda y: Record(y, "b"),
    "output": output,
    "nested": lambda y: [OrderedDict(a=(y, Row([y])))],
}


class Block(nn.Module):
    """Two branches to be merged, so that the forward is rewritten."""

    def __init__(self, returned: str) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.point = nn.Conv2d(4, 4, 1)
        self.returned = returned

    def forward(self, x):
        return RETURNED[self.returned](self.norm(self.wide(x)) + self.point(x))


def kinds_of(value):
    """Classes, keys in order, and plain attributes; tensors by their shape."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    attributes = {k: kinds_of(v) for k, v in getattr(value, "__dict__", {}).items()}
    if isinstance(value, dict):
        return type(value), [(k, kinds_of(v)) for k, v in value.items()], attributes
    if isinstance(value, list | tuple):
        return type(value), [kinds_of(v) for v in value], attributes
    return type(value), value if isinstance(value, str) else None, attributes


@pytest.mark.parametrize("returned", RETURNED)
def test_a_rewritten_block_returns_the_same_class(returned):
    one = randomise(Block(returned)).eval()
    x = torch.randn(2, 4, 9, 8)
    plan = reparam.plan(one, x)
    assert len(plan.regions) == 1
    fused = plan.apply()
    for made in (
        fused,
        copy.deepcopy(fused),
        pickle.loads(pickle.dumps(fused)),  # noqa: S301 (our own)
        reparam.fuse(fused),
    ):
        assert kinds_of(made(x)) == kinds_of(one(x))
        assert reparam.verify(one, made, x).ok
    factory = getattr(one(x), "default_factory", None)
    assert getattr(fused(x), "default_factory", None) is factory


# --------------------------------------------------------------- layers with a forward of their own


class ScaledNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


class CenteredLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class CenteredConv(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), True), self.bias)


class Branching(nn.BatchNorm2d):
    """Decides on numbers, so that it cannot be traced."""

    def forward(self, x):
        return super().forward(x) * (2 if float(self.weight.detach().sum()) > -1e9 else 1)


class Deciding(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * (2 if float(x.detach().sum()) < 1e30 else 1)


OWN = {
    "norm": lambda: ScaledNorm(4),
    "conv": lambda: CenteredConv(4, 4, 1),
    "linear": lambda: nn.Sequential(nn.Flatten(2), CenteredLinear(72, 72), nn.Unflatten(2, (9, 8))),
    "untraceable norm": lambda: Branching(4),
    "untraceable conv": lambda: Deciding(4, 4, 3, padding=1),
}


@pytest.mark.parametrize("probe", [False, True])
@pytest.mark.parametrize("own", OWN)
def test_a_layer_with_its_own_forward_is_not_its_base_class(own, probe):
    one = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), OWN[own](), nn.BatchNorm2d(4))
    one = randomise(one.double()).eval()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    fused = reparam.plan(one, x, probe=probe).apply()  # what is planned folds: a warning would fail
    torch.testing.assert_close(fused(x), one(x), rtol=1e-10, atol=1e-10)
    assert reparam.verify(one, fused, x).ok


# ------------------------------------------------------------------------- what is emptied


class Frozen(nn.Module):
    """As torchvision's and detectron2's: numbers that its own text reads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)

    def __repr__(self) -> str:
        return f"Frozen({self.weight.shape[0]})"


def test_an_emptied_norm_is_the_identity_and_the_model_prints():
    one = nn.Sequential(nn.Conv2d(4, 4, 3), Frozen(4), nn.ReLU(), nn.Conv2d(4, 4, 1), Frozen(4))
    fused = check(one, convs=2)
    assert "Frozen" not in str(fused)
    assert isinstance(fused[1], nn.Identity)
    assert list(fused.state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
