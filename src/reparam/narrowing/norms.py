"""Batch normalisation of branches from the moments of their common input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["forms", "frozen_scale", "joined_moments", "scales", "sync_group", "uses_batch"]

BatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 (no public base class)


def uses_batch(norm: Any) -> bool:
    """Whether a batch norm normalises by the statistics of the batch, in the mode it is in."""
    return bool(norm.training or norm.running_mean is None or norm.running_var is None)


def forms(kernels: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    r"""Compute :math:`w^\top\mu` and :math:`w^\top\Sigma\,w` for the rows of kernels.

    Args:
        kernels: Shape ``(groups, rows, D)``.
        mean: Shape ``(groups, D)``.
        covariance: Shape ``(groups, D, D)``.

    Returns:
        Two tensors of shape ``(groups, rows)``.

    """
    means, variances = _Forms.apply(kernels, mean, covariance)
    return means, variances


class _Forms(Function):
    """A linear and a quadratic form; of the second, the product with the matrix is kept."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Tensor, mean: Tensor, covariance: Tensor
    ) -> tuple[Tensor, Tensor]:
        spread = kernels @ covariance
        ctx.save_for_backward(kernels, mean, spread)
        return (kernels @ mean.unsqueeze(2)).squeeze(2), (spread * kernels).sum(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kernels, mean, spread = ctx.saved_tensors
        to_mean, to_variance = (grad.unsqueeze(2) for grad in grads)
        weighted = kernels * to_variance
        to_kernels = torch.addcmul(2 * to_variance * spread, to_mean, mean.unsqueeze(1))
        return to_kernels, (to_mean.mT @ kernels).squeeze(1), weighted.mT @ kernels


def scales(
    norms: Sequence[Any], means: Sequence[Tensor], variances: Sequence[Tensor], count: int
) -> list[tuple[Tensor, Tensor]]:
    """Normalise by batch statistics, and let the running ones follow.

    Args:
        norms: The batch norms, one for each branch.
        means: Shape ``(O,)`` each.
        variances: Alike, biased.
        count: Numbers that each was taken from, over all processes.

    Returns:
        For each branch the scale and the shift that the norm applies to it.

    """
    with torch.no_grad():
        for norm, mean, variance in zip(norms, means, variances, strict=True):
            _follow(norm, mean, variance, count)
    # All branches at once: these are many small tensors.
    sizes = [len(mean) for mean in means]
    eps = torch.cat(
        [
            mean.new_full((size,), norm.eps)
            for norm, mean, size in zip(norms, means, sizes, strict=True)
        ]
    )
    factor = (torch.cat(list(variances)) + eps).rsqrt()
    if any(norm.weight is not None for norm in norms):
        factor = factor * torch.cat(
            [_or(norm.weight, mean, 1.0) for norm, mean in zip(norms, means, strict=True)]
        )
    shift = -torch.cat(list(means)) * factor
    if any(norm.bias is not None for norm in norms):
        shift = shift + torch.cat(
            [_or(norm.bias, mean, 0.0) for norm, mean in zip(norms, means, strict=True)]
        )
    return list(zip(factor.split(sizes), shift.split(sizes), strict=True))


def _or(parameter: Tensor | None, like: Tensor, value: float) -> Tensor:
    return torch.full_like(like, value) if parameter is None else parameter.to(like.dtype)


def frozen_scale(norm: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the shift of a batch norm that uses its running statistics."""
    mean, variance = norm.running_mean.to(like.dtype), norm.running_var.to(like.dtype)
    factor = (variance + norm.eps).rsqrt() * _or(norm.weight, mean, 1.0)
    return factor, _or(norm.bias, mean, 0.0) - mean * factor


def _follow(norm: Any, mean: Tensor, variance: Tensor, count: int) -> None:
    """Update running statistics as ``torch.nn`` does: the variance unbiased."""
    if not norm.training or not norm.track_running_stats:
        return
    share = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if share is None:
            share = 1.0 / float(norm.num_batches_tracked)
    if norm.running_mean is None or norm.running_var is None:
        return
    share = 0.0 if share is None else share
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    unbiased = variance * (count / (count - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), share)


def sync_group(norm: Any) -> Any:
    """The group of processes whose batches a norm joins, or None where there is only its own."""
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training:
        return None
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def joined_moments(
    mean: Tensor, covariance: Tensor, count: int, group: Any
) -> tuple[Tensor, Tensor, int]:
    """Join the moments of all processes of a group: three small sums over processes."""
    if group is None:
        return mean, covariance, count
    total = torch.tensor([float(count)], dtype=torch.float64, device=mean.device)
    dist.all_reduce(total, group=group)
    everywhere = int(total.item())
    share = count / everywhere
    middle: Tensor = _SumOverProcesses.apply(mean * share, group)
    # About the common mean, so that nothing large is subtracted.
    off = mean - middle
    spread = (covariance + off.unsqueeze(2) * off.unsqueeze(1)) * share
    joined: Tensor = _SumOverProcesses.apply(spread, group)
    return middle, joined, everywhere


class _SumOverProcesses(Function):
    """The sum over all processes; a gradient is summed alike, as each process has its own loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
