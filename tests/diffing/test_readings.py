"""What a run of a network does that normal form has no word for, and how readings are checked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import reparam
from reparam.diffing.from_module import read_module
from reparam.diffing.running import Run
from zoo import randomise


class Written(nn.Module):
    """Changes parts of its values in place, as GhostNet does, and reads them after that."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 1)

    def forward(self, x):
        y = self.first(x)
        part = y[:, 2:4]
        part += 1.5
        y[:, 4:] = y[:, 4:].relu()
        y[:, 0].mul_(0.5)
        return self.second(y) + part.mean()


def test_parts_of_a_value_may_be_changed_in_place():
    net = randomise(Written()).float()
    x = torch.randn(2, 3, 8, 8)
    (form,) = read_module(net, [x]).forms()
    torch.testing.assert_close(Run([x])(form), net(x).double(), rtol=1e-5, atol=1e-5)
    graph = torch.onnx.export(net, (x,), dynamo=True, verbose=False).model_proto
    assert reparam.diff(net, graph, x).outcome == "equal"
    other = copy.deepcopy(net)
    other.second.weight.data[1, 3] *= 1 + 1e-3
    found = reparam.diff(net, other, x)
    assert found.outcome == "different"
    assert all("second" in names for names in found.where)


class Chaotic(nn.Module):
    """Makes a rounding error 1.9 times as large with each step, so that no two runtimes agree."""

    def __init__(self, steps=40):
        super().__init__()
        self.steps, self.conv = steps, nn.Conv2d(2, 2, 1)

    def forward(self, x):
        y = self.conv(x).sigmoid()
        for _ in range(self.steps):
            y = 0.95 - 1.9 * (y - 0.5).abs()
        return y


def test_a_reading_is_checked_step_by_step_where_rounding_makes_the_outputs():
    net = randomise(Chaotic()).float()
    x = torch.randn(1, 2, 4, 4)
    exact = copy.deepcopy(net).double()(x.double())
    assert (net(x) - exact).abs().max() > 0.01
    graph = torch.onnx.export(net, (x,), dynamo=True, verbose=False).model_proto
    for other in (copy.deepcopy(net), torch.export.export(net, (x,)), graph):
        assert reparam.diff(net, other, x).outcome == "equal"


class Hidden(nn.Module):
    """Computes with what it takes out of a tensor, which nobody sees."""

    def __init__(self, factor):
        super().__init__()
        self.conv, self.factor = nn.Conv2d(2, 2, 1), factor

    def forward(self, x):
        return self.conv(x) + torch.from_numpy(x.detach().numpy() * self.factor)


def test_what_is_computed_outside_of_torch_is_not_shown():
    net = Hidden(2.0).eval()
    assert reparam.diff(net, copy.deepcopy(net), torch.randn(1, 2, 4, 4)).outcome == "not shown"


class Counting(nn.Module):
    """Changes what it has read."""

    def __init__(self, step):
        super().__init__()
        self.step = step
        self.register_buffer("seen", torch.ones(2))

    def forward(self, x):
        y = x * self.seen
        self.seen.add_(self.step)
        return y


@pytest.mark.parametrize("step", [1e-5, 1.0])
def test_a_net_that_changes_the_buffers_that_it_reads_is_not_shown_to_be_equal(step):
    net, x = Counting(step).eval(), torch.randn(1, 2)
    assert reparam.diff(net, Counting(step * 2).eval(), x).outcome != "equal"
    assert net.seen.tolist() == [1.0, 1.0]
