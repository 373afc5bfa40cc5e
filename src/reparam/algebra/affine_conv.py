r"""A convolution as a value: the operator that everything in this package is made of."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from reparam.algebra.direct import flat_pads
from reparam.algebra.geometry import Geometry, compose, parallel
from reparam.errors import InexactError

_Index = slice | int | Tensor


@dataclass(frozen=True, eq=False)
class AffineConv:
    r"""An affine convolution over 0 to 3 spatial dimensions, as an immutable value.

    .. math:: y[o, p] = \sum_{i, t} K[o, i, t]\, x[i, s p + t] + b[o]

    with ``x`` zero outside its extent. ``a + b`` is the operator of two parallel branches and
    ``a @ b`` that of ``b`` followed by ``a``; both raise where the result would not be exact.
    Arithmetic is float64 and differentiable in the kernels and biases.

    Attributes:
        geometry: Channels, groups, offsets, stride and extent.
        kernel: Shape ``(O, I / groups, taps per dimension...)``, float64.
        bias: Shape ``(O,)``, float64, or None where there is none.

    Raises:
        InexactError: A tensor does not have the shape that the geometry states, or is complex.

    Source: Ding et al., RepVGG (arXiv 2101.03697), section 3.3, and Diverse Branch Block
    (arXiv 2103.13425), section 3.2, whose six transforms are the two operations here.

    >>> import torch
    >>> from reparam import algebra
    >>> dense = algebra.conv(torch.ones(4, 4, 3, 3), padding=1)
    >>> both = dense + algebra.identity(4, dims=2)
    >>> both.kernel[0, :, 1, 1].tolist()
    [2.0, 1.0, 1.0, 1.0]

    """

    geometry: Geometry
    kernel: Tensor
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the shapes and move the numbers to float64."""
        if self.kernel.is_complex():
            raise InexactError(
                f"a complex kernel ({self.kernel.dtype}) is not supported; needed a real one"
            )
        if tuple(self.kernel.shape) != self.geometry.kernel_shape:
            raise InexactError(
                f"kernel has shape {tuple(self.kernel.shape)}, "
                f"needed {self.geometry.kernel_shape} for {self.geometry}"
            )
        if (self.bias is not None) != self.geometry.bias:
            object.__setattr__(self, "geometry", replace(self.geometry, bias=self.bias is not None))
        if self.bias is not None and tuple(self.bias.shape) != (self.geometry.out_channels,):
            raise InexactError(
                f"bias has shape {tuple(self.bias.shape)}, needed ({self.geometry.out_channels},)"
            )
        object.__setattr__(self, "kernel", self.kernel.to(torch.float64))
        if self.bias is not None:
            object.__setattr__(self, "bias", self.bias.to(torch.float64))

    # ------------------------------------------------------------------ the two operations

    def __add__(self, other: AffineConv) -> AffineConv:
        """Add a parallel branch: ``(a + b)(x) = a(x) + b(x)``."""
        if not isinstance(other, AffineConv):
            return NotImplemented
        geometry = parallel(self.geometry, other.geometry)
        # The operand that already has the result's layout is the base, so only one is embedded.
        base, extra = (
            (self, other) if other._fits(geometry) <= self._fits(geometry) else (other, self)
        )
        kernel = base.regroup(geometry.groups)._embed(geometry)
        if kernel is base.kernel:
            kernel = kernel.clone()
        total = AffineConv(geometry, kernel, base.bias)
        return total._add_in_place(extra)

    def _add_in_place(self, other: AffineConv) -> AffineConv:
        """Add a branch that fits this operator's grid into its own kernel."""
        addend = other.regroup(self.geometry.groups)
        where = _positions(self.geometry, addend.geometry)
        self.kernel[where] += addend.kernel
        return AffineConv(self.geometry, self.kernel, _add_optional(self.bias, other.bias))

    def absorb(self, other: AffineConv) -> AffineConv:
        """Add a branch as ``+`` does, reusing the memory of this operator where the grids allow.

        Only for an operator that nobody else holds: its kernel may be changed.
        """
        geometry = parallel(self.geometry, other.geometry)
        same = geometry.offsets == self.geometry.offsets and geometry.groups == self.geometry.groups
        return self._add_in_place(other) if same else self + other

    def absorb_channels(self, diagonal: AffineConv, rows: tuple[int, int]) -> AffineConv:
        """Add the rows of a per-channel branch, as :meth:`absorb` of its ``rows`` would."""
        start, stop = rows
        inputs = self.geometry.in_channels
        branch = Geometry.pointwise(inputs, stop - start, dims=self.geometry.dims)
        geometry = parallel(self.geometry, branch)
        if geometry.offsets != self.geometry.offsets or self.geometry.groups != 1:
            return self.absorb(diagonal.rows(start, stop))
        taps = self.kernel[_positions(self.geometry, branch)]
        taps.view(stop - start, inputs).diagonal(start).add_(diagonal.kernel[start:stop].flatten())
        bias = None if diagonal.bias is None else diagonal.bias[start:stop]
        return AffineConv(self.geometry, self.kernel, _add_optional(self.bias, bias))

    def __matmul__(self, other: AffineConv) -> AffineConv:
        """Put this operator after another: ``(a @ b)(x) = a(b(x))``."""
        if not isinstance(other, AffineConv):
            return NotImplemented
        geometry = compose(self.geometry, other.geometry)
        if self.geometry.is_diagonal:
            kernel = self.kernel.reshape(-1, *(1,) * (other.kernel.dim() - 1)) * other.kernel
        elif other.geometry.is_diagonal:
            kernel = self.kernel * _per_input(other.kernel, self.geometry)
        else:
            kernel = self._compose_kernels(other, geometry)
        bias = None if other.bias is None else self._sum_taps_with(other.bias)
        return AffineConv(geometry, kernel, _add_optional(bias, self.bias))

    def __mul__(self, factor: float) -> AffineConv:
        """Scale the output by a number."""
        bias = None if self.bias is None else self.bias * factor
        return AffineConv(self.geometry, self.kernel * factor, bias)

    __rmul__ = __mul__

    def __neg__(self) -> AffineConv:
        """Negate the output."""
        return self * -1.0

    def __sub__(self, other: AffineConv) -> AffineConv:
        """Subtract a parallel branch."""
        return self + -other

    # ------------------------------------------------------------------ application

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the operator by its definition, tap by tap: the reference semantics.

        Args:
            x: Shape ``(N, I, *spatial)``; without spatial dimensions ``(..., I)``.

        Returns:
            Shape ``(N, O, *output_size)``, or ``(..., O)``, in the type of ``x`` promoted with
            float64.

        """
        geometry = self.geometry
        if geometry.dims == 0:
            y = x.to(self.kernel.dtype) @ self.regroup(1).kernel.T
            return y if self.bias is None else y + self.bias
        size = tuple(x.shape[2:])
        padded = pad(x.to(self.kernel.dtype), flat_pads(geometry.reach(size)))
        grouped = padded.unflatten(1, (geometry.groups, -1))
        kernel = self.kernel.unflatten(0, (geometry.groups, -1)).flatten(3)
        y = torch.zeros((), dtype=self.kernel.dtype, device=x.device)
        for weight, window in zip(kernel.unbind(3), geometry.windows(size), strict=True):
            read = grouped[(slice(None), slice(None), slice(None), *window)]
            y = y + torch.einsum("goi,ngi...->ngo...", weight, read).flatten(1, 2)
        return y if self.bias is None else y + self.bias.view(-1, *(1,) * geometry.dims)

    # ------------------------------------------------------------------ other forms of the same map

    def in_dims(self, dims: int) -> AffineConv:
        """The same pointwise map over another number of spatial dimensions."""
        if dims == self.geometry.dims:
            return self
        geometry = self.geometry.in_dims(dims)
        return AffineConv(geometry, self.kernel.reshape(geometry.kernel_shape), self.bias)

    def regroup(self, groups: int) -> AffineConv:
        """Write the same map with fewer groups: blocks on the diagonal, zeros elsewhere.

        Raises:
            InexactError: ``groups`` does not divide the present number of groups.

        """
        have = self.geometry.groups
        if groups == have:
            return self
        if have % groups:
            raise InexactError(f"{have} groups cannot be written as {groups}; needed a divisor")
        ratio = have // groups
        support = self.kernel.shape[2:]
        blocks = self.kernel.unflatten(0, (groups, ratio, -1))
        _, _, rows, columns = blocks.shape[:4]
        wide = blocks.new_zeros(groups, ratio, rows, ratio, columns, *support)
        # Move the diagonal of the two block axes to the end so that one assignment fills it.
        wide.diagonal(dim1=1, dim2=3).copy_(blocks.movedim(1, -1))
        geometry = replace(self.geometry, groups=groups)
        return AffineConv(geometry, wide.reshape(geometry.kernel_shape), self.bias)

    def split_groups(self) -> AffineConv:
        """Write the same map with as many groups as the zeros of its kernel allow."""
        channels = math.gcd(self.geometry.in_channels, self.geometry.out_channels)
        dense = self.regroup(1)
        for groups in range(channels, self.geometry.groups, -1):
            if channels % groups:
                continue
            geometry = replace(self.geometry, groups=groups)
            blocks = dense.kernel.unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
            inner = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)
            if torch.count_nonzero(inner) == torch.count_nonzero(dense.kernel):
                return AffineConv(geometry, inner.reshape(geometry.kernel_shape), self.bias)
        return self

    def trim(self) -> AffineConv:
        """Drop the outermost and inner offsets whose taps are all zero (the map stays the same)."""
        geometry, kernel = self.geometry, self.kernel
        for dim, taps in enumerate(geometry.offsets):
            others = [axis for axis in range(kernel.dim()) if axis != dim + 2]
            used = kernel.detach().ne(0).any(dim=others) if others else kernel.detach().ne(0)
            keep = [k for k in range(len(taps)) if used[k]] or [0]
            index = torch.tensor(keep, device=kernel.device)
            kernel = kernel.index_select(dim + 2, index)
            offsets = list(geometry.offsets)
            offsets[dim] = tuple(taps[k] for k in keep)
            geometry = replace(geometry, offsets=tuple(offsets))
        return AffineConv(geometry, kernel, self.bias)

    def rows(self, start: int, stop: int) -> AffineConv:
        """Restrict to the output channels ``start`` to ``stop``, as a map without groups."""
        geometry = self.geometry
        kernel = self.kernel[start:stop]
        if geometry.groups > 1:
            wide = kernel.new_zeros(stop - start, geometry.in_channels, *kernel.shape[2:])
            width = kernel.shape[1]
            group = torch.arange(start, stop, device=kernel.device) // (
                geometry.out_channels // geometry.groups
            )
            columns = group[:, None] * width + torch.arange(width, device=kernel.device)
            index = columns.reshape(*columns.shape, *(1,) * geometry.dims).expand_as(kernel)
            kernel = wide.scatter(1, index, kernel)
        bias = None if self.bias is None else self.bias[start:stop]
        return AffineConv(replace(geometry, out_channels=stop - start, groups=1), kernel, bias)

    def isclose(self, other: AffineConv, *, rtol: float = 1e-12, atol: float = 0.0) -> bool:
        """Whether two operators are the same map up to rounding.

        ``rtol`` is relative to the largest weight of either, ``atol`` absolute. Operators of
        another stride, extent, or number of channels or dimensions are never close.
        """
        try:
            geometry = parallel(self.geometry, other.geometry)
        except InexactError:
            return False
        left, right = (
            op.regroup(geometry.groups)._embed(geometry)  # noqa: SLF001 (this very class)
            for op in (self, other)
        )
        return _close(left, right, rtol, atol) and _close(
            self._bias_or_zero(), other._bias_or_zero(), rtol, atol
        )

    # ------------------------------------------------------------------ internals

    def _bias_or_zero(self) -> Tensor:
        return self.kernel.new_zeros(self.geometry.out_channels) if self.bias is None else self.bias

    def _fits(self, geometry: Geometry) -> int:
        """Rank how nearly this operator has the layout of a result it is part of."""
        return 2 * (self.geometry.groups == geometry.groups) + (
            self.geometry.offsets == geometry.offsets
        )

    def _embed(self, geometry: Geometry) -> Tensor:
        """Write the kernel on a larger grid of offsets; on an equal one it is the kernel itself."""
        if self.geometry.offsets == geometry.offsets:
            return self.kernel
        kernel = self.kernel.new_zeros(geometry.kernel_shape)
        kernel[_positions(geometry, self.geometry)] = self.kernel
        return kernel

    def _compose_kernels(self, inner: AffineConv, geometry: Geometry) -> Tensor:
        """Convolve the two kernels: sum over the middle channels, taps landing on new offsets."""
        groups = geometry.groups
        # Groups first, then rows, then the middle channels, then taps.
        far = _flat_taps(self.regroup(groups).kernel).unflatten(0, (groups, -1))
        near = _flat_taps(inner.regroup(groups).kernel).unflatten(0, (groups, -1))
        width, taps = near.shape[2], near.shape[3]
        near = near.flatten(2)
        kernel = near.new_zeros(groups, far.shape[1], width, geometry.taps)
        landing = _landing(self.geometry, inner.geometry, geometry)
        for tap, targets in enumerate(landing):
            product = torch.bmm(far[..., tap], near).unflatten(2, (width, taps))
            index = torch.tensor(targets, device=kernel.device)
            kernel.index_add_(3, index, product)
        shaped: Tensor = kernel.reshape(geometry.kernel_shape)
        return shaped

    def _sum_taps_with(self, channels: Tensor) -> Tensor:
        """Apply the kernel to a constant input of one value per channel."""
        groups = self.geometry.groups
        blocks = _flat_taps(self.kernel).sum(2).unflatten(0, (groups, -1))
        total: Tensor = torch.einsum("goi,gi->go", blocks, channels.view(groups, -1))
        return total.flatten()


def _flat_taps(kernel: Tensor) -> Tensor:
    """View a kernel as ``(O, I / groups, taps)``, for any number of dimensions."""
    return kernel.reshape(*kernel.shape[:2], -1)


def _add_optional(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right


def _close(left: Tensor, right: Tensor, rtol: float, atol: float) -> bool:
    scale = max(left.abs().max().item(), right.abs().max().item())
    return bool((left - right).abs().max().item() <= atol + rtol * scale)


def _per_input(scale: Tensor, geometry: Geometry) -> Tensor:
    """Shape a value per input channel so that it multiplies the grouped kernel of ``geometry``."""
    per_group = scale.reshape(geometry.groups, 1, -1)
    rows = geometry.out_channels // geometry.groups
    spread = per_group.expand(-1, rows, -1).reshape(geometry.out_channels, -1)
    return spread.reshape(*spread.shape, *(1,) * geometry.dims)


def _positions(outer: Geometry, inner: Geometry) -> tuple[_Index, ...]:
    """Index the taps of ``inner`` in a kernel tensor that has the offsets of ``outer``."""
    places = inner.places_in(outer)
    if places is not None:
        return (slice(None), slice(None), *places)
    found = [
        [taps.index(t) for t in part]
        for taps, part in zip(outer.offsets, inner.offsets, strict=True)
    ]
    grids = torch.meshgrid(*(torch.tensor(p) for p in found), indexing="ij")
    return (slice(None), slice(None), *grids)


def _landing(outer: Geometry, inner: Geometry, result: Geometry) -> list[list[int]]:
    """For every tap of ``outer`` the flat positions in ``result`` of the taps of ``inner``."""
    index = {tap: k for k, tap in enumerate(itertools.product(*result.offsets))}
    near = list(itertools.product(*inner.offsets))
    return [
        [
            index[tuple(s * a + b for s, a, b in zip(inner.stride, far, tap, strict=True))]
            for tap in near
        ]
        for far in itertools.product(*outer.offsets)
    ]
