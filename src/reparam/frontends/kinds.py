"""PyTorch's layers by kind, and their base classes that have no public name, named once."""

from __future__ import annotations

from typing import Any

from torch import nn

AnyBatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 (no public base class)
AnyNorm = nn.modules.batchnorm._NormBase  # noqa: SLF001 (no public base class)
AnyConv = nn.modules.conv._ConvNd  # noqa: SLF001 (no public base class)
AnyTransposedConv = nn.modules.conv._ConvTransposeNd  # noqa: SLF001 (no public base class)

# For one to three spatial dimensions. The type checker does not know that each has its own kind.
CONVS: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGE_POOLS: Any = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ZERO_PADS: Any = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
