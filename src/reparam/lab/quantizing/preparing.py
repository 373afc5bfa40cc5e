"""What is done to a fused net in float before its engine's quantizer sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from reparam.errors import InputError
from reparam.fusing import plan
from reparam.lab.quantizing.diagnosing import Diagnosis
from reparam.lab.quantizing.diagnosing import diagnose as diagnose_layers
from reparam.lab.quantizing.equalizing import Equalisation
from reparam.lab.quantizing.equalizing import equalize as equalize_channels
from reparam.lab.quantizing.simulation import Calibrated, observe
from reparam.verifying import verify

if TYPE_CHECKING:
    from reparam.lab.quantizing.arithmetic import Arithmetic
    from reparam.lab.quantizing.samples import Samples


@dataclass(frozen=True, eq=False)
class Prepared:
    """A net with its float remedies applied."""

    model: nn.Module
    equalised: tuple[Equalisation, ...]
    diagnosis: Diagnosis | None
    keep_float: tuple[str, ...]
    seen: Calibrated


def check_fused(model: nn.Module, held: Samples) -> None:
    """Raise unless there is nothing left to fold.

    Raises:
        InputError: There is; the message says how much, and what to do.
    """
    regions = plan(model, held.first(2)).regions
    if regions:
        first = regions[0]
        more = f", and {len(regions) - 1} more places" if len(regions) > 1 else ""
        raise InputError(
            f"{type(model).__name__} is not fused: {first.what} at {first.where!r} can become "
            f"{first.into}{more}. Rounding each branch by itself costs accuracy and time; fold it "
            "first, with reparam.fuse(model) or the command reparam fuse"
        )


def prepare(
    fused: nn.Module,
    held: Samples,
    keep_float: int | Collection[str],
    arithmetic: Arithmetic,
    *,
    equalize: bool,
    diagnose: bool,
    tell: Callable[[float, float, str], object],
) -> Prepared:
    """Equalise, diagnose, and choose what stays in float, in that order."""
    model, seen = fused, Calibrated(held, observe(fused, held))
    equalised: tuple[Equalisation, ...] = ()
    if equalize:
        model, equalised = equalize_channels(fused, seen)
        verify(fused, model, (held.first(8),)).raise_if_different()
        seen = Calibrated(held, observe(model, held))
    traffic = seen.traffic
    counted = isinstance(keep_float, int)
    diagnosis = None
    if diagnose or (counted and keep_float):
        diagnosis = diagnose_layers(model, seen, arithmetic=arithmetic, progress=tell)
    if isinstance(keep_float, int):
        if not 0 <= keep_float < len(traffic):
            raise InputError(
                f"keep_float is {keep_float}; of {len(traffic)} layers from 0 to "
                f"{len(traffic) - 1} can stay in float, for at least one has to be quantized"
            )
        worst = {layer.name for layer in diagnosis.worst(keep_float)} if diagnosis else set()
    else:
        worst = _known(keep_float, traffic)
    return Prepared(model, equalised, diagnosis, tuple(n for n in traffic if n in worst), seen)


def _known(names: Collection[str], layers: Collection[str]) -> set[str]:
    if isinstance(names, str):
        names = [names]
    unknown = sorted(set(names) - set(layers))
    if unknown:
        raise InputError(
            f"keep_float names {', '.join(map(repr, unknown))}, which is no layer that is "
            f"quantized; these are: {', '.join(layers)}"
        )
    if len(set(names)) == len(layers):
        raise InputError("keep_float names every layer, so that nothing would be quantized")
    return set(names)
