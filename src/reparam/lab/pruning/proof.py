"""That a smaller net computes what the given one computes without those channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from reparam.lab.pruning.graph import cut, masked
from reparam.lab.pruning.result import Kept
from reparam.verifying import verify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from reparam.lab.pruning.graph import Group, Removed
    from reparam.verifying import Verdict

_SEED = 0


def compare(
    model: nn.Module,
    smaller: nn.Module,
    groups: Sequence[Group],
    removed: Removed,
    inputs: tuple[Tensor, ...],
) -> Verdict:
    """Compare a smaller net with the given one whose layers read nothing from those channels.

    Raises:
        InputError: The outputs have other shapes.
    """
    return verify(masked(model, groups, removed), smaller, _noisy(inputs))


def sound_groups(
    model: nn.Module, groups: Sequence[Group], inputs: tuple[Tensor, ...], removed: Removed
) -> tuple[list[Group], list[Kept]]:
    """Return the groups of which channels can go, and those where something breaks.

    All together are tried first; only if that fails one after the other. What breaks is, for
    example, a norm over all channels, or a reshape with a number in it.
    """
    if not _breaks(model, groups, inputs, removed):
        return list(groups), []
    sound: list[Group] = []
    kept: list[Kept] = []
    for group in groups:
        # Together with those that are sound: some break only in company.
        together = [*sound, group]
        rest = {member.root: removed[member.root] for member in together}
        why = _breaks(model, together, inputs, rest)
        if why:
            kept.append(Kept(group.root, why))
        else:
            sound = together
    return sound, kept


def _breaks(
    model: nn.Module, groups: Sequence[Group], inputs: tuple[Tensor, ...], removed: Removed
) -> str:
    """Say what goes wrong without those channels; empty if nothing does."""
    try:
        verdict = compare(model, cut(model, inputs, removed), groups, removed, inputs)
    except Exception as error:  # noqa: BLE001 - a net can fail in any way; what matters is that
        return f"without some of its channels the net does not run: {str(error).splitlines()[0]}"
    if verdict.ok:
        return ""
    return (
        f"without some of its channels the net computes something else than with them masked "
        f"(largest difference {verdict.max_abs:.1e})"
    )


def _noisy(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs with noise, for example inputs are often zeros, which prove little."""
    generator = torch.Generator().manual_seed(_SEED)
    return tuple(
        x + torch.randn(x.shape, generator=generator).to(x) if x.is_floating_point() else x
        for x in inputs
    )
