"""The multi-branch net that a rep-optimizer stands for, and the search for its scales."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reparam.branching.rep_optimizer.scales import (
    BranchScales,
    default_scales,
    draw_pointwise,
    scaled_convs,
)
from reparam.branching.select import Where
from reparam.errors import InputError
from reparam.frontends.kinds import CONVS
from reparam.frontends.torch.copying import own_copy


class ScaledBranches(nn.Module):
    r"""Constant-scale linear addition in the place of one convolution.

    .. math:: y = t \odot (A * x) + s \odot (B * x) + c \odot x + b

    A plain training-time module without batch norm; ``fuse`` makes it one convolution.

    Args:
        conv: The convolution whose place this takes; its kernel and bias become ``A`` and ``b``.
        scales: ``t``, ``s`` and the first ``c``.
        pointwise: ``B``, shape ``(O, I / groups, 1, ...)``; None without that branch.
        train_scales: Whether ``t`` and ``s`` are parameters (to search for them) or constants.

    """

    kernel_scale: Tensor
    pointwise_scale: Tensor | None
    identity_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        conv: _ConvNd,
        scales: BranchScales,
        pointwise: Tensor | None,
        *,
        train_scales: bool = False,
    ) -> None:
        super().__init__()
        self.conv = copy.deepcopy(conv)
        self.conv.register_parameter("bias", None)
        self.pointwise = None if pointwise is None else _pointwise_layer(conv, pointwise)
        self._put("kernel_scale", scales.kernel, conv, trained=train_scales)
        self._put("pointwise_scale", scales.pointwise, conv, trained=train_scales)
        self._put("identity_scale", scales.identity, conv, trained=scales.train_identity)
        self._put("bias", conv.bias, conv, trained=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, I, *spatial)`` to ``(N, O, *spatial_out)``."""
        y: Tensor = self.conv(x) * self.kernel_scale
        if self.pointwise is not None and self.pointwise_scale is not None:
            y = y + self.pointwise(x) * self.pointwise_scale
        if self.identity_scale is not None:
            y = y + x * self.identity_scale
        return y if self.bias is None else y + self.bias

    def scales(self) -> BranchScales:
        """Read the scales as they are now."""
        constant = self.identity_scale is not None and "identity_scale" in self._buffers
        return BranchScales(
            self.kernel_scale.detach().flatten().clone(),
            _flat(self.pointwise_scale),
            _flat(self.identity_scale),
            train_identity=not constant,
        )

    def _put(self, name: str, value: Tensor | None, conv: _ConvNd, *, trained: bool) -> None:
        """Shape one number per output channel to multiply the output: a parameter or a buffer."""
        if value is not None:
            value = value.detach().to(conv.weight).clone().view(-1, *(1,) * len(conv.kernel_size))
        if trained:
            self.register_parameter(name, None if value is None else nn.Parameter(value))
        else:
            self.register_buffer(name, value)


def _flat(scale: Tensor | None) -> Tensor | None:
    return None if scale is None else scale.detach().flatten().clone()


def _pointwise_layer(conv: _ConvNd, kernel: Tensor) -> _ConvNd:
    layer: _ConvNd = CONVS[len(conv.kernel_size) - 1](
        conv.in_channels,
        conv.out_channels,
        (1,) * len(conv.kernel_size),
        stride=conv.stride,
        groups=conv.groups,
        bias=False,
        device="meta",
        dtype=conv.weight.dtype,
    )
    layer.weight = nn.Parameter(kernel.detach().to(conv.weight).clone())
    return layer


def scaled_branches(
    model: nn.Module,
    scales: Mapping[str, BranchScales],
    *,
    train_scales: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Make the multi-branch net that ``RepOptimizer`` trains a plain net as.

    Args:
        model: The plain net; it is not changed. Its kernels become those of the kxk branches.
        scales: Scales by the name of the convolution.
        train_scales: Whether the scales of the kxk and 1x1 branches are trained too.
        generator: Source of the 1x1 kernels; drawn in the order of ``scales``, as
            :func:`~reparam.branching.rep_optimizer.initialize_` draws them.

    Returns:
        A new model in which those convolutions are :class:`ScaledBranches`.

    Raises:
        InputError: The scales do not fit the model.

    """
    wide = own_copy(model)
    blocks: dict[int, ScaledBranches] = {}
    for name, conv in scaled_convs(wide, scales).items():
        pointwise = draw_pointwise(conv, generator) if scales[name].pointwise is not None else None
        block = ScaledBranches(conv, scales[name], pointwise, train_scales=train_scales)
        blocks[id(conv)] = block.train(conv.training)
    for parent in list(wide.modules()):
        for name, child in parent._modules.items():
            if id(child) in blocks:
                parent._modules[name] = blocks[id(child)]
    return blocks.get(id(wide), wide)


def read_scales(model: nn.Module) -> dict[str, BranchScales]:
    """Read the scales of all blocks of a net that :func:`scaled_branches` made.

    Raises:
        InputError: The net has no such block.

    """
    found = {
        name: module.scales()
        for name, module in model.named_modules()
        if isinstance(module, ScaledBranches)
    }
    if not found:
        raise InputError(
            f"the {type(model).__name__} has no ScaledBranches; make it with scaled_branches"
        )
    return found


def search_scales(
    model: nn.Module,
    fit: Callable[[nn.Module], object],
    *,
    where: Where = None,
    generator: torch.Generator | None = None,
) -> dict[str, BranchScales]:
    """Find scales by training them: the hyper-search of the paper.

    The multi-branch net with trainable scales, started from :func:`default_scales`, is handed to
    ``fit``, which trains it on a small data set in whatever way (CIFAR-100 in the paper, for a net
    that is then trained on ImageNet); the scales that it ends with are returned. They belong to
    the structure, so a net with another classifier can use them.

    Args:
        model: The plain net; it is not changed.
        fit: Trains the net that it is given, in place.
        where: Which convolutions, as in :func:`reparam.branch`.
        generator: Source of the 1x1 kernels.

    Returns:
        Scales by the name of the convolution, on the CPU.

    Raises:
        InputError: No convolution fits, or training left a scale that is not finite.

    Source: arXiv 2205.15242 (RepOptimizer), section 3.2.

    """
    start = default_scales(model, where=where)
    net = scaled_branches(model, start, train_scales=True, generator=generator)
    fit(net)
    return read_scales(net.cpu())
