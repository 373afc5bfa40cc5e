r"""Mean and covariance of the patches of a batch, and what is made of both: gradients, the block.

A branch that is linear in the patch :math:`p` has the batch mean :math:`w^\top\mu` and the batch
variance :math:`w^\top\Sigma\,w`, with

.. math:: \mu = \tfrac1n \sum p, \qquad \Sigma = \tfrac1n \sum (p - \mu)(p - \mu)^\top

over the ``n`` positions of the batch that the branch computes. Patches are those of one group of
channels, ordered by channel, then by tap, like the rows of a kernel ``(O, I / groups, *taps)``.

Two ways lead there. Patches as columns of a matrix (:mod:`reparam.branching.online.rows`), which
single taps are without being moved. And depthwise patches as what they nearly are, shifted images
(:mod:`reparam.branching.online.toeplitz`). Either keeps the input for the backward pass.

A gradient of the moments is one map of the patches: with :math:`S = d\Sigma + d\Sigma^\top`, a
patch gets :math:`(S\,p + d\mu - S\,\mu) / n`.

The merged convolution reads the same patches. So a way computes it as well, in the layout that it
has the input in, and both gradients of the input are added up where they are made.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from reparam.algebra import Geometry

_AS_IT_IS = nullcontext()

_MOST_TAPS = 49
"""Taps from which on the fixed maps of Toeplitz patches grow large."""
_LARGEST_MEAN = 100.0
"""How many variances the square of a mean may be, for squares not to be centred before the sum."""


class Later(NamedTuple):
    """What the merged convolution leaves to do for the gradient of its input."""

    grad: Tensor
    kernel: Tensor


class Way(Protocol):
    """The patches of one input."""

    kept: Tensor
    """The input as it is kept for the backward pass."""
    turned: bool
    """Whether it is kept in another layout than it came in."""

    def moments(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The mean ``(groups, D)`` and the covariance ``(groups, D, D)`` in a type."""
        ...

    def reads(self, layer: Geometry) -> bool:
        """Whether a convolution can be computed from these patches."""
        ...

    def turn(self, images: Tensor) -> Tensor:
        """Images in the layout of what is kept."""
        ...

    def convolved(self, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of the input with a kernel ``(O, I / groups, *taps)``."""
        ...

    def to_kernel(self, grad: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of its kernel and bias, from that of its result, turned."""
        ...

    def gradient(
        self, linear: tuple[Tensor, Tensor] | None, before: Tensor | None, laters: Sequence[Later]
    ) -> Tensor:
        """What the map ``matrix @ p + shift`` of all patches gives where they were read.

        Args:
            linear: The matrix, of shape ``(groups, D, D)`` and symmetric, and the shift,
                ``(groups, D)``; None for no map.
            before: What it is added to, which stays as it is; None for nothing.
            laters: Convolutions whose gradients of the input are added, too.

        """
        ...


def is_single_tap(patch: Geometry) -> bool:
    """Whether every patch is one position, and each position of the input is one patch."""
    return patch.is_pointwise


def reads_one_tap(layer: Geometry) -> bool:
    """Whether a convolution reads at each of its positions, at any stride, that position alone."""
    return all(taps == (0,) for taps in layer.offsets)


def is_toeplitz(patch: Geometry) -> bool:
    """Whether patches are shifted images: depthwise, dense taps, at any stride."""
    return (
        patch.dims in {1, 2}
        and patch.groups == patch.in_channels
        and 1 < patch.taps <= _MOST_TAPS
        and all(
            taps == tuple(range(taps[0], taps[-1] + 1)) and taps[0] <= 0 <= taps[-1]
            for taps in patch.offsets
        )
    )


def is_precise(mean: Tensor, variance: Tensor) -> bool:
    """Whether a variance by squares about zero lost few digits.

    On other devices than CPUs nobody waits for the answer, and squares are centred always.
    """
    return bool((mean.square() <= _LARGEST_MEAN * variance).all())


def plain_types(x: Tensor) -> Any:
    """Make a calculation in the types that it is given in, under autocast too."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _AS_IT_IS


@functools.lru_cache(maxsize=4096)
def with_outputs(patch: Geometry, channels: int) -> Geometry:
    """The convolution of a patch to a number of channels."""
    return replace(patch, out_channels=channels)
