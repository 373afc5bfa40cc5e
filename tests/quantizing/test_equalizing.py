from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import reparam
from quantizing.nets import badly_scaled, inputs, single_path
from reparam.errors import DataError, InputError, TrainingModeError, UnsupportedModelError
from reparam.lab.quantizing import diagnose, equalize
from reparam.lab.quantizing.equalizing import neighbours

X64 = inputs(dtype=torch.float64)


def conv(source: int, out: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(source, out, 3, padding=1, **options)  # type: ignore[arg-type]


PATHS: dict[str, list[nn.Module]] = {
    "plain": [conv(3, 8), nn.ReLU(), conv(8, 4)],
    "without bias": [conv(3, 8, bias=False), nn.ReLU(), conv(8, 4, bias=False)],
    "grouped reader": [conv(3, 8), nn.ReLU(), conv(8, 6, groups=2)],
    "depthwise reader": [conv(3, 8), nn.ReLU(), conv(8, 8, groups=8), nn.ReLU(), conv(8, 4)],
    "grouped source": [conv(3, 6, groups=3), nn.ReLU(), conv(6, 4)],
    "leaky": [conv(3, 8), nn.LeakyReLU(0.1), conv(8, 4)],
    "learnt slopes": [conv(3, 8), nn.PReLU(8), conv(8, 4)],
    "no activation": [conv(3, 8), conv(8, 4)],
    "max pooling": [conv(3, 8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv(8, 4)],
    "head": [conv(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)],
    "head on 2x2": [conv(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                    nn.Linear(32, 4)],
    "two linear": [nn.Flatten(), nn.Linear(432, 8), nn.ReLU(), nn.Linear(8, 4)],
    "dilated, strided": [conv(3, 8, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 3, dilation=2)],
}  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_function_stays_the_same(name: str, strength: float):
    torch.manual_seed(1)
    net = nn.Sequential(*copy.deepcopy(PATHS[name])).eval().double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(torch.rand(len(p), dtype=p.dtype).mul(3).exp().view(-1, *[1] * (p.dim() - 1)))
    before = copy.deepcopy(net.state_dict())
    equal, done = equalize(net, X64, strength=strength)
    assert len(done) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net) - 1
    with torch.no_grad():
        found, expected = equal(X64), net(X64)
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error <= 1e-12
    changed = [k for k, v in equal.state_dict().items() if not torch.equal(v, before[k])]
    assert changed
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_wrong_factor_would_be_seen():
    net = nn.Sequential(*copy.deepcopy(PATHS["plain"])).eval().double()
    equal, _ = equalize(net, X64)
    with torch.no_grad():
        equal[2].weight[:, 3] *= 1 + 1e-9
    assert float((equal(X64) - net(X64)).detach().abs().max()) > 1e-12


def test_full_strength_gives_all_channels_one_range():
    net = badly_scaled(single_path()).double()
    equal, done = equalize(net, X64, strength=1.0)
    ranges = equal[:2](X64).amax(dim=(0, 2, 3))
    torch.testing.assert_close(ranges, ranges.mean().expand_as(ranges), rtol=1e-9, atol=0)
    assert done[0].spread_before > 100
    assert done[0].spread_after == pytest.approx(1)


def test_it_repairs_a_net_that_rounding_destroys():
    net = badly_scaled(single_path())
    x = inputs()
    equal, _ = equalize(net, x)
    good, bad = diagnose(single_path(), x).output_db, diagnose(net, x).output_db
    repaired = diagnose(equal, x).output_db
    assert bad < good - 12
    assert repaired > good - 2


class Sum(nn.Module):
    """Its first convolution is read by a convolution and by a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 4), conv(4, 4), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        return self.three(torch.relu(self.two(y) + y))


class Fork(nn.Module):
    """Two convolutions read one value."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.left, self.right = conv(3, 4), conv(4, 2), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.one(x))
        return torch.cat([self.left(y), self.right(torch.max_pool2d(y, 3, 1, 1))], 1)


class Twice(nn.Module):
    """One convolution is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(3, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.two(torch.relu(self.one(x)))))


class Tied(nn.Module):
    """Two convolutions have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 4), conv(4, 4), conv(4, 4)
        self.three.weight = self.two.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.three(torch.relu(self.two(torch.relu(self.one(x)))))


class Clipped(nn.Module):
    """ReLU6 does not commute with factors."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(3, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(nn.functional.relu6(self.one(x)))


@pytest.mark.parametrize("kind", [Sum, Twice, Tied, Clipped])
def test_what_a_factor_cannot_pass_is_left_alone(kind: type[nn.Module]):
    net = kind().eval().double()
    places = neighbours(net)
    equal, done = equalize(net, X64)
    assert places == ()
    assert done == ()
    assert torch.equal(equal(X64), net(X64))


def test_all_readers_of_a_value_are_scaled():
    net = Fork().eval().double()
    equal, done = equalize(net, X64)
    assert [place.readers for place in done] == [("left", "right")]
    torch.testing.assert_close(equal(X64), net(X64), atol=1e-12, rtol=0)
    assert not torch.equal(equal.left.weight, net.left.weight)


def test_a_residual_net_is_equalised_inside_its_blocks():
    torch.manual_seed(0)
    net = nn.Sequential(conv(3, 4), nn.ReLU(), BasicBlock(4, 4), BasicBlock(4, 4)).eval().double()
    fused = reparam.fuse(net)
    equal, done = equalize(fused, X64)
    assert [(place.source, *place.readers) for place in done] == [
        ("2.conv1", "2.conv2"),
        ("3.conv1", "3.conv2"),
    ]
    torch.testing.assert_close(equal(X64), fused(X64), atol=1e-12, rtol=0)


def test_silent_channels_stay_as_they_are():
    net = single_path().double()
    with torch.no_grad():
        net[0].weight[2] = 0
        net[0].bias[2] = -1
    equal, _ = equalize(net, X64)
    assert all(bool(torch.isfinite(p).all()) for p in equal.parameters())
    torch.testing.assert_close(equal(X64), net(X64), atol=1e-12, rtol=0)


def test_what_cannot_be_done_is_said():
    net = single_path()
    with pytest.raises(InputError, match=r"strength is 1\.5"):
        equalize(net, inputs(), strength=1.5)
    with pytest.raises(DataError, match="no calibration data"):
        equalize(net, [])
    with pytest.raises(TrainingModeError, match="eval"):
        equalize(single_path().train(), inputs())


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = conv(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one(x)
        return y if float(y.sum()) > 0 else -y


def test_an_untraceable_net_is_refused():
    with pytest.raises(UnsupportedModelError, match="without equalisation"):
        equalize(Untraceable().eval(), inputs())
