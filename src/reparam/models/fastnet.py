"""A net for images of 32 pixels that trains to a good accuracy in a few epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from reparam.models.blocks import Block
from reparam.models.specs import BlockSpec, BranchSpec
from reparam.models.zoo import branch_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_PATCH = 2
"""Side of the patches that the first layer whitens, in pixels."""
_LOGIT_SCALE = 1 / 9
_EPS = 5e-4
"""Added to the variances of whitened patches, whose smallest are next to nothing."""


class FastNet(nn.Module):
    """Whitened patches, then three stages of two blocks around a max pooling.

    The shape is that of Jordan 2024 ("94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv
    2404.00498, section 3), with this package's blocks: their identity branches are what the
    "dirac" start of the convolutions stands for there, and a block that changes the number of
    channels, and so has none, starts like that here too. The first layer is not trained: it is set
    from the data by :meth:`fit_data_`, which :func:`reparam.train` calls. When fused, a net of six
    3x3 convolutions, the first layer and the head.

    From the first layer on the activations are in channels_last, in which a training step on the
    CPU takes three quarters of the time: bf16 convolutions need no copies, and max pooling is
    vectorised. The layer itself has no gradients, which is why this is safe: those of strided 1x1
    convolutions of three channels crash in that layout (torch 2.14.1).

    Args:
        widths: Channels of the three stages.
        num_classes: Number of classes.
        in_channels: Channels of the images.
        branches: Of all blocks: a :class:`BranchSpec`, or a name in :data:`BRANCHES`.

    Raises:
        InputError: There is no such choice of branches, or a width is no positive number.

    >>> net = FastNet(widths=(16, 32, 32))
    >>> net(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    fitted: Tensor

    def __init__(
        self,
        widths: Sequence[int] = (64, 256, 256),
        num_classes: int = 10,
        in_channels: int = 3,
        branches: str | BranchSpec = "identity",
    ) -> None:
        """Build the net with random weights, the first layer's orthonormal."""
        super().__init__()
        spec = branch_spec(branches)
        patch = in_channels * _PATCH**2
        self.whiten = nn.Conv2d(in_channels, 2 * patch, _PATCH, bias=False)
        self.whiten.requires_grad_(requires_grad=False)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))
        self._set_filters(nn.init.orthogonal_(torch.empty(patch, patch)))
        self.act = nn.ReLU()
        stages = []
        channels = 2 * patch
        for width in widths:
            first, second = _block(channels, width, spec), _block(width, width, spec)
            stages.append(nn.Sequential(first, nn.MaxPool2d(2), second))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(channels, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` of at least 9 pixels to logits ``(N, classes)``."""
        patches = self.act(self.whiten(x)).contiguous(memory_format=torch.channels_last)
        features = self.pool(self.stages(patches)).flatten(1)
        logits: Tensor = self.head(features) * _LOGIT_SCALE
        return logits

    @torch.no_grad()
    def fit_data_(self, images: Tensor) -> None:
        r"""Let the first layer whiten the patches of these images, unless that was done before.

        With the eigenvectors :math:`v_i` and eigenvalues :math:`\lambda_i` of the second moments of
        all 2x2 patches, the filters are :math:`\pm v_i / \sqrt{\lambda_i + \epsilon}`.

        Args:
            images: Normalised training images, shape ``(N, C, H, W)``; some thousand are enough.
        """
        if self.fitted:
            return
        unfolded = nn.functional.unfold(images, _PATCH).double()  # (N, C * 4, places)
        patches = unfolded.transpose(0, 1).flatten(1)
        values, vectors = torch.linalg.eigh(patches @ patches.T / patches.shape[1])
        self._set_filters((vectors / (values + _EPS).sqrt()).T.flip(0))
        self.fitted.fill_(True)

    def _set_filters(self, rows: Tensor) -> None:
        filters = rows.view(-1, *self.whiten.weight.shape[1:])
        self.whiten.weight.data.copy_(torch.cat([filters, -filters]))


def fastnet(num_classes: int = 10, in_channels: int = 3) -> FastNet:
    """Build the net with 64, 256 and 256 channels: 2.0 million weights when fused.

    >>> net = fastnet(num_classes=7)
    >>> net.head.out_features
    7
    """
    return FastNet(num_classes=num_classes, in_channels=in_channels)


def _block(channels: int, width: int, branches: BranchSpec) -> Block:
    block = Block(BlockSpec(in_channels=channels, out_channels=width, branches=branches))
    if channels < width:
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight.data[:channels])
    return block
