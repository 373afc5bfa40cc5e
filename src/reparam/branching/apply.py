"""Write a new model in which chosen convolutions are blocks of branches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from reparam._support.arguments import running_on, shown
from reparam.branching.block import BranchSum
from reparam.branching.init import Batch, Site, calibrate, init_exact, init_fresh
from reparam.branching.kinds import BranchKind
from reparam.branching.layout import ConvLayout
from reparam.branching.operators import conv_operator, norm_operator, norms
from reparam.errors import InputError
from reparam.frontends.torch.copying import HOOKS, Copier, own_copy

_HOOKS = (
    *HOOKS, "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs", "_is_full_backward_hook",
)  # fmt: skip


def branches_of(kind: BranchKind, layout: ConvLayout) -> dict[str, nn.Module] | str:
    """Make all branches of a block, the main one first, or say why there are none."""
    found = kind.branches(layout)
    if isinstance(found, str):
        return found
    present = {name: branch for name, branch in found.items() if branch is not None}
    if not present:
        return f"none of the branches of {kind.name} fits it"
    return {layout.name("conv"): layout.kernel()} | present


def apply_branches(
    model: nn.Module,
    kind: BranchKind,
    chosen: Mapping[str, str | None],
    *,
    fresh: bool = False,
    generator: torch.Generator | None = None,
    inputs: Tensor | Iterable[Batch] | None = None,
) -> nn.Module:
    """Make the new model; ``model`` is only read.

    Args:
        model: The model.
        kind: The kind of branching.
        chosen: Names of the convolutions, each with the name of the batch norm that becomes part
            of the block, or None.
        fresh: Whether the blocks are new ones, to be trained from scratch.
        generator: Source of the random weights.
        inputs: Inputs to calibrate with, if any.

    """
    batches = _batches(inputs)
    wide = own_copy(model)
    modules = dict(wide.named_modules())
    sites: list[Site] = []
    new: dict[int, Any] = {}
    for where, norm in chosen.items():
        own = None if norm is None else modules[norm]
        site = _site(where, modules[where], own, kind, generator, fresh=fresh)
        sites.append(site)
        new[id(modules[where])] = site.block
        if norm is not None:
            new[id(modules[norm])] = nn.Identity().train(modules[norm].training)
    # A list or a function that holds a convolution holds the block then, too.
    wide = Copier(lambda tensor: tensor, keep_hooks=True, memo=new).copy(wide)
    if batches:
        with running_on("the model", batches, "calibrate"):
            calibrate(wide, sites, batches)
    return wide


def _site(
    where: str,
    conv: nn.Module,
    norm: nn.Module | None,
    kind: BranchKind,
    generator: torch.Generator | None,
    *,
    fresh: bool,
) -> Site:
    assert isinstance(conv, _ConvNd)  # noqa: S101 (for the type checker: the plan chose it)
    layout = ConvLayout(conv, generator=generator)
    branches = branches_of(kind, layout)
    assert not isinstance(branches, str)  # noqa: S101 (the plan asked already)
    block = BranchSum(branches, conv, layout.shared_pad())
    given, own = conv_operator(conv), norm if isinstance(norm, _BatchNorm) else None
    if own is not None:
        given = norm_operator(own, given.geometry.dims) @ given
        for new in (n for branch in branches.values() for n in norms(branch)):
            new.eps, new.momentum = own.eps, own.momentum
    site = Site(where, block, given)
    if fresh:
        init_fresh(site, conv, own)
    else:
        init_exact(site)
    _take_over(block, conv)
    return site


def _batches(inputs: Tensor | Iterable[Batch] | None) -> list[Batch]:
    if inputs is None:
        return []
    if not isinstance(inputs, Iterable) or isinstance(inputs, str):
        raise InputError(f"calibrate is {shown(inputs)}; needed a tensor or an iterable of batches")
    batches: list[Batch] = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not batches:
        raise InputError("calibrate is empty; needed at least one batch of inputs")
    return batches


def _take_over(block: BranchSum, conv: _ConvNd) -> None:
    """Give a block what the user had put on the convolution: mode, hooks, attributes, freezing."""
    block.train(conv.training)
    block.requires_grad_(conv.weight.requires_grad)
    plain = vars(ConvLayout(conv, device="meta").kernel()[-2])
    for name, value in vars(conv).items():
        if name in _HOOKS or name not in plain:
            block.__dict__[name] = value
