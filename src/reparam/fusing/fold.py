"""The numbers of a region: computed in float64, checked in float64, cast once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from reparam.algebra import (
    AffineConv,
    Expression,
    Geometry,
    LayerArguments,
    evaluate,
    layer_arguments,
    lower,
    prepared,
)
from reparam.algebra.direct import Positions, telling_positions
from reparam.frontends.weights import all_finite
from reparam.fusing.execute import SLICE, pad_as
from reparam.planner import Candidate
from reparam.program import Padded
from reparam.reasons import Reason, Why

Reference = Callable[[Tensor, Positions | None], tuple[Tensor, float]]
"""Runs a region as it stands on a float64 input: its output, at all or some positions, and the
largest value inside."""

T = TypeVar("T")
R = TypeVar("R")

_TOLERANCE = 1e-10
"""Float64 rounding of the longest sums stays far below, any wrong fold far above."""


@dataclass(frozen=True, slots=True, eq=False)
class FoldedLayer:
    """One layer that takes the place of a region.

    Attributes:
        arguments: How to call it.
        weight: Its kernel in the type of the model, each number the correctly rounded one.
        bias: Its bias, or None.
        error: Largest difference from the region in float64, relative to the largest value that
            occurs in it, at the interior and at every border.
        template: The layer to copy with this weight, a row per output channel, where that is not
            an ordinary convolution.
        padding_mode: What the layer pads its input with.

    """

    arguments: LayerArguments
    weight: Tensor
    bias: Tensor | None
    error: float
    template: nn.Module | None = None
    padding_mode: str = "zeros"

    @property
    def agrees(self) -> bool:
        """Whether the layer computes what the region computes (false for NaN, too)."""
        return self.error <= _TOLERANCE

    @property
    def doubt(self) -> Reason | None:
        """Why the layer must not be used, if so."""
        if not self.agrees:
            return Why.FOLD_DIFFERS(error=self.error)
        if not all_finite({t for t in (self.weight, self.bias) if t is not None}):
            return Why.OVERFLOWS(dtype=dtype_name(self.weight.dtype))
        return None


def dtype_name(dtype: torch.dtype) -> str:
    """Name a type as a person would."""
    return str(dtype).removeprefix("torch.")


def in_parallel(
    function: Callable[[T], R], regions: Sequence[T], size: Callable[[T], float]
) -> Iterator[tuple[T, R]]:
    """Fold each region; results come in the order of the regions.

    One thread a region: the slices are small, and threads that share a slice would wait for each
    other more than they compute, many times longer on a busy machine. The largest go first, so
    that no thread is left alone with one at the end.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from ((region, function(region)) for region in regions)
        return
    try:
        with ThreadPoolExecutor(max(1, threads), initializer=_single_threaded) as pool:
            largest_first = sorted(range(len(regions)), key=lambda k: -size(regions[k]))
            futures = {k: pool.submit(function, regions[k]) for k in largest_first}
            for k, region in enumerate(regions):
                yield region, futures.pop(k).result()
    finally:
        torch.set_num_threads(threads)


def _single_threaded() -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def fold_onto(region: Candidate, like: Tensor, run: Reference) -> FoldedLayer:
    """Compute the layer of a region and compare it with what ``run`` says the region computes."""
    expression = region.expression
    assert expression is not None  # noqa: S101 (regions are never the identity)
    arguments, full = layer_arguments(expression.geometry)
    sample = probe_input(region, like.device)
    padded = pad_as(region.source, sample)
    flat = region.axis == -1
    at = None if flat else telling_positions(padded.shape[2:], expression.geometry)
    reference, scale = run(sample, at)
    weight = torch.empty(full.kernel_shape, dtype=like.dtype, device=like.device)
    bias = (
        torch.empty(full.out_channels, dtype=like.dtype, device=like.device) if full.bias else None
    )
    worst = 0.0
    expression = prepared(expression)
    layer = arguments.on(padded, at)
    for rows in _row_slices(full):
        kernel, shift = _lower_rows(expression, full, rows)
        mine = layer(kernel, shift)
        start, stop = rows or (0, full.out_channels)
        theirs = reference[..., start:stop] if flat else reference[:, start:stop]
        worst = _worse(worst, (mine - theirs).abs().max())
        weight[start:stop] = kernel
        if bias is not None and shift is not None:
            bias[start:stop] = shift
    mode = "zeros"
    if isinstance(region.source, Padded):
        arguments = replace(arguments, padding=tuple(low for low, _ in region.source.pads))
        mode = region.source.mode
    return FoldedLayer(
        arguments, _formatted(weight, like), bias, worst / scale if scale else worst,
        padding_mode=mode,
    )  # fmt: skip


@torch.no_grad()
def fold_norm(
    region: Candidate, numbers: tuple[Tensor, Tensor, float], like: Tensor, run: Reference
) -> FoldedLayer:
    r"""Compute the weight and bias of a norm that is to do what a region does, and compare.

    .. math:: s x + b = \gamma \, (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta, \qquad
        \gamma = s \sqrt{\sigma^2 + \epsilon}, \; \beta = b + s \mu

    Args:
        region: Norms, scales and sums of these.
        numbers: Mean, variance and eps of the norm, which stay.
        like: A weight whose type and device those have that are made.
        run: Runs the region as it stands.

    """
    assert region.expression is not None  # noqa: S101 (regions are never the identity)
    assert region.axis is not None  # noqa: S101 (norms know their axes)
    op = evaluate(region.expression)
    mean, var = (t.to(torch.float64) for t in numbers[:2])
    factor = op.kernel.flatten()
    weight = factor * (var + numbers[2]).sqrt()
    bias = factor * mean if op.bias is None else op.bias + factor * mean
    generator = torch.Generator().manual_seed(0)
    shape = (3, mean.numel(), *(2,) * (-1 - region.axis))
    sample = torch.randn(shape, dtype=torch.float64, generator=generator).to(mean.device)
    reference, scale = run(sample, None)
    mine = torch.nn.functional.batch_norm(sample, mean, var, weight, bias, eps=numbers[2])
    error = float((mine - reference).abs().max())
    arguments, _ = layer_arguments(op.geometry)
    return FoldedLayer(
        arguments, weight.to(like.dtype), bias.to(like.dtype), error / scale if scale else error
    )


def lowered(op: AffineConv, like: Tensor) -> FoldedLayer:
    """Make the layer of an operator whose numbers are known."""
    arguments, kernel, shift = lower(op)
    bias = None if shift is None else shift.to(like.device, like.dtype)
    return FoldedLayer(arguments, _formatted(kernel.to(like.device, like.dtype), like), bias, 0.0)


@torch.no_grad()
def fold_hosted(
    region: Candidate, dtype: torch.dtype,
    layer: Callable[[Tensor, Tensor | None], Tensor],
    reference: Callable[[], tuple[Tensor, float]], template: nn.Module | None = None,
) -> FoldedLayer:  # fmt: skip
    """Fold scales into a layer that only it itself can run, and compare by running it.

    Args:
        region: The region.
        dtype: What the layer's numbers are stored as.
        layer: Runs the layer on a float64 sample, with other rows of weights and another bias.
        reference: Runs the region on the same sample as it stands.
        template: The layer, where it is to be copied.

    """
    assert region.expression is not None  # noqa: S101 (regions are never the identity)
    op = evaluate(region.expression)
    arguments, _ = layer_arguments(op.geometry)
    expected, scale = reference()
    error = float((layer(op.kernel, op.bias) - expected).abs().max())
    return FoldedLayer(
        arguments, op.kernel.to(dtype), None if op.bias is None else op.bias.to(dtype),
        error / scale if scale else error, template,
    )  # fmt: skip


def probe_input(region: Candidate, device: torch.device) -> Tensor:
    """Make a random input, just large enough to have an interior and every border."""
    assert region.expression is not None  # noqa: S101 (regions are never the identity)
    geometry = region.expression.geometry
    spatial = [
        max(taps[-1] - taps[0] + 1, -extent) + (step - 1)
        for taps, extent, step in zip(
            geometry.offsets, geometry.extent, geometry.stride, strict=True
        )
    ]
    small = geometry.weights * math.prod(spatial) < SLICE
    batch = 4 if geometry.dims == 0 else 2 if small else 1
    if small:
        spatial = [size + step for size, step in zip(spatial, geometry.stride, strict=True)]
    if isinstance(region.source, Padded):
        # A border is reflected from elements further in.
        spatial = [max(n, *pads) + 1 for n, pads in zip(spatial, region.source.pads, strict=True)]
    shape = (batch, geometry.in_channels, *spatial)
    count = math.prod(shape)
    return _noise(1 << count.bit_length())[:count].reshape(shape).to(device, copy=True)


@lru_cache(maxsize=32)
def _noise(count: int) -> Tensor:
    """Random numbers, the same for every region."""
    return torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _row_slices(geometry: Geometry) -> list[tuple[int, int] | None]:
    """Ranges of output channels that fit the cache; None is all of them."""
    per_row = max(1, geometry.weights // geometry.out_channels)
    step = max(1, SLICE // per_row)
    if geometry.groups > 1 or step >= geometry.out_channels:
        return [None]
    count = geometry.out_channels
    return [(k, min(k + step, count)) for k in range(0, count, step)]


def _lower_rows(
    expression: Expression, full: Geometry, rows: tuple[int, int] | None
) -> tuple[Tensor, Tensor | None]:
    op: AffineConv = evaluate(expression, rows).in_dims(full.dims)
    _, kernel, shift = lower(op)
    return kernel, shift


def _worse(worst: float, difference: Tensor) -> float:
    value = float(difference)
    return value if value != value or value > worst else worst  # noqa: PLR0124 (NaN stays)


def _formatted(weight: Tensor, like: Tensor) -> Tensor:
    """Keep the memory format (channels_last) of the layer that is replaced."""
    if weight.dim() != like.dim() or weight.dim() not in _CHANNELS_LAST:
        return weight
    last = _CHANNELS_LAST[weight.dim()]
    if like.is_contiguous(memory_format=last) and not like.is_contiguous():
        return weight.contiguous(memory_format=last)
    return weight


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
