"""The way to the moments of a patch, and the merged convolution on the same way.

That convolution is computed by the way, in the layout that it has the input in. In the backward
pass it hands its part of the input's gradient to the backward pass of the moments, which follows,
as the kernel depends on them: so all parts are added up in one tensor, which nobody else holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from reparam.algebra import Geometry
from reparam.branching.online.moments import Later, Way, is_toeplitz, plain_types
from reparam.branching.online.rows import Rows
from reparam.branching.online.toeplitz import Toeplitz

Handed = dict[object, tuple[Way, Later]]
"""What convolutions left, each in its place."""


def way_of(x: Tensor, patch: Geometry, *, turned: bool | None = None) -> Way:
    """Choose the way to the moments of the patches of an input.

    Args:
        x: The input, or what a way kept of it.
        patch: The patches.
        turned: What that way said of its layout.

    """
    return Toeplitz(x, patch, turned=turned) if is_toeplitz(patch) else Rows(x, patch)


def convolved(
    x: Tensor, kernel: Tensor, bias: Tensor | None, patch: Geometry, way: Way,
    handed: Handed | None = None,
) -> Tensor:  # fmt: skip
    """Convolve an input on a way.

    Args:
        x: The input; with ``handed`` as :func:`reparam.branching.online.norms.normalised` returned
            it last.
        kernel: Shape ``(O, I / groups, *taps)``, in the type of the input.
        bias: Shape ``(O,)``, or None.
        patch: The patches of the way.
        way: The patches of the input, which have to be those that the convolution reads.
        handed: Where the backward pass of the moments looks for what is left to do; None where
            there are no moments.

    """
    found: Tensor = _Convolve.apply(x, kernel, bias, patch, way, handed)
    return found


def take(handed: Handed) -> tuple[Way | None, list[Later]]:
    """Take what convolutions left to do, and the way that they made anew."""
    ways, laters = [way for way, _ in handed.values()], [later for _, later in handed.values()]
    handed.clear()
    return (ways[0] if ways else None), laters


class _Convolve(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None, patch: Geometry, way: Way,
        handed: Handed | None,
    ) -> Tensor:  # fmt: skip
        with plain_types(x):
            y = way.convolved(kernel, bias)
        ctx.save_for_backward(way.kept, kernel)
        ctx.patch, ctx.turned, ctx.handed, ctx.place = patch, way.turned, handed, object()
        # Nobody else has what it is a view of, and what follows may change it in place.
        return torch.ops.aten._unsafe_view(y, y.shape)  # type: ignore[no-any-return]  # noqa: SLF001

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        kept, kernel = ctx.saved_tensors
        to_x = to_kernel = to_bias = None
        with plain_types(kept):
            way = way_of(kept, ctx.patch, turned=ctx.turned)
            grad = way.turn(grads[0])
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                to_kernel, to_bias = way.to_kernel(grad, kernel)
            if ctx.needs_input_grad[0] and ctx.handed is None:
                to_x = way.gradient(None, None, [Later(grad, kernel)])
            elif ctx.needs_input_grad[0]:
                # In the place of what an earlier pass through a kept graph may have left.
                ctx.handed[ctx.place] = way, Later(grad, kernel)
        return to_x, to_kernel, (to_bias if ctx.needs_input_grad[2] else None), None, None, None
