"""Positions of spatial axes that are kept, as operators that compose with convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from reparam.algebra import AffineConv, Geometry, zero_pad
from reparam.diffing.values import Atom, Form, Map, Operation, Sized, as_map, sum_of
from reparam.errors import InexactError


def is_spatial(form: Form, axis: int) -> bool:
    """Whether an axis is one that the maps of a value, which mix channels, have offsets along."""
    return form.axis == 1 < axis and len(form.shape) in (3, 4, 5)


def crop(index: Sequence[int], shape: tuple[int, ...], axis: int) -> AffineConv | None:
    """The operator that keeps evenly spaced positions of a spatial axis, in their order."""
    step = index[1] - index[0] if len(index) > 1 else 1
    if step < 1 or list(index) != list(range(index[0], index[-1] + 1, step)):
        return None
    dims, channels, dim = len(shape) - 2, shape[1], axis - 2
    extent = (len(index) - 1) * step - shape[axis]
    geometry = Geometry(
        channels, channels, channels,
        offsets=tuple((index[0],) if k == dim else (0,) for k in range(dims)),
        stride=tuple(step if k == dim else 1 for k in range(dims)),
        extent=tuple(extent if k == dim else -1 for k in range(dims)),
    )  # fmt: skip
    return AffineConv(geometry, torch.ones(geometry.kernel_shape))


def in_space(form: Form) -> Form:
    """Write what keeps positions of a spatial axis as crops, which compose with convolutions."""
    if form.axis is None or form.axis < 2 or len(form.shape) not in (3, 4, 5):
        return form
    terms = []
    for atom, m in form.terms:
        kernel = None if isinstance(m, Sized) else m.value.regroup(1).kernel
        if kernel is None or form.bias is not None or not bool((kernel.sum(1) == 1).all()):
            return form
        index = kernel.argmax(1).tolist()
        op = crop(index, atom.shape, form.axis)
        if op is None or int((kernel != 0).sum()) != len(index):
            return form
        terms.append((atom, Map.of(op)))
    return replace(form, axis=1, terms=tuple(terms))


def within_borders(terms: dict[Atom, Map | Sized]) -> dict[Atom, Map | Sized]:
    """Read a value that is also there with a border around it from the inside of that border.

    So a 1x1 branch beside a 3x3 one over reflected borders is a map of what both see.
    """
    for bordered in list(terms):
        if not (isinstance(bordered, Operation) and bordered.kind == "pad"):
            continue
        inner = bordered.args[0].atom
        m = None if inner is None else terms.get(inner)
        if inner is None or m is None:
            continue
        pads = dict[str, Any](bordered.attributes)["pads"]
        missing = len(inner.shape) - 2 - len(pads)
        inside = zero_pad(inner.shape[1], [(0, 0)] * missing + [(-a, -b) for a, b in pads])
        try:
            seen = as_map(m, inner.shape[1]) @ Map.of(inside)
            total = sum_of(terms[bordered], seen, inner.shape[1])
        except InexactError:
            continue
        if total is not None:
            terms = {atom: total if atom is bordered else each for atom, each in terms.items()}
            del terms[inner]
    return terms


def reads_input(geometry: Geometry, shape: tuple[int, ...], dim: int, index: Sequence[int]) -> bool:
    """Whether one of these output positions sees the input at all."""
    if not geometry.dims:
        return True
    step, size = geometry.stride[dim], shape[dim + 2]
    return any(0 <= step * at + tap < size for at in index for tap in geometry.offsets[dim])
