"""The blocks: plain modules that sum their branches.

Nothing here knows that the branches can be folded, and nothing branches on a mode: the deployed
network is what :func:`reparam.fuse` writes, or the same classes built from a spec with a single
convolution a block.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from reparam.models.specs import BlockSpec


class ParallelSum(nn.Module):
    """Modules side by side, and their sum: ``y = sum_b b(x)``.

    The branches are children under the names they are given, and are added in that order.

    Args:
        branches: The branches by name, at least one; all map ``x`` to tensors of one shape.

    >>> import torch
    >>> twice = ParallelSum({"first": nn.Identity(), "second": nn.Identity()})
    >>> twice(torch.ones(2))
    tensor([2., 2.])
    """

    def __init__(self, branches: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        """Add up what the branches make of ``x``."""
        first, *others = self.children()
        total: Tensor = first(x)
        for branch in others:
            total = total + branch(x)
        return total


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation, ``y = x * sigmoid(W2 ReLU(W1 mean(x) + b1) + b2)``.

    The mean is over the positions, so that there is one factor for each channel and image (Hu et
    al., CVPR 2018, arXiv 1709.01507, section 3).

    Args:
        channels: Channels of ``x``, of shape ``(N, channels, H, W)``.
        squeezed: Channels after the first of the two linear maps.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, kernel_size=1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(squeezed, channels, kernel_size=1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of ``x``."""
        scale: Tensor = self.gate(self.expand(self.act(self.reduce(self.pool(x)))))
        return x * scale


class Block(nn.Module):
    """One block of the families: ``ReLU(SE(branches(x)))``.

    ``branches`` is an affine map of its input in eval mode, so it can stand for one convolution.

    Args:
        spec: Channels, kernel, stride, groups, branches and squeeze-and-excitation.

    >>> import torch
    >>> from reparam.models import BlockSpec
    >>> block = Block(BlockSpec(in_channels=4, out_channels=4))
    >>> [name for name, _ in block.branches.named_children()]
    ['kxk0', 'pointwise', 'identity']
    >>> block(torch.zeros(1, 4, 8, 8)).shape
    torch.Size([1, 4, 8, 8])
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.branches = affine_part(spec)
        self.attention = (
            SqueezeExcite(spec.out_channels, spec.squeeze) if spec.squeeze else nn.Identity()
        )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in, H, W)`` to ``(N, out, ceil(H / stride), ceil(W / stride))``."""
        y: Tensor = self.act(self.attention(self.branches(x)))
        return y


def affine_part(spec: BlockSpec) -> nn.Module:
    """Build the part of a block before its squeeze-and-excitation and activation.

    Returns:
        A :class:`ParallelSum` of the branches ``kxk0``, ``kxk1``, ..., ``pointwise`` and
        ``identity``; followed by a BN (children ``sum`` and ``bn``) where the spec normalises the
        sum; and a bare convolution where the spec has nothing but one.
    """
    norm = spec.branches.norm
    if spec.branches.single:
        return _conv(spec, spec.kernel_size, bias=True)
    branches: dict[str, nn.Module] = {}
    for index in range(spec.branches.kernels):
        kernel = _conv(spec, spec.kernel_size, bias=norm == "none")
        branches[f"kxk{index}"] = kernel if norm == "none" else _normalised(kernel)
    if spec.has_pointwise:
        pointwise = _conv(spec, 1, bias=False)
        branches["pointwise"] = _normalised(pointwise) if norm == "branch" else pointwise
    if spec.has_identity:
        branches["identity"] = (
            nn.BatchNorm2d(spec.in_channels) if norm == "branch" else nn.Identity()
        )
    total = ParallelSum(branches)
    if norm == "sum":
        return nn.Sequential(OrderedDict(sum=total, bn=nn.BatchNorm2d(spec.out_channels)))
    return total


def _conv(spec: BlockSpec, kernel_size: int, *, bias: bool) -> nn.Conv2d:
    """Build a convolution of the block; a 1x1 needs no padding to line up with a centred kxk."""
    whole = kernel_size == spec.kernel_size
    return nn.Conv2d(
        spec.in_channels,
        spec.out_channels,
        kernel_size,
        stride=spec.stride,
        padding=spec.padding if whole else 0,
        dilation=spec.dilation if whole else 1,
        groups=spec.groups,
        bias=bias,
    )


def _normalised(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(conv.out_channels)))
