"""``torch.compile(model, backend="reparam")``."""

from __future__ import annotations

import copy
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import reparam
from reparam.integrations.dynamo import backend
from zoo import randomise

ROUNDING = 1e-12
"""Relative, in float64."""


class Net(nn.Module):
    """Two branches that fold, a norm and a convolution that do not, a buffer that is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.point = nn.Conv2d(3, 4, 1)
        self.alone = nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.add_(1)
        y = torch.relu(self.alone(torch.relu(self.wide(x) + self.point(x))))
        n, _, height, _ = y.shape
        return y.reshape(n * height, -1).sum(1) + self.calls, y


@pytest.fixture
def pair() -> tuple[Net, Net]:
    torch._dynamo.reset()
    net = randomise(Net()).double().eval()
    return net, copy.deepcopy(net)


def compiled(net: nn.Module, graphs: list[torch.fx.GraphModule] | None = None) -> nn.Module:
    def inner(graph, inputs):
        del inputs
        if graphs is not None:
            graphs.append(graph)
        return graph

    return torch.compile(net, backend=backend, options={"inner": inner})


def operations(graph: torch.fx.GraphModule, name: str) -> int:
    return sum(
        node.op.startswith("call") and name in str(node.target) for node in graph.graph.nodes
    )


def assert_same(fast: nn.Module, net: nn.Module, *shape: int) -> None:
    x = torch.randn(*shape, dtype=torch.float64)
    for found, expected in zip(fast(x), net(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


@torch.no_grad()
def test_what_folds_is_folded_at_every_size(pair) -> None:
    net, same = pair
    graphs = []
    fast = compiled(net, graphs)
    for shape in ((1, 3, 8, 8), (2, 3, 8, 8), (3, 3, 6, 10), (5, 3, 9, 7)):
        assert_same(fast, same, *shape)
    assert net.calls == same.calls == 4
    for graph in graphs:
        assert operations(graph, "conv") == 1
        assert operations(graph, "batch_norm") == 1
    assert len(graphs) <= 3  # one of them for all other sizes


@torch.no_grad()
def test_weights_that_change_are_folded_anew(pair) -> None:
    net, same = pair
    fast = compiled(net)
    assert_same(fast, same, 2, 3, 6, 6)
    other = {
        name: torch.rand_like(value) + 0.5 if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }
    for each in pair:
        each.load_state_dict(other)
    assert_same(fast, same, 2, 3, 6, 6)
    for each in pair:
        each.point.weight.mul_(2)
        each.alone.bias.add_(1)
    assert_same(fast, same, 2, 3, 6, 6)
    kernel = torch.randn_like(net.point.weight)
    for each in pair:
        each.point.weight.data = kernel.clone()
    assert_same(fast, same, 2, 3, 6, 6)


@torch.no_grad()
def test_statistics_that_training_moves_are_seen(pair) -> None:
    net, same = pair
    fast = compiled(net)
    assert_same(fast, same, 2, 3, 6, 6)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    for each in pair:
        each.train()
    fast(x), same(x)
    torch.testing.assert_close(net.wide[1].running_mean, same.wide[1].running_mean)
    for each in pair:
        each.eval()
    assert_same(fast, same, 2, 3, 6, 6)


def test_gradients_are_not_lost(pair) -> None:
    net, same = pair
    fast = compiled(net)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    with pytest.warns(reparam.FoldWarning, match="no_grad"):
        fast(x)[0].sum().backward()
    same(x)[0].sum().backward()
    torch.testing.assert_close(net.point.weight.grad, same.point.weight.grad)


@torch.inference_mode()
def test_a_wrong_fold_would_be_seen(pair) -> None:
    net, same = pair
    same.wide[0].weight.view(-1)[0] += 1e-6
    with pytest.raises(AssertionError):
        assert_same(compiled(net), same, 2, 3, 6, 6)


@pytest.mark.parametrize("options", [{"inner": "nowhere"}, {"inner": "reparam"}, {"mode": "max"}])
@torch.no_grad()
def test_options_that_are_none(pair, options) -> None:
    fast = torch.compile(pair[0], backend=backend, options=options)
    with pytest.raises(Exception, match="backend") as error:
        fast(torch.randn(1, 3, 6, 6, dtype=torch.float64))
    assert isinstance(getattr(error.value, "inner_exception", error.value), reparam.ReparamError)


def test_torch_is_told_of_it_by_an_entry_point() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, name = project["entry-points"]["torch_dynamo_backends"]["reparam"].split(":")
    assert getattr(import_module(module), name) is backend


@pytest.mark.slow
@torch.inference_mode()
def test_inductor_compiles_what_was_folded(pair) -> None:
    net, same = pair
    fast = torch.compile(net, backend=backend)
    assert_same(fast, same, 2, 3, 8, 8)
