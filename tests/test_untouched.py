"""No public call leaves a trace in the modules it is given: neither when it works nor when not."""

from __future__ import annotations

import inspect
from contextlib import suppress

import pytest
import torch
from torch import nn

import reparam
from bad_inputs import leaving_no_trace
from reparam.branching.rep_optimizer import default_scales
from reparam.deploy.exporting import certify
from reparam.lab.data import open_data
from reparam.lab.training import load_recipe
from zoo import randomise

X = torch.randn(2, 3, 12, 12)
WRONG = torch.randn(2, 5, 12, 12)


class Counting(nn.Module):
    """Writes a buffer and attributes whenever it runs, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.add_(1)
        self.last = tuple(x.shape)
        return x


def hook(*_: object) -> None:
    """See nothing, change nothing."""


def net(*, counts: bool = True) -> nn.Sequential:
    """Frozen in part, hooked in part, and of layers that write to themselves."""
    first = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    one = nn.Sequential(*first, nn.Conv2d(16, 8, 1), Counting() if counts else nn.Identity())
    one[0].requires_grad_(False)
    one[3].register_forward_hook(hook)
    return randomise(one).eval()


class Pair(nn.Module):
    """One net of two heads, the first one steered by another input."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = net(), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 3, 1)

    def forward(
        self, x: torch.Tensor, scale: torch.Tensor | float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.body(x)
        return self.one(y) * scale, self.two(y)


def pair() -> Pair:
    return Pair().eval()


def plain() -> nn.Sequential:
    """Nothing left to fold."""
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1), Counting())
    return nn.Sequential(*layers).eval()


def classifier() -> nn.Sequential:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *head).eval()


def trained(model, folder, x):
    data = open_data("digits")
    if x is WRONG:
        data = None
    recipe = load_recipe("digits").override(epochs=1)
    return reparam.train(model, data, recipe=recipe, out=folder / "run")


def optimizer(model, x):
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    scales = {} if x is WRONG else default_scales(model)
    return reparam.RepOptimizer(base, model, scales)


def folded(model, x):
    return reparam.plan(model, x).apply()


def reloaded(model, folder):
    fused = reparam.fuse(net())
    torch.save(fused.state_dict(), folder / "net.pth")
    return reparam.load_fused(model, folder / "net.pth")


def certified(model, x, folder):
    path = folder / "net.safetensors"
    reparam.export(model, path, X)
    return certify(model, path, x, model=model)


CALLS = {
    "plan": (net, lambda m, x, _: folded(m, x)),
    "fuse": (net, lambda m, x, _: reparam.fuse(m, x)),
    "fuse a part": (lambda: net().train(), lambda m, x, _: reparam.fuse(m, x, where=nn.ReLU)),
    "fuse for one result": (pair, lambda m, x, _: reparam.fuse(m, x, outputs=0)),
    "fuse what is fixed": (
        pair,
        lambda m, x, _: reparam.fuse(m, x, fixed={"scale": torch.randn(2, 1, 1)}),
    ),
    "operator": (
        lambda: nn.Sequential(*net(counts=False)[:2]).train(),
        lambda m, x, _: reparam.operator(nn.Sequential(*m, *([nn.ReLU()] if x is WRONG else []))),
    ),
    "branch": (net, lambda m, x, _: reparam.branch(m, calibrate=x)),
    "online": (lambda: net().train(), lambda m, x, _: reparam.online(m, x)),
    "online_plan": (lambda: net().train(), lambda m, x, _: reparam.online_plan(m, x)),
    "verify": (net, lambda m, x, _: reparam.verify(m, m, x)),
    "diff": (net, lambda m, x, _: reparam.diff(m, m, x)),
    "certify": (lambda: net(counts=False), certified),
    "load_fused": (lambda: net().train(), lambda m, _, to: reloaded(m, to)),
    "export": (plain, lambda m, x, to: reparam.export(m, to / "net.safetensors", x)),
    "benchmark": (net, lambda m, x, _: reparam.benchmark({"it": m}, x, rounds=1)),
    "pick": (net, lambda m, x, _: reparam.pick(m, x, engines=["eager"], rounds=1)),
    "prune": (plain, lambda m, x, _: reparam.prune(m, x, macs=0.7)),
    "quantize": (plain, lambda m, x, to: reparam.quantize(m, to / "net.onnx", x)),
    "train": (classifier, lambda m, x, to: trained(m, to, x)),
    "RepOptimizer": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False)),
        lambda m, x, _: optimizer(m, x),
    ),
}
NO_MODULE_OR_MEANT_TO = {"load_checkpoint", "read_metadata", "online_mode"}


def test_every_public_call_is_listed():
    functions = {n for n in reparam.__all__ if inspect.isfunction(getattr(reparam, n))}
    assert functions - NO_MODULE_OR_MEANT_TO <= CALLS.keys()


@pytest.mark.filterwarnings("ignore")  # exporters warn of what they are told to trace
@pytest.mark.parametrize("x", [X, WRONG], ids=["that works", "that fails"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_leaves_no_trace(call, x, tmp_path):
    if call == "quantize":
        pytest.importorskip("onnxruntime")
    if call == "prune":
        pytest.importorskip("torch_pruning")
    make, run = CALLS[call]
    model = make()
    with leaving_no_trace(models=(model,)), suppress(*([Exception] if x is WRONG else [])):
        run(model, x, tmp_path)


@pytest.mark.parametrize("mode", [True, False])
def test_an_operator_leaves_each_mode_as_it_is(mode):
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    block[1].train(mode)
    with leaving_no_trace(models=(block,)):
        reparam.operator(block)
        reparam.operator(nn.Sequential(*block)[:1])
        reparam.operator(nn.Sequential(block))


# ------------------------------------------------------------------- what stays frozen


def test_a_fused_layer_is_frozen_where_all_its_parts_are():
    one = net(counts=False)
    one.requires_grad_(requires_grad=False)
    assert not any(p.requires_grad for p in reparam.fuse(one).parameters())
    one[1].requires_grad_()
    fused = reparam.fuse(one)
    assert fused[0].weight.requires_grad
    assert not fused[3].weight.requires_grad


def test_branches_of_frozen_layers_are_frozen():
    block = randomise(nn.ModuleDict({"a": nn.Conv2d(4, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 1)}))

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = block

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.branches["a"](x) + self.branches["b"](x)

    one = Sum().eval().requires_grad_(requires_grad=False)
    assert not any(p.requires_grad for p in reparam.fuse(one).parameters())
    one.branches["b"].requires_grad_()
    assert all(p.requires_grad for p in reparam.fuse(one).parameters())
