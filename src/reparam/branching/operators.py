"""What a branch computes, as a value of the algebra, and its layers in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from reparam import algebra
from reparam.algebra import AffineConv, Geometry
from reparam.errors import InputError
from reparam.frontends.kinds import AVERAGE_POOLS, ZERO_PADS

Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def conv_operator_geometry(conv: _ConvNd, *, padding: Any = None) -> Geometry:
    """Read the shape of a convolution module, without its numbers.

    One that pads with something else than zeros is read as it acts on its padded input, unless a
    ``padding`` is given.
    """
    own = conv.padding if conv.padding_mode == "zeros" else 0
    return algebra.conv_geometry(
        (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size),
        stride=conv.stride,
        padding=own if padding is None else padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
    )


def conv_operator(conv: _ConvNd) -> AffineConv:
    """Read a convolution module, in float64; see :func:`conv_operator_geometry`."""
    return AffineConv(conv_operator_geometry(conv), conv.weight, conv.bias)


def norm_operator(norm: _BatchNorm, dims: int) -> AffineConv:
    """Read a batch norm with its running statistics, in float64.

    Raises:
        InputError: It keeps no running statistics.

    """
    if norm.running_mean is None or norm.running_var is None:
        raise InputError(f"{norm} keeps no running statistics; needed them to fold it")
    return algebra.batch_norm(
        norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps, dims=dims
    )


def layers(branch: nn.Module) -> Iterator[nn.Module]:
    """The layers of a branch in the order in which they run; nested sequences are opened."""
    if isinstance(branch, nn.Sequential):
        for child in branch:
            yield from layers(child)
    elif not isinstance(branch, nn.Identity):
        yield branch


def norms(branch: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a branch, first to last."""
    return [layer for layer in layers(branch) if isinstance(layer, _BatchNorm)]


def branch_operator(branch: nn.Module, channels: int, dims: int) -> AffineConv:
    """Compose the layers of a branch, with the running statistics of its batch norms.

    Args:
        branch: A layer, or a sequence of layers.
        channels: Number of input channels.
        dims: Number of spatial dimensions.

    Raises:
        InputError: A layer is not affine, or not one that is known here.
        InexactError: The layers do not compose exactly.

    """
    return _compose(list(layers(branch)), channels, dims)


def operator_before(branch: nn.Module, norm: nn.Module, channels: int, dims: int) -> AffineConv:
    """Compose the layers of a branch that come before one of its batch norms."""
    chain = list(layers(branch))
    return _compose(chain[: chain.index(norm)], channels, dims)


def average_window(layer: Any) -> Window | None:
    """Kernel, stride and padding of an average pooling that weighs every tap alike everywhere."""
    dims = next((k for k, kind in enumerate(AVERAGE_POOLS, 1) if isinstance(layer, kind)), 0)
    if not dims or layer.ceil_mode or getattr(layer, "divisor_override", None):
        return None
    given = (layer.kernel_size, layer.stride, layer.padding)
    kernel, stride, padding = (algebra.per_dim(value, dims) for value in given)
    counted = layer.count_include_pad or not any(padding)
    return (kernel, stride, padding) if counted else None


def _compose(chain: list[nn.Module], channels: int, dims: int) -> AffineConv:
    total = algebra.identity(channels, dims=dims)
    for layer in chain:
        total = _read(layer, total.geometry.out_channels, dims) @ total
    return total


def _read(layer: nn.Module, channels: int, dims: int) -> AffineConv:
    if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd):
        return conv_operator(layer)
    if isinstance(layer, _BatchNorm):
        return norm_operator(layer, dims)
    window = average_window(layer)
    if window is not None:
        return algebra.average_pool(channels, *window)
    if isinstance(layer, ZERO_PADS):
        flat = [int(p) for p in layer.padding]
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        return algebra.zero_pad(channels, tuple(reversed(pairs)))
    raise InputError(
        f"a branch holds {layer}, which is not known to be an affine layer; needed convolutions, "
        f"batch norms with running statistics, average pooling without ceil_mode, and padding"
    )
