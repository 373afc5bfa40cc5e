"""From plain convolutions to branches: the plan, what it refuses, and the new model."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reparam.branching.block import BranchSum
from reparam.branching.kinds import BranchKind, resolve_kind
from reparam.branching.layout import ConvLayout
from reparam.branching.operators import conv_operator, conv_operator_geometry
from reparam.branching.select import Where, refusal, select, tied_weights
from reparam.branching.settle import Batch, Site, settle
from reparam.branching.settle import calibrate as calibrate_sites
from reparam.errors import InputError, UnsupportedModelError

__all__ = ["BranchPlan", "BranchRefusal", "BranchRegion", "branch", "plan_branching"]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


@dataclass(frozen=True)
class BranchRegion:
    """A convolution that becomes branches.

    Attributes:
        where: Name of the convolution in its model.
        what: The convolution in words.
        branches: Names of the branches, the main one first.
        parameters_before: Trainable numbers of the convolution.
        parameters_after: Trainable numbers of the branches.

    """

    where: str
    what: str
    branches: tuple[str, ...]
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True)
class BranchRefusal:
    """A module that is left alone: where, what it is, and why."""

    where: str
    what: str
    why: str


@dataclass(frozen=True, eq=False)
class BranchPlan:
    """What :func:`branch` would do to a model; ``print(plan)`` shows it.

    Attributes:
        kind: The kind of branching.
        regions: The convolutions that become branches.
        refusals: The modules that were asked for and are left alone, with the reason.

    """

    kind: BranchKind
    regions: tuple[BranchRegion, ...]
    refusals: tuple[BranchRefusal, ...]
    _model: nn.Module = field(repr=False)

    def apply(
        self,
        *,
        generator: torch.Generator | None = None,
        calibrate: Tensor | Iterable[Batch] | None = None,
    ) -> nn.Module:
        """Make the new model; see :func:`branch`.

        Raises:
            InputError: There is nothing to branch; the reasons are in the message.

        """
        batches = _batches(calibrate)
        if not self.regions:
            raise InputError(_nothing(self))
        wide = _copy(self._model)
        convs = dict(wide.named_modules())
        sites = [
            self._site(region.where, convs[region.where], generator) for region in self.regions
        ]
        wide = _replace(wide, {id(convs[site.where]): site.block for site in sites})
        if batches:
            calibrate_sites(wide, sites, batches)
        return wide

    def _site(self, where: str, conv: nn.Module, generator: torch.Generator | None) -> Site:
        assert isinstance(conv, _ConvNd)  # noqa: S101 (for the type checker: the plan chose it)
        layout = ConvLayout(conv, generator=generator)
        branches = _branches(self.kind, layout)
        assert not isinstance(branches, str)  # noqa: S101 (the plan asked already)
        main = {layout.name("conv"): layout.kernel()}
        block = BranchSum(main | branches, conv)
        site = Site(where, block, conv_operator(conv))
        settle(site)
        _take_over(block, conv)
        return site

    def __str__(self) -> str:
        """Lay the plan out as a table, the refusals and their reasons below."""
        lines = [f"{self.kind.name}: {len(self.regions)} convolutions become branches"]
        width = max((len(region.where) for region in self.regions), default=0)
        lines += [
            f"  {r.where:<{width}}  {r.what}: {' + '.join(r.branches)} "
            f"({r.parameters_before:,} -> {r.parameters_after:,} parameters)"
            for r in self.regions
        ]
        if self.refusals:
            lines.append(f"{len(self.refusals)} left alone")
            lines += [f"  {r.where}  {r.what}: {r.why}" for r in self.refusals]
        return "\n".join(lines)


def plan_branching(
    model: nn.Module, kind: str | BranchKind = "repvgg", *, where: Where = None
) -> BranchPlan:
    """Say which convolutions would become which branches, and which would not and why.

    Arguments are those of :func:`branch`. The model is read, not changed.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    >>> print(plan_branching(net))
    repvgg: 1 convolutions become branches
      0  3x3 conv 3->8, padding 1: conv3x3 + conv1x1 (224 -> 272 parameters)
    1 left alone
      2  1x1 conv 8->8: a 1x1 kernel has no smaller one to stand beside it; RepVGG needs a kxk
    """
    kind = resolve_kind(kind)
    model = _unwrap(model)
    tied = tied_weights(model)
    regions: list[BranchRegion] = []
    refusals: list[BranchRefusal] = []
    for name, module in select(model, where).items():
        found = _look(kind, module, tied)
        what = _describe(module)
        if isinstance(found, str):
            refusals.append(BranchRefusal(name, what, found))
        else:
            after = sum(p.numel() for branch in found.values() for p in branch.parameters())
            before = sum(p.numel() for p in module.parameters())
            regions.append(BranchRegion(name, what, tuple(found), before, after))
    return BranchPlan(kind, tuple(regions), tuple(refusals), model)


def branch(
    model: nn.Module,
    kind: str | BranchKind = "repvgg",
    *,
    where: Where = None,
    generator: torch.Generator | None = None,
    calibrate: Tensor | Iterable[Batch] | None = None,
) -> nn.Module:
    r"""Turn plain convolutions into multi-branch blocks with the same function.

    .. math:: \sum_b \mathrm{BN}_b(\mathrm{branch}_b(x)) = W * x + b \qquad \text{(eval mode)}

    The extra branches are drawn as those of a new block are; the main one, of the given kernel
    size, is solved for so that the sum equals the given convolution. ``fuse`` of the result is the
    given structure again. Only the convolution is replaced: a batch norm that follows it stays
    where it is, with its statistics, which remain true because its input is the same.

    Args:
        model: A model with convolutions; it is not changed, and no storage is shared with it.
        kind: ``"repvgg"``, ``"acnet"``, ``"dbb"``, ``"mobileone"``, a registered name, or a
            :class:`~reparam.branching.BranchKind`.
        where: Which convolutions: None for all that the kind fits, a name or glob pattern or
            several (a container's name means what is inside), or ``predicate(name, module)``.
        generator: Source of the random weights; None takes PyTorch's global one.
        calibrate: Inputs to take the statistics of the new batch norms from: a tensor, or an
            iterable of batches (each a tensor, a tuple of arguments, or a mapping of keyword
            arguments). With it the function in the first training step is that of eval mode, up
            to the difference between the batch and these inputs. Without it, statistics are those
            for white input, and the first steps see a function that drifts until the running
            statistics have caught up.

    Returns:
        A new model. Everything but the chosen convolutions keeps its class, attributes, modes,
        hooks and state-dict keys. A convolution that is used twice becomes one block used twice.
        In float64 its outputs in eval mode agree to about 1e-13 of their size; half precision is
        kept, and then they agree as far as that allows.

    Raises:
        InputError: Nothing could be branched (with the reasons), a name matches nothing, or the
            kind is not known.
        UnsupportedModelError: The model is a ScriptModule, or cannot be copied.

    Source: arXiv 2101.03697 (RepVGG), 1908.03930 (ACNet), 2103.13425 (DBB), 2206.04040 (MobileOne).

    >>> import torch
    >>> net = torch.nn.Conv2d(8, 8, 3, padding=1).double().eval()
    >>> wide = branch(net, "repvgg")
    >>> list(wide.branches)
    ['conv3x3', 'conv1x1', 'identity']
    >>> x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    >>> bool((wide(x) - net(x)).abs().max() < 1e-12)
    True

    """
    plan = plan_branching(model, kind, where=where)
    return plan.apply(generator=generator, calibrate=calibrate)


# ---------------------------------------------------------------------------------- internals


def _look(
    kind: BranchKind, module: nn.Module, tied: Mapping[int, list[str]]
) -> dict[str, nn.Module] | str:
    """Make the branches without numbers, the main one first, or say why not."""
    why = refusal(module, tied)
    if why is not None:
        return why
    assert isinstance(module, _ConvNd)  # noqa: S101 (for the type checker: not refused)
    layout = ConvLayout(module, device="meta")
    found = _branches(kind, layout)
    return found if isinstance(found, str) else {layout.name("conv"): layout.kernel()} | found


def _branches(kind: BranchKind, layout: ConvLayout) -> dict[str, nn.Module] | str:
    found = kind.branches(layout)
    if isinstance(found, str):
        return found
    present = {name: branch for name, branch in found.items() if branch is not None}
    return present or f"none of the branches of {kind.name} fits it"


def _describe(module: nn.Module) -> str:
    if isinstance(module, _ConvNd) and not module.transposed:
        return str(conv_operator_geometry(module))
    return type(module).__name__


def _nothing(plan: BranchPlan) -> str:
    reasons = "; ".join(f"{r.where or 'the model'}: {r.why}" for r in plan.refusals[:5])
    more = f"; and {len(plan.refusals) - 5} more" if len(plan.refusals) > 5 else ""
    found = f" ({reasons}{more})" if reasons else ": no convolution was chosen"
    return f"nothing to branch into {plan.kind.name}{found}"


def _batches(inputs: Tensor | Iterable[Batch] | None) -> list[Batch]:
    if inputs is None:
        return []
    batches: list[Batch] = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not batches:
        msg = "calibrate is empty; needed at least one batch of inputs"
        raise InputError(msg)
    return batches


def _unwrap(model: nn.Module) -> nn.Module:
    if isinstance(model, torch.jit.ScriptModule):
        msg = (
            "the model is a ScriptModule, whose structure is fixed; pass the module it was made of"
        )
        raise UnsupportedModelError(msg)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return _unwrap(model.module)
    compiled = getattr(model, "_orig_mod", None)
    return _unwrap(compiled) if isinstance(compiled, nn.Module) else model


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        msg = f"the model, a {type(model).__name__}, cannot be copied: {error}"
        raise UnsupportedModelError(msg) from error


def _replace(model: nn.Module, blocks: Mapping[int, BranchSum]) -> nn.Module:
    """Put the blocks in the places of the modules with these identities, wherever those occur."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if id(child) in blocks:
                parent._modules[name] = blocks[id(child)]
    return blocks.get(id(model), model)


def _take_over(block: BranchSum, conv: _ConvNd) -> None:
    """Give a block what the user had put on the convolution: mode, hooks, attributes, freezing."""
    block.train(conv.training)
    block.requires_grad_(conv.weight.requires_grad)
    plain = vars(ConvLayout(conv, device="meta").kernel()[-2])
    for name, value in vars(conv).items():
        if name in _HOOKS or name not in plain:
            block.__dict__[name] = value
