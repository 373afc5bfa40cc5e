"""Train a net and its online form side by side, and compare all that a step leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

import reparam
from reparam.branching.online.costs import choices
from reparam.branching.online.placing import regions_of
from reparam.branching.online.region import Region
from reparam.branching.online.steps import Kind

__all__ = [
    "adamw", "assert_same_state", "merged", "merged_by_force", "randomised", "sgd", "train_both",
]  # fmt: skip

RTOL = 1e-9


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    # A large eps: where a gradient is zero but for rounding, AdamW would make a full step of it.
    return torch.optim.AdamW(net.parameters(), lr=0.01, eps=1e-3)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all parameters and statistics anew, in float64; norms of several kinds; train mode."""
    rng = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=rng, dtype=torch.float64)

    net = net.double().train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(draw(parameter, -1, 1) / max(1, parameter[0].numel()) ** 0.5)
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for number, norm in enumerate(norms):
            norm.eps = 10.0 ** -(1 + number % 5)
            norm.momentum = (0.1, 0.3, None)[number % 3]
            if norm.affine:
                norm.weight.copy_(draw(norm.weight, 0.4, 1.6) * (1 - 2 * (number % 2)))
                norm.bias.copy_(draw(norm.bias, -0.5, 0.5))
            if norm.running_mean is not None:
                norm.running_mean.copy_(draw(norm.running_mean, -0.5, 0.5))
                norm.running_var.copy_(draw(norm.running_var, 0.5, 2))
    return net


def merged_by_force(wide: nn.Module, choice: int = -1) -> nn.Module:
    """The online form with one of the sets of norms merged in every block, whatever it costs."""
    net = reparam.online(wide, statistics="running")  # takes all blocks, dear ones too
    for region in merged(net):
        sets = choices(region.steps)
        region.mode, region.merged = "batch", sets[choice if choice < len(sets) else -1]
    return net


def merged(net: nn.Module) -> list[Region]:
    """The rewritten parts of a net that have norms."""
    return [r for r in regions_of(net) if any(s.kind is Kind.NORM for s in r.steps)]


def train_both(
    wide: nn.Module,
    online: nn.Module,
    batches: Iterable[Tensor],
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
) -> None:
    """Make the same steps with both nets and expect the same after each, within 1e-9."""
    nets = (wide, online)
    optimizers = [optimizer(net) for net in nets]
    weights: Tensor | None = None
    for x in batches:
        outputs = [net(x) for net in nets]
        if weights is None:
            weights = torch.randn(outputs[0].shape[1:], dtype=x.dtype)
        losses = [((y * weights).tanh() + 0.01 * y.square()).mean() for y in outputs]
        torch.testing.assert_close(losses[1], losses[0], rtol=RTOL, atol=1e-12)
        for loss, step in zip(losses, optimizers, strict=True):
            step.zero_grad()
            loss.backward()
            step.step()
        assert_same_state(wide, online)


def assert_same_state(wide: nn.Module, online: nn.Module, rtol: float = RTOL) -> None:
    """Expect the same keys and numbers, relative to the largest of each tensor."""
    expected, found = wide.state_dict(), online.state_dict()
    assert list(expected) == list(found)
    for name, value in expected.items():
        worst = (value.double() - found[name].double()).abs().max().item()
        assert worst <= rtol * max(1.0, value.abs().max().item()), f"{name} differs by {worst:.1e}"
