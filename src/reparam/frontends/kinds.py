"""Base classes of PyTorch's layers that have no public name, named once."""

from __future__ import annotations

from torch import nn

__all__ = ["AnyBatchNorm", "AnyConv", "AnyNorm", "AnyTransposedConv"]

AnyBatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 (no public base class)
AnyNorm = nn.modules.batchnorm._NormBase  # noqa: SLF001 (no public base class)
AnyConv = nn.modules.conv._ConvNd  # noqa: SLF001 (no public base class)
AnyTransposedConv = nn.modules.conv._ConvTransposeNd  # noqa: SLF001 (no public base class)
