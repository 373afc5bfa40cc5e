"""The module that takes a convolution's place: a sum of branches, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


class BranchSum(nn.Module):
    r"""The sum of parallel branches, in the place of one convolution.

    .. math:: y = \sum_b \mathrm{branch}_b(\mathrm{pad}(x))

    A plain training-time module: it knows nothing of deployment and traces with ``torch.fx``. The
    facts that outer code reads off a convolution (``in_channels``, ``stride``, ...) are kept.

    Args:
        branches: Modules that map ``(N, in_channels, *spatial)`` to one shape
            ``(N, out_channels, *spatial_out)``.
        conv: The convolution whose place this takes; only its description is read.
        pad: Padding that all branches share, where it is not with zeros; else None.

    """

    def __init__(
        self, branches: Mapping[str, nn.Module], conv: _ConvNd, pad: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation = conv.padding, conv.dilation
        self.groups, self.padding_mode = conv.groups, conv.padding_mode
        self.pad = pad
        self.branches = nn.ModuleDict(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the branches make of ``x``."""
        if self.pad is not None:
            x = self.pad(x)
        first, *others = self.branches.values()
        y: Tensor = first(x)
        for branch in others:
            y = y + branch(x)
        return y

    def extra_repr(self) -> str:
        """Say which convolution this stands for."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}"
        )
