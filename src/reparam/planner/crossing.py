"""What a scale and shift per channel becomes on the other side of an operation.

It is written down as *channels*: for each channel of a value the channel of the operation that acts
on it there, or None where nothing does.
"""

from __future__ import annotations

from collections.abc import Sequence

from reparam.program import Affine, Alias, Layout, Node, Padded, Routed

_SMALLEST = 2.0**-6
"""Factors to divide by: what is divided grows no more than that, and half precision holds it."""

_LARGEST = 2.0**12
"""What is added before a scale, at the most, so that half precision keeps the values beside it."""

Channels = tuple[int | None, ...]


def spreads(node: Node) -> bool:
    """Whether each element that a node returns is a weighted mean of one channel's elements."""
    return isinstance(node, Padded | Layout | Alias) or averages(node)


def averages(node: Node) -> bool:
    """Whether an operator is an average: its weights sum to one, and no padding is among them."""
    if not isinstance(node, Affine) or node.stored or not node.is_convolution:
        return False
    geometry = node.leaf.geometry
    return geometry.groups == geometry.in_channels == geometry.out_channels and all(
        taps[0] >= 0 and taps[-1] + extent < 0
        for taps, extent in zip(geometry.offsets, geometry.extent, strict=True)
    )


def keeps_order(node: Affine) -> bool:
    """Whether an operation turns no order around: none of its factors is negative."""
    return bool((node.leaf.load(None).kernel >= 0).all())


def can_divide(node: Affine) -> bool:
    """Whether values can be divided by the factors of an operation, none of which is too small."""
    if node.moved is not None and node.moved.inverse:
        return False
    return bool((node.leaf.load(None).kernel.abs() >= _SMALLEST).all())


def can_pass_shift(node: Affine, shift: Affine) -> bool:
    r"""Whether :math:`s x + b = s (x + b / s)` for a scale and a shift, with moderate numbers."""
    if node.leaf.geometry.bias or not shift.leaf.geometry.bias or shift.is_norm:
        return False
    factors, added = node.leaf.load(None).kernel, shift.leaf.load(None)
    if added.bias is None or not bool((added.kernel == 1).all()) or not bool(factors.all()):
        return False
    return bool((added.bias / factors.flatten()).abs().max() <= _LARGEST)


def ahead_of(routed: Routed, channels: Channels, width: int) -> Channels | None:
    """Channels on the input of an operation that is ``width`` wide, for those on what it returns.

    None where one of its channels would have to be two of the operation's at once, or where the
    operation has other channels: one number for all is spread over them only in a sum.
    """
    if len(channels) != len(routed.origins):
        return None
    found: dict[int, int | None] = {}
    for channel, origins in zip(channels, routed.origins, strict=True):
        for origin in origins:
            if found.setdefault(origin, channel) != channel:
                return None
    return tuple(found.get(origin) for origin in range(width))


def after(routed: Routed, channels: Channels) -> Channels | None:
    """Channels on what an operation returns, for those on its input; None as for the other way."""
    if any(origin >= len(channels) for origins in routed.origins for origin in origins):
        return None
    found: list[int | None] = []
    for origins in routed.origins:
        several = {channels[origin] for origin in origins}
        if len(several) != 1:
            return None
        found += several
    return tuple(found)


def are_parts(readers: Sequence[Node]) -> bool:
    """Whether the readers of one value read different channels of it."""
    seen: set[int] = set()
    for reader in readers:
        if not isinstance(reader, Routed):
            return False
        own = {origin for origins in reader.origins for origin in origins}
        if own & seen:
            return False
        seen |= own
    return True
