r"""Batch normalisation of branches from the moments of their common input.

A branch with the kernel :math:`w` has the mean :math:`m = w^\top\mu` and the variance
:math:`v = w^\top\Sigma\,w` over the batch. Its norm then is the scale
:math:`a = \gamma / \sqrt{v + \epsilon}` and the shift :math:`\beta - a\,m`. All branches of a block
are computed together, in one function with a derivative by hand: it keeps the input, the products
:math:`w^\top\Sigma`, and numbers for each channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from reparam.algebra import Geometry
from reparam.branching.online.kernels import Places
from reparam.branching.online.moments import Way, plain_types
from reparam.branching.online.ways import Handed, take, way_of

_ALL = slice(None)


@dataclass(frozen=True)
class Branch:
    """A branch that is normalised.

    Attributes:
        norm: Its batch norm.
        kernel: Shape ``(O, I / groups, *taps)``; None for the input itself.
        places: Where the taps of the kernel are in the patch.
        bias: Shape ``(O,)``, or None.

    """

    norm: Any
    kernel: Tensor | None
    places: Places
    bias: Tensor | None = None


@dataclass(frozen=True)
class Normalisation:
    """What is normalised together: branches of one patch, those with kernels first.

    Attributes:
        patch: What they read.
        branches: The branches.
        count: Positions of the batch.
        group: The processes whose batches are joined, or None.
        handed: What convolutions of the same patches leave to the backward pass of the moments.

    """

    patch: Geometry
    branches: tuple[Branch, ...]
    count: int
    group: Any = None
    handed: Handed = field(default_factory=dict)

    @property
    def kernels(self) -> list[Tensor]:
        """The kernels, one for each branch that is not the input itself."""
        return [branch.kernel for branch in self.branches if branch.kernel is not None]

    @property
    def identities(self) -> list[Branch]:
        """The branches that are the input itself."""
        return [branch for branch in self.branches if branch.kernel is None]

    def rows(self, kernels: Sequence[Tensor], like: Tensor) -> Tensor:
        """The kernels as rows: ``(groups, kernels * O / groups, D)``."""
        groups, width = like.shape[0], self.patch.in_channels // self.patch.groups
        each = len(kernels[0]) // groups if kernels else 0
        taps = [len(offsets) for offsets in self.patch.offsets]
        rows = like.new_zeros(groups, len(kernels), each, width, *taps)
        for number, (kernel, branch) in enumerate(zip(kernels, self.branches, strict=False)):
            part = rows[:, number][(_ALL, _ALL, _ALL, *branch.places)]
            part.copy_(kernel.reshape(part.shape))
        return rows.view(groups, -1, like.shape[1])

    def by_branch(self, rows: Tensor, of_input: Tensor) -> Tensor:
        """Numbers of rows ``(groups, rows)`` and of the input ``(groups, width)``: ``(B, O)``."""
        count, groups = len(self.kernels), len(rows)
        found = [of_input.reshape(1, -1)] * len(self.identities)
        if count:
            found.insert(0, rows.view(groups, count, -1).transpose(0, 1).reshape(count, -1))
        return torch.cat(found)

    def by_row(self, numbers: Tensor, groups: int) -> Tensor:
        """The way back for the rows: ``(groups, rows, 1)``."""
        count = len(self.kernels)
        split = numbers[:count].view(count, groups, numbers.shape[1] // groups)
        return split.transpose(0, 1).reshape(groups, count * split.shape[2], 1)


def normalised(
    x: Tensor, what: Normalisation, way: Way
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Normalise by batch statistics, and let the running ones follow.

    Args:
        x: The input of the block.
        what: Branches, those with kernels first.
        way: The patches of the input.

    Returns:
        ``x`` itself, for what reads it next, so that its gradient and that of the statistics meet
        in one tensor; and for each branch the scale and the shift that the norm applies to it.

    """
    norms = [branch.norm for branch in what.branches]
    tensors = [*what.kernels, *(n.weight for n in norms), *(n.bias for n in norms)]
    same, scales, shifts = _Normalise.apply(x, what, way, *tensors)
    found = []
    for branch, scale, shift in zip(what.branches, scales.unbind(), shifts.unbind(), strict=True):
        # The mean holds the bias, which the norm therefore takes away again.
        found.append((scale, shift if branch.bias is None else shift - branch.bias * scale))
    return same, found


class _Normalise(Function):
    """Scales and shifts of all branches from the input and their kernels."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, what: Normalisation, way: Way, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        branches = len(what.branches)
        kernels = tensors[: -2 * branches]
        with plain_types(x):
            dtype = torch.promote_types(x.dtype, torch.float32)
            mean, covariance = way.moments(dtype)
            mean, covariance, count = _joined(mean, covariance, what.count, what.group)
            rows = what.rows(kernels, mean)  # type: ignore[arg-type]
            spread = rows @ covariance
            at = _centre(what.patch, mean.device)
            means = what.by_branch((rows @ mean.unsqueeze(2)).squeeze(2), mean[:, at])
            variances = what.by_branch((spread * rows).sum(2), covariance[:, at, at])
            follow(what.branches, means, variances, count)
            eps = means.new_tensor([[branch.norm.eps] for branch in what.branches])
            factor = (variances + eps).rsqrt()
            scales = factor * stacked(tensors[-2 * branches : -branches], means, 1.0)
            shift = stacked(tensors[-branches:], means, 0.0)
            shifts = torch.addcmul(shift, means, scales, value=-1)
        ctx.save_for_backward(way.kept, mean, spread, means, factor, scales, *kernels)
        ctx.what, ctx.count, ctx.turned = what, count, way.turned
        ctx.set_materialize_grads(False)
        return x.view_as(x), scales, shifts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        kept, mean, spread, means, factor, scales, *kernels = ctx.saved_tensors
        what: Normalisation = ctx.what
        way, laters = take(what.handed)
        to_scale, to_shift = (torch.zeros_like(means) if g is None else g for g in grads[1:])
        with plain_types(kept):
            to_scale = torch.addcmul(to_scale, means, to_shift, value=-1)
            to_mean = -scales * to_shift
            to_variance = (to_scale * scales).mul_(factor.square()).mul_(-0.5)
            rows = what.rows(kernels, mean)
            of_mean, of_variance = (what.by_row(n, len(mean)) for n in (to_mean, to_variance))
            to_covariance = (rows * of_variance).mT @ rows
            # Of what the mean multiplies, too, as a row for each group.
            to_means = (of_mean.mT @ rows).squeeze(1)
            _add_identities(what, to_mean, to_variance, to_means, to_covariance)
            to_means, to_covariance = _summed(to_means, to_covariance, what.group)
            to_x = grads[0]
            if ctx.needs_input_grad[0]:
                matrix = to_covariance.mul_(2 / ctx.count)
                shift = to_means / ctx.count - (matrix @ mean.unsqueeze(2)).squeeze(2)
                if way is None:
                    way = way_of(kept, what.patch, turned=ctx.turned)
                to_x = way.gradient((matrix, shift), to_x, laters)
            to_rows = torch.addcmul(of_mean * mean.unsqueeze(1), of_variance, spread, value=2)
            to_kernels = _split(what, to_rows, kernels)
            to_weight = to_scale * factor
        weights = [to_weight[i] if b.norm.weight is not None else None for i, b in _numbered(what)]
        biases = [to_shift[i] if b.norm.bias is not None else None for i, b in _numbered(what)]
        return to_x, None, None, *to_kernels, *weights, *biases


def _numbered(what: Normalisation) -> enumerate[Branch]:
    return enumerate(what.branches)


def _centre(patch: Geometry, device: torch.device) -> Tensor:
    """Where in a patch the position itself is, for each channel of a group."""
    centre = 0
    for taps in patch.offsets:
        centre = centre * len(taps) + (taps.index(0) if 0 in taps else 0)
    return torch.arange(patch.in_channels // patch.groups, device=device) * patch.taps + centre


def stacked(parameters: Sequence[Tensor | None], like: Tensor, value: float) -> Tensor:
    """The weights or biases of norms, ``(B, O)``, and a number for those of norms without."""
    return torch.stack([_or(p, row, value) for p, row in zip(parameters, like, strict=True)])


def _or(parameter: Tensor | None, like: Tensor, value: float) -> Tensor:
    return torch.full_like(like, value) if parameter is None else parameter.to(like.dtype)


def frozen_scale(norm: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the shift of a batch norm that uses its running statistics."""
    mean, variance = norm.running_mean.to(like.dtype), norm.running_var.to(like.dtype)
    factor = (variance + norm.eps).rsqrt() * _or(norm.weight, mean, 1.0)
    return factor, _or(norm.bias, mean, 0.0) - mean * factor


def uses_batch(norm: Any) -> bool:
    """Whether a batch norm normalises by the statistics of the batch, in the mode it is in."""
    return bool(norm.training or norm.running_mean is None or norm.running_var is None)


def follow(branches: Sequence[Branch], means: Tensor, variances: Tensor, count: int) -> None:
    """Update running statistics as ``torch.nn`` does: the variance unbiased."""
    tracking = [
        (branch, mean, variance)
        for branch, mean, variance in zip(
            branches, means, variances * (count / max(count - 1, 1)), strict=True
        )
        if branch.norm.training and branch.norm.track_running_stats
    ]
    counters = [b.norm.num_batches_tracked for b, *_ in tracking]
    counters = [counter for counter in counters if counter is not None]
    if counters:
        torch._foreach_add_(counters, 1)
    shares: dict[float, list[tuple[Tensor, Tensor]]] = {}
    for branch, mean, variance in tracking:
        norm = branch.norm
        share = norm.momentum
        if share is None:
            tracked = norm.num_batches_tracked
            share = 0.0 if tracked is None else 1.0 / float(tracked)
        pairs = shares.setdefault(share, [])
        if norm.running_mean is not None and norm.running_var is not None:
            mean = mean if branch.bias is None else mean + branch.bias.detach()  # noqa: PLW2901
            pairs += [
                (norm.running_mean, mean.to(norm.running_mean.dtype)),
                (norm.running_var, variance.to(norm.running_var.dtype)),
            ]
    for share, pairs in shares.items():
        if pairs:
            running, found = zip(*pairs, strict=True)
            # As PyTorch's own norms, which may have kept them for their backward pass: unrecorded.
            running = tuple(tensor.data for tensor in running)
            torch._foreach_lerp_(list(running), list(found), share)


def _add_identities(
    what: Normalisation, mean: Tensor, variance: Tensor, to_mean: Tensor, to_covariance: Tensor
) -> None:
    """Add what the branches that are the input itself hand to its moments."""
    for number in range(len(what.kernels), len(what.branches)):
        at = _centre(what.patch, mean.device)
        to_mean[:, at] += mean[number].view(len(to_mean), -1)
        to_covariance[:, at, at] += variance[number].view(len(to_mean), -1)


def _split(what: Normalisation, rows: Tensor, kernels: Sequence[Tensor]) -> list[Tensor]:
    """Take rows apart into kernels."""
    if not kernels:
        return []
    taps = [len(offsets) for offsets in what.patch.offsets]
    width = what.patch.in_channels // what.patch.groups
    apart = rows.view(len(rows), len(kernels), -1, width, *taps)
    return [
        apart[:, number][(_ALL, _ALL, _ALL, *branch.places)].reshape(kernel.shape)
        for number, (kernel, branch) in enumerate(zip(kernels, what.branches, strict=False))
    ]


def sync_group(norm: Any) -> Any:
    """The group of processes whose batches a norm joins, or None where there is only its own."""
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training:
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _joined(mean: Tensor, covariance: Tensor, count: int, group: Any) -> tuple[Tensor, Tensor, int]:
    """Join the moments of all processes of a group: one small sum over processes.

    In float64, as squares about zero are what can be added.
    """
    if group is None:
        return mean, covariance, count
    wide, rest = mean.double(), covariance.double()
    squares = rest + wide.unsqueeze(2) * wide.unsqueeze(1)
    total = torch.cat([wide.new_ones(1), wide.flatten(), squares.flatten()]) * count
    dist.all_reduce(total, group=group)
    everywhere = int(total[0].item())
    middle, squares = (total[1:] / total[0]).split([mean.numel(), covariance.numel()])
    middle, squares = middle.view_as(mean), squares.view_as(covariance)
    squares -= middle.unsqueeze(2) * middle.unsqueeze(1)
    return middle.to(mean.dtype), squares.to(mean.dtype), everywhere


def _summed(mean: Tensor, covariance: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Sum gradients over processes, each of which has its own loss."""
    if group is None:
        return mean, covariance
    total = torch.cat([mean.flatten(), covariance.flatten()])
    dist.all_reduce(total, group=group)
    first, second = total.split([mean.numel(), covariance.numel()])
    return first.view_as(mean), second.view_as(covariance)
