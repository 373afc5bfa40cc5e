r"""Numbers for a block of branches: statistics, gains, and the main kernel that makes it exact.

The main branch is solved for. With the operators :math:`A_b` of the other branches and the given
convolution :math:`G`, its operator is :math:`M = G - \sum_b A_b`, in float64 and with the other
branches' weights as they are stored, so that their rounding is made good too.

A batch norm with the statistics of a new layer (mean 0, variance 1) would compute one function in
eval mode and another in the first training step. Each is therefore given the statistics of what it
sees: of the calibration data where there is some, else those for white input, where the variance
of a channel is the squared norm of its kernel. The last norm of each extra branch has the gain

.. math:: \gamma_b[o] = \sigma_G[o] / \sqrt{B}

with the standard deviation :math:`\sigma_G` of the given convolution's output and :math:`B`
branches: the branches begin with equal shares of the variance, as those of a new block do, at the
scale that the network around them expects. The main branch has :math:`\gamma = \sqrt{\sigma^2 +
\epsilon}`, so that its kernel keeps the scale of the given one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from reparam._support.modules import evaluating
from reparam.algebra import AffineConv
from reparam.branching.block import BranchSum
from reparam.branching.operators import branch_operator, norms, operator_before
from reparam.errors import InputError

Batch = Tensor | Sequence[Any] | Mapping[str, Any]

_FLOOR = 1e-2
"""Smallest gain of a branch, relative to the mean over channels: a dead channel can still learn."""


@dataclass(frozen=True, eq=False)
class Site:
    """A block of branches, and the operator that it must stay equal to.

    Attributes:
        where: Name of the block in its model.
        block: The block; its first branch is the main one, a convolution and a batch norm.
        given: The operator of the convolution whose place it takes.

    """

    where: str
    block: BranchSum
    given: AffineConv

    @property
    def main(self) -> tuple[nn.Module, _BatchNorm]:
        """The convolution and the batch norm that are solved for."""
        conv, norm = next(iter(self.block.branches.values())).children()
        assert isinstance(norm, _BatchNorm)  # noqa: S101 (for the type checker: built so)
        return conv, norm

    @property
    def extras(self) -> list[nn.Module]:
        """All branches but the main one."""
        return list(self.block.branches.values())[1:]

    @property
    def size(self) -> tuple[int, int]:
        """Input channels and number of spatial dimensions."""
        return self.given.geometry.in_channels, self.given.geometry.dims

    @property
    def share(self) -> float:
        """Part of the output's standard deviation that each branch begins with."""
        return 1.0 / math.sqrt(len(self.block.branches))


# ------------------------------------------------------------------------------- without data


@torch.no_grad()
def init_exact(site: Site) -> None:
    """Give a block the statistics of white input, and make it equal to the given convolution."""
    for branch in site.extras:
        for norm in norms(branch):
            before = operator_before(branch, norm, *site.size)
            _set_statistics(norm, _bias(before), _energy(before))
        _set_gain(branch, site.share * _energy(site.given).sqrt())
    needed = _needed(site)
    _, norm = site.main
    _set_statistics(norm, torch.zeros_like(_energy(needed)), _energy(needed))
    _solve(site, needed)


@torch.no_grad()
def init_fresh(site: Site, conv: _ConvNd, norm: _BatchNorm | None) -> None:
    """Leave a block as it is when training from scratch begins.

    The main branch has the given kernel, which the model's own initialisation drew. Every norm is
    new, but for what the model's initialisation had set on an absorbed one (a gain of zero at the
    end of a residual branch, say), which the last norm of every branch gets.
    """
    main, first = site.main
    assert isinstance(main.weight, Tensor)  # noqa: S101 (for the type checker)
    main.weight.copy_(conv.weight)
    if norm is None:
        if conv.bias is not None:
            first.bias.copy_(conv.bias)
    elif norm.affine:
        for branch in site.block.branches.values():
            for last in norms(branch)[-1:]:
                last.weight.copy_(norm.weight)
        first.bias.copy_(norm.bias)


def _needed(site: Site) -> AffineConv:
    """What the main branch has to compute: the given operator less the other branches."""
    needed = site.given
    for branch in site.extras:
        needed = needed - branch_operator(branch, *site.size)
    have, want = needed.geometry, site.given.geometry
    if (have.offsets, have.groups) != (want.offsets, want.groups):
        raise InputError(
            f"the branches beside {site.where!r} span a {have} where the convolution is a {want}; "
            f"needed branches within its taps and its channel groups"
        )
    return needed


def _solve(site: Site, needed: AffineConv) -> None:
    """Set the main branch so that it computes ``needed`` with the statistics that its norm has."""
    conv, norm = site.main
    assert norm.running_var is not None  # noqa: S101 (for the type checker: built so)
    norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
    # Read back what was stored, so that its rounding is divided out of the kernel.
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    kernel = needed.kernel / factor.view(-1, *(1,) * (needed.kernel.dim() - 1))
    assert isinstance(conv.weight, Tensor)  # noqa: S101 (for the type checker)
    conv.weight.copy_(kernel)
    assert norm.running_mean is not None  # noqa: S101 (for the type checker: built so)
    norm.bias.copy_(_bias(needed) + norm.running_mean.double() * factor)


def _set_statistics(norm: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    if norm.running_mean is not None and norm.running_var is not None:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)


def _set_gain(branch: nn.Module, gain: Tensor) -> None:
    """Set the last batch norm of a branch to an output of this standard deviation, and no mean."""
    found = norms(branch)
    if found and found[-1].affine:
        floor = _FLOOR * gain.mean().item() or 1.0
        found[-1].weight.copy_(gain.clamp_min(floor))
        found[-1].bias.zero_()


def _energy(op: AffineConv) -> Tensor:
    """Squared norm of each output channel's kernel: its variance for white input."""
    return op.kernel.flatten(1).square().sum(1)


def _bias(op: AffineConv) -> Tensor:
    return op.kernel.new_zeros(op.geometry.out_channels) if op.bias is None else op.bias


# ---------------------------------------------------------------------------------- with data


def calibrate(model: nn.Module, sites: Sequence[Site], batches: Sequence[Batch]) -> None:
    """Give every batch norm of the blocks the statistics that it has on these batches.

    The model computes the same function throughout (in eval mode), so what reaches a block does
    not depend on how the blocks before it are calibrated: one pass serves all blocks at once, and
    there are as many passes as a branch has batch norms, and one for the main branches.

    Variances are those of the data, without Bessel's correction, as training mode normalises.

    Args:
        model: The model that holds the blocks.
        sites: Its blocks.
        batches: Inputs: a tensor, a tuple of arguments, or a mapping of keyword arguments each.

    """
    with evaluating(model.modules()), torch.no_grad():
        depth = max((len(norms(b)) for site in sites for b in site.extras), default=0)
        spread: dict[int, Tensor] = {}
        for level in range(depth):
            _calibrate_level(model, sites, batches, level, spread)
        seen = {id(site): _Moments() for site in sites}
        probes = [(site.main[1], _before(seen[id(site)])) for site in sites]
        _run(model, batches, probes, [])
        for site in sites:
            moments = seen[id(site)]
            if moments.count:
                _set_statistics(site.main[1], moments.mean, moments.var)
                _solve(site, _needed(site))


def _calibrate_level(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Sequence[Batch],
    level: int,
    spread: dict[int, Tensor],
) -> None:
    """Calibrate the norm number ``level`` of every extra branch that has so many."""
    chosen = [(s, b, norms(b)) for s in sites for b in s.extras if len(norms(b)) > level]
    before = [_Moments() for _ in chosen]
    after = {id(site): _Moments() for site in sites}
    _run(
        model,
        batches,
        [(found[level], _before(m)) for (_, _, found), m in zip(chosen, before, strict=True)],
        [] if spread else [(site.block, _after(after[id(site)])) for site in sites],
    )
    if not spread:
        spread.update({key: m.var.sqrt() for key, m in after.items() if m.count})
    for (site, branch, found), moments in zip(chosen, before, strict=True):
        if moments.count:
            _set_statistics(found[level], moments.mean, moments.var)
            if found[level] is found[-1]:
                _set_gain(branch, site.share * spread[id(site)])
    for site in sites:
        _solve(site, _needed(site))


@dataclass
class _Moments:
    """Mean and variance per channel over several batches, merged without cancellation."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def var(self) -> Tensor:
        return self.squares / self.count

    def add(self, x: Tensor) -> None:
        """Add a batch of shape ``(N, C, *spatial)``."""
        flat = x.detach().to(torch.float64).transpose(0, 1).flatten(1)
        count, mean = flat.shape[1], flat.mean(1)
        total = self.count + count
        gap = mean - self.mean.to(mean)
        self.squares = (
            self.squares.to(mean)
            + (flat - mean[:, None]).square().sum(1)
            + gap.square() * (self.count * count / total)
        )
        self.mean = self.mean.to(mean) + gap * (count / total)
        self.count = total


Hook = Callable[..., None]


def _before(moments: _Moments) -> Hook:
    return lambda _module, args: moments.add(args[0])


def _after(moments: _Moments) -> Hook:
    return lambda _module, _args, output: moments.add(output)


def _run(
    model: nn.Module,
    batches: Sequence[Batch],
    before: Sequence[tuple[nn.Module, Hook]],
    after: Sequence[tuple[nn.Module, Hook]],
) -> None:
    """Run the batches with these forward hooks in place."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in before]
    handles += [module.register_forward_hook(hook) for module, hook in after]
    try:
        for batch in batches:
            if isinstance(batch, Tensor):
                model(batch)
            elif isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*batch)
    finally:
        for handle in handles:
            handle.remove()
