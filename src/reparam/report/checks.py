"""What no run can have measured, refused where a record is made, before a page is half drawn."""

from __future__ import annotations

from reparam.errors import InputError


def need(condition: object, found: str) -> None:
    """Refuse a record.

    Raises:
        InputError: The condition does not hold; `found` says what is there and what is needed.
    """
    if not condition:
        raise InputError(found)


def need_share(name: str, part: int, whole: int) -> None:
    """Refuse more of some images than there are."""
    need(1 <= whole >= part, f"{name} has {part} of {whole} images, which cannot be")


def need_right(name: str, samples: int | None, *counts: int | None) -> None:
    """Refuse more samples that are right than there are."""
    total = "no" if samples is None else samples
    for count in counts:
        fits = count is None or 0 <= count <= (samples or 0)
        need(fits, f"{name} got {count} of {total} samples right, which cannot be")
