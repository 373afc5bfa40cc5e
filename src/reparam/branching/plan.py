"""From plain convolutions to branches: the plan, what it refuses, and the new model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reparam._support.arguments import FUNCTION, MODULE, NONE, TEXT, a, several, takes
from reparam._support.untouched import leaves_untouched
from reparam.branching.apply import apply_branches, branches_of
from reparam.branching.following import following_norms, other_code, read_by_others
from reparam.branching.init import Batch
from reparam.branching.kinds import BranchKind, resolve_kind
from reparam.branching.layout import ConvLayout
from reparam.branching.operators import conv_operator_geometry
from reparam.branching.select import BranchRefusal, Where, refusal, select, tied_weights
from reparam.errors import InputError
from reparam.frontends.torch.skeleton import unwrap

Norms = Literal["keep", "absorb"]
Init = Literal["same", "fresh"]


@dataclass(frozen=True)
class BranchRegion:
    """A convolution that becomes branches.

    Attributes:
        where: Name of the convolution in its model.
        what: The convolution in words.
        norm: Name of the batch norm behind it that becomes part of the block, if one does.
        branches: Names of the branches, the main one first.
        parameters_before: Trainable numbers of the convolution.
        parameters_after: Trainable numbers of the branches.

    """

    where: str
    what: str
    norm: str | None
    branches: tuple[str, ...]
    parameters_before: int
    parameters_after: int


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
        init: Init = "same",
        generator: torch.Generator | None = None,
        calibrate: Tensor | Iterable[Batch] | None = None,
    ) -> nn.Module:
        """Make the new model; see :func:`branch`.

        Raises:
            InputError: There is nothing to branch, with the reasons; or code of the model does
                something else where a convolution is a block.

        """
        _check_choice("init", init, ("same", "fresh"))
        if init == "fresh" and calibrate is not None:
            raise InputError(
                "got calibrate with init='fresh', which begins with new batch norms; drop one"
            )
        if not self.regions:
            raise InputError(_nothing(self))
        chosen = {region.where: region.norm for region in self.regions}
        wide = apply_branches(
            self._model,
            self.kind,
            chosen,
            fresh=init == "fresh",
            generator=generator,
            inputs=calibrate,
        )
        other = other_code(self._model, wide, {*chosen, *filter(None, chosen.values())})
        if other is not None:
            raise InputError(
                f"{other or 'the model'} looks at what its layers are and does something else "
                f"where a convolution is a block; name others than those in it with where="
            )
        return wide

    def __str__(self) -> str:
        """Lay the plan out as a table, the refusals and their reasons below."""
        lines = [f"{self.kind.name}: {len(self.regions)} convolutions become branches"]
        width = max((len(region.where) for region in self.regions), default=0)
        lines += [
            f"  {r.where:<{width}}  {r.what}{_and(r.norm)}: {' + '.join(r.branches)} "
            f"({r.parameters_before:,} -> {r.parameters_after:,} parameters)"
            for r in self.regions
        ]
        if self.refusals:
            lines.append(f"{len(self.refusals)} left alone")
            lines += [f"  {r.where}  {r.what}: {r.why}" for r in self.refusals]
        return "\n".join(lines)


def plan_branching(
    model: nn.Module,
    kind: str | BranchKind = "repvgg",
    *,
    where: Where = None,
    norms: Norms = "keep",
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
    model = unwrap(model)
    _check_choice("norms", norms, ("keep", "absorb"))
    following = following_norms(model) if norms == "absorb" else {}
    tied, read = tied_weights(model), read_by_others(model)
    regions: list[BranchRegion] = []
    refusals: list[BranchRefusal] = []
    for name, module in select(model, where).items():
        found = _look(kind, module, tied)
        if not read.isdisjoint({f"{name}.weight", f"{name}.bias"}):
            found = "its weight is also used elsewhere"
        what = _describe(module)
        if isinstance(found, str):
            refusals.append(BranchRefusal(name, what, found))
        else:
            after = sum(p.numel() for branch in found.values() for p in branch.parameters())
            before = sum(p.numel() for p in module.parameters())
            norm = following.get(name)
            if norm is not None:
                before += sum(p.numel() for p in model.get_submodule(norm).parameters())
            regions.append(BranchRegion(name, what, norm, tuple(found), before, after))
    return BranchPlan(kind, tuple(regions), tuple(refusals), model)


@takes(
    model=MODULE,
    kind=TEXT | a("a BranchKind", BranchKind),
    where=TEXT | several(TEXT) | FUNCTION | NONE,
    norms=TEXT,
    init=TEXT,
    generator=a("a torch.Generator", torch.Generator) | NONE,
)
@leaves_untouched
def branch(
    model: nn.Module,
    kind: str | BranchKind = "repvgg",
    *,
    where: Where = None,
    norms: Norms = "keep",
    init: Init = "same",
    generator: torch.Generator | None = None,
    calibrate: Tensor | Iterable[Batch] | None = None,
) -> nn.Module:
    r"""Turn plain convolutions into multi-branch blocks with the same function.

    .. math:: \sum_b \mathrm{BN}_b(\mathrm{branch}_b(x)) = W * x + b \qquad \text{(eval mode)}

    The extra branches are drawn as those of a new block are; the main one, of the given kernel
    size, is solved for so that the sum equals the given convolution. ``fuse`` of the result is the
    given structure again.

    Args:
        model: A model with convolutions; it is not changed, and no storage is shared with it.
        kind: A name of :func:`~reparam.branching.kinds`, as ``"repvgg"``, or a
            :class:`~reparam.branching.BranchKind`.
        where: Which convolutions: None for all that the kind fits, a name or glob pattern or
            several (a container's name means what is inside), or ``predicate(name, module)``.
        norms: What becomes of a batch norm that alone reads a convolution's output. ``"keep"``
            leaves it behind the block, with its statistics, which remain true because its input
            is the same; it evens out what the new norms do in the first training steps.
            ``"absorb"`` makes it part of the block and puts ``nn.Identity`` in its place: the
            blocks of the papers, which have no norm behind the sum, and less work in training.
            Calibrate these.
        init: ``"same"`` keeps the function. ``"fresh"`` does not: it makes the blocks as they are
            when training from scratch begins, with the model's own initialisation as the main
            kernels. A model that was never trained has norms that have seen no data, and keeping
            what it computes in eval mode is no good beginning.
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
    plan = plan_branching(model, kind, where=where, norms=norms)
    return plan.apply(init=init, generator=generator, calibrate=calibrate)


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
    return branches_of(kind, layout)


def _and(norm: str | None) -> str:
    return "" if norm is None else f" and {norm}"


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"got {name}={value!r}; needed {' or '.join(map(repr, known))}")


def _describe(module: nn.Module) -> str:
    if isinstance(module, _ConvNd) and not module.transposed:
        mode = "" if module.padding_mode == "zeros" else f", {module.padding_mode} padding"
        return f"{conv_operator_geometry(module)}{mode}"
    return type(module).__name__


def _nothing(plan: BranchPlan) -> str:
    reasons = "; ".join(f"{r.where or 'the model'}: {r.why}" for r in plan.refusals[:5])
    more = f"; and {len(plan.refusals) - 5} more" if len(plan.refusals) > 5 else ""
    found = f" ({reasons}{more})" if reasons else ": no convolution was chosen"
    return f"nothing to branch into {plan.kind.name}{found}"
