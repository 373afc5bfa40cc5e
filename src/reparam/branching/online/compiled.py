r"""Sums of batch-normed tensors in compiled passes over memory.

PyTorch's batch norms and their sum read and write each tensor many times. With the scale
:math:`a = \gamma / \sqrt{v + \epsilon}` of each norm, its sum with others is

.. math:: y = \sum_i a_i (z_i - m_i) + \beta_i, \qquad
   dz_i = a_i \left(g - \bar g - (z_i - m_i)\,\overline{g (z_i - m_i)} / (v_i + \epsilon)\right),

bars being means over the batch: a pass for the moments and one for the sum, and as many back. They
are compiled once for each *kind*: how many tensors, of which types, in which layout, of any size.
Compiling takes seconds, and needs a C++ compiler on CPUs and Triton on GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import reduce
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from reparam.branching.online.moments import plain_types
from reparam.branching.online.norms import Branch, follow, stacked, sync_group, uses_batch
from reparam.errors import UnsupportedModelError

_EXAMPLE = (8, 64, 784)
"""Sizes that passes are compiled with, which decide whether they use threads; any size may come."""


class Normed(NamedTuple):
    """A tensor, ``(N, C, ...)``, that a batch norm is still to be applied to."""

    norm: Any
    tensor: Tensor


class Kind(NamedTuple):
    """What passes are compiled for: types of what is normalised, and of what is added as it is."""

    normed: tuple[torch.dtype, ...]
    added: tuple[torch.dtype, ...] = ()
    device: str = "cpu"
    channels_last: bool = False

    @property
    def precise(self) -> torch.dtype:
        """The type of statistics."""
        return reduce(torch.promote_types, (*self.normed, *self.added), torch.float32)


class _Passes(NamedTuple):
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    seconds: float


_PASSES: dict[Kind, _Passes] = {}


def is_normed_here(norm: Any, tensor: Tensor) -> bool:
    """Whether compiled passes can stand for a norm: its own batch decides, by several numbers."""
    several = tensor.dim() > 2 and tensor.numel() > tensor.shape[1]
    return several and uses_batch(norm) and sync_group(norm) is None


def normed_sum(normed: Sequence[Normed], added: Sequence[Tensor]) -> Tensor:
    """Normalise by batch statistics, add up, and let the running ones follow.

    Args:
        normed: At least one; all of one shape.
        added: What is added as it is, of that shape.

    Raises:
        UnsupportedModelError: Nothing can be compiled here.

    """
    norms = [norm for norm, _ in normed]
    parameters = [*(norm.weight for norm in norms), *(norm.bias for norm in norms)]
    total: Tensor = _NormedSum.apply(norms, *(z for _, z in normed), *added, *parameters)
    return total


def compile_seconds(kinds: Sequence[Kind]) -> float:
    """How long this process has compiled passes of some kinds."""
    return sum(_PASSES[kind].seconds for kind in kinds if kind in _PASSES)


def compiled(kind: Kind) -> _Passes:
    """Compile the passes of a kind, once, and compare them with what they were compiled from.

    Raises:
        UnsupportedModelError: They cannot be compiled here, or compute something else.

    """
    if kind not in _PASSES:
        started = time.perf_counter()
        try:
            forward, backward = _compile(_forward), _compile(_backward)
            _try_out(kind, forward, backward)
        except Exception as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            needed = "a C++ compiler, such as g++," if kind.device == "cpu" else "Triton"
            raise UnsupportedModelError(
                f"the passes of blocks cannot be compiled for {kind.device} here: {why}; "
                f"install {needed} or leave out compile=True"
            ) from error
        _PASSES[kind] = _Passes(forward, backward, time.perf_counter() - started)
    return _PASSES[kind]


class _NormedSum(Function):
    @staticmethod
    def forward(ctx: Any, norms: Sequence[Any], *inputs: Any) -> Tensor:
        count, shape = len(norms), inputs[0].shape
        tensors, parameters = inputs[: -2 * count], inputs[-2 * count :]
        kind = _kind_of(tensors[:count], tensors[count:])
        flat = [_flat(tensor, kind) for tensor in tensors]
        like = flat[0].new_empty((count, shape[1]), dtype=kind.precise)
        weight, bias = (
            stacked(parameters[:count], like, 1.0),
            stacked(parameters[count:], like, 0.0),
        )
        eps = like.new_tensor([[norm.eps] for norm in norms])
        with plain_types(like):
            passes = compiled(kind)
            y, means, variances, factors = passes.forward(
                eps, weight, bias, flat[:count], flat[count:]
            )
        branches = [Branch(norm, None, ()) for norm in norms]
        follow(branches, means, variances, flat[0].numel() // shape[1])
        ctx.save_for_backward(means, factors, weight, *flat[:count])
        ctx.kind, ctx.passes = kind, passes
        ctx.types = [None if p is None else p.dtype for p in parameters]
        # Nobody else has what it is a view of, and what follows may change it in place.
        return torch.ops.aten._unsafe_view(y, shape)  # type: ignore[no-any-return]  # noqa: SLF001

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        means, factors, weight, *flat = ctx.saved_tensors
        with plain_types(means):
            found, to_weight, to_bias = ctx.passes.backward(
                means, factors, weight, _flat(grads[0], ctx.kind), flat
            )
        to_tensors = [f.view(grads[0].shape) for f in found]
        to_tensors += [grads[0].to(dtype) for dtype in ctx.kind.added]
        pairs = zip([*to_weight, *[to_bias] * len(flat)], ctx.types, strict=True)
        return None, *to_tensors, *(None if d is None else t.to(d) for t, d in pairs)


def _forward(
    eps: Tensor, weight: Tensor, bias: Tensor, normed: list[Tensor], added: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum, and for each norm the mean, the variance and what divides by its root."""
    count = normed[0].numel() // normed[0].shape[1]
    wide = [z.to(eps.dtype) for z in normed]
    means = torch.stack([z.sum((0, 2)) for z in wide]) / count
    centred = [z - mean.view(-1, 1) for z, mean in zip(wide, means.unbind(), strict=True)]
    variances = torch.stack([c.square().sum((0, 2)) for c in centred]) / count
    factors = (variances + eps).rsqrt()
    scales = (factors * weight).unbind()
    parts = [c * scale.view(-1, 1) for c, scale in zip(centred, scales, strict=True)]
    total = reduce(torch.add, [*parts, *added], bias.sum(0).view(-1, 1))
    dtype = reduce(torch.promote_types, (t.dtype for t in (*normed, *added)))
    return total.to(dtype), means, variances, factors


def _backward(
    means: Tensor, factors: Tensor, weight: Tensor, grad: Tensor, normed: list[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The gradients of what is normalised, of weights and of each bias."""
    count = grad.numel() // grad.shape[1]
    g = grad.to(means.dtype)
    total = g.sum((0, 2))
    parts, to_tensors = [], []
    for z, mean, factor, each in zip(
        normed, means.unbind(), factors.unbind(), weight.unbind(), strict=True
    ):
        unit = (z.to(means.dtype) - mean.view(-1, 1)) * factor.view(-1, 1)
        part = (g * unit).sum((0, 2))
        inner = g - (total / count).view(-1, 1) - unit * (part / count).view(-1, 1)
        to_tensors.append((inner * (factor * each).view(-1, 1)).to(z.dtype))
        parts.append(part)
    return to_tensors, torch.stack(parts), total


def _compile(function: Any) -> Callable[..., Any]:
    """Compile a copy: how often one function may be compiled is limited, and each kind counts."""
    copied = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    found: Callable[..., Any] = torch.compile(copied, dynamic=True, fullgraph=True)
    return found


@torch.no_grad()
def _try_out(kind: Kind, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
    rng = torch.Generator(kind.device).manual_seed(0)

    def draw(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.rand(shape, generator=rng, device=kind.device, dtype=kind.precise).to(dtype)

    def images(dtype: torch.dtype) -> Tensor:
        number, channels, positions = _EXAMPLE
        drawn = draw(dtype, number, channels, positions, 1)
        return _flat(drawn, kind)

    eps, weight, bias = (draw(kind.precise, len(kind.normed), n) for n in (1, *[_EXAMPLE[1]] * 2))
    normed, added = ([images(dtype) for dtype in types] for types in (kind.normed, kind.added))
    expected = _forward(eps, weight, bias, normed, added)
    found = forward(eps, weight, bias, normed, added)
    _, means, _, factors = expected
    grad = images(expected[0].dtype)
    after = means, factors, weight, grad, normed
    # Sums of thousands of numbers in another order, in the coarsest of the types.
    unit = max(torch.finfo(dtype).eps for dtype in (*kind.normed, *kind.added))
    near = min(1e-2, 2**10 * unit)
    torch.testing.assert_close(found, expected, rtol=near, atol=near)
    torch.testing.assert_close(backward(*after), _backward(*after), rtol=near, atol=near)


def _kind_of(normed: Sequence[Tensor], added: Sequence[Tensor]) -> Kind:
    first = normed[0]
    last = first.dim() == 4 and not first.is_contiguous()
    return Kind(
        tuple(z.dtype for z in normed), tuple(z.dtype for z in added), first.device.type,
        last and first.is_contiguous(memory_format=torch.channels_last),
    )  # fmt: skip


def _flat(images: Tensor, kind: Kind) -> Tensor:
    """``(N, C, positions)``, in the layout of the kind."""
    last = torch.channels_last if kind.channels_last else torch.contiguous_format
    return images.detach().contiguous(memory_format=last).flatten(2)
