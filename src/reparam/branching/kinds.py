"""Kinds of branching: which branches stand beside a convolution. A kind is a small value.

A function looks at the :class:`~reparam.branching.layout.ConvLayout` of a convolution and returns
the *extra* branches by name, or says why there are none. The main branch, a convolution of the
given size, is not its business: it is added, and solved for, by :func:`reparam.branch`. A new kind
is such a function here, under ``@_kind``: commands, tests and messages know it from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from reparam.branching.layout import ConvLayout
from reparam.errors import InputError

Branches = Mapping[str, nn.Module | None]


@dataclass(frozen=True)
class BranchKind:
    """A named way to put branches beside a convolution.

    Attributes:
        name: How the kind is called.
        branches: Function from a layout to the extra branches by name. A value of None is a
            branch that this convolution cannot have. A string instead of a mapping is the reason
            why the convolution is left alone.
        source: Where the kind comes from.

    """

    name: str
    branches: Callable[[ConvLayout], Branches | str]
    source: str = ""


_KINDS: dict[str, BranchKind] = {}


def kinds() -> tuple[str, ...]:
    """Names of the kinds that :func:`reparam.branch` knows.

    >>> kinds()
    ('repvgg', 'acnet', 'dbb', 'replk', 'mobileone')
    """
    return tuple(_KINDS)


def register_kind(kind: BranchKind) -> BranchKind:
    """Make a kind known by its name; returns it.

    A kind need not be registered to be used: :func:`reparam.branch` also takes the value itself.

    Raises:
        InputError: The name is taken by another kind.

    """
    if _KINDS.setdefault(kind.name, kind) is not kind:
        raise InputError(
            f"a kind of branching named {kind.name!r} exists; give this one another name"
        )
    return kind


def resolve_kind(kind: str | BranchKind) -> BranchKind:
    """Look a kind up by its name; a kind is returned as it is.

    Raises:
        InputError: No kind has that name.

    """
    if isinstance(kind, BranchKind):
        return kind
    try:
        return _KINDS[kind]
    except KeyError:
        raise InputError(
            f"no kind of branching is named {kind!r}; known: {', '.join(kinds())}. "
            f"Pass a BranchKind, or make one known with register_kind"
        ) from None


_Branches = Callable[[ConvLayout], Branches | str]


def _kind(name: str, source: str) -> Callable[[_Branches], _Branches]:
    def known(branches: _Branches) -> _Branches:
        register_kind(BranchKind(name, branches, source))
        return branches

    return known


@_kind("repvgg", "Ding et al., RepVGG, arXiv 2101.03697, section 3")
def _repvgg(layout: ConvLayout) -> Branches | str:
    if layout.is_pointwise:
        return "a 1x1 kernel has no smaller one to stand beside it; RepVGG needs a kxk"
    return {
        layout.name("conv", (1,) * layout.dims): layout.pointwise(),
        "identity": layout.identity(),
    }


@_kind("acnet", "Ding et al., ACNet, arXiv 1908.03930, section 3")
def _acnet(layout: ConvLayout) -> Branches | str:
    if sum(k > 1 for k in layout.kernel_size) < 2:
        size = "x".join(map(str, layout.kernel_size))
        return f"a {size} kernel has no cross; ACNet needs two dimensions of more than one tap"
    arms: dict[str, nn.Module | None] = {}
    for dim, taps in enumerate(layout.kernel_size):
        if taps > 1:
            arm = [taps if other == dim else 1 for other in range(layout.dims)]
            arms[layout.name("conv", arm)] = layout.along(dim)
    return arms


@_kind("dbb", "Ding et al., Diverse Branch Block, arXiv 2103.13425")
def _dbb(layout: ConvLayout) -> Branches | str:
    if layout.is_pointwise:
        return "a 1x1 kernel has no smaller one to stand beside it; DBB needs a kxk"
    ones = layout.name("conv", (1,) * layout.dims)
    return {
        ones: layout.pointwise(),
        f"{ones}_{layout.name('conv')}": layout.pointwise_then_kernel(),
        f"{ones}_{layout.name('avg')}": layout.pointwise_then_average(),
    }


@_kind("replk", "Ding et al., RepLKNet, arXiv 2203.06717, section 3.2")
def _replk(layout: ConvLayout) -> Branches | str:
    size = tuple(min(k, 5) for k in layout.kernel_size)
    if size == layout.kernel_size:
        taps = "x".join(map(str, size))
        return f"a {taps} kernel is not larger than the 5x5 that RepLKNet puts beside it"
    start = [(k - m) // 2 for k, m in zip(layout.kernel_size, size, strict=True)]
    return {layout.name("conv", size): layout.window(start, size)}


def mobileone(kernels: int = 4) -> BranchKind:
    """Make the MobileOne kind with a number of kxk branches (``k`` in the paper, 4 in S0).

    Args:
        kernels: Number of branches of the given kernel size, the main one included.

    Raises:
        InputError: ``kernels`` is less than one.

    """
    if kernels < 1:
        raise InputError(f"got kernels={kernels}; MobileOne needs at least one kxk branch")

    def branches(layout: ConvLayout) -> Branches | str:
        found: dict[str, nn.Module | None] = {
            f"{layout.name('conv')}_{index}": layout.kernel() for index in range(1, kernels)
        }
        if not layout.is_pointwise:
            found["scale"] = layout.pointwise()
        found["skip"] = layout.identity()
        if not any(branch is not None for branch in found.values()):
            return "one 1x1 branch that changes the channels or the size has nothing beside it"
        return found

    return BranchKind("mobileone", branches, "Vasu et al., MobileOne, arXiv 2206.04040, section 3")


register_kind(mobileone())
