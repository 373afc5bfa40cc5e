"""Places of a model that are alike, as one: what differs in numbers of their names and sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

# Not the 2 of conv2d or the first 3 of 3x3, which are a part of a word.
_NUMBER = re.compile(r"(\d+)(?![A-Za-z0-9])")
_NUMBERED = re.compile(r"_\d+$")
"""How exporters tell apart what would have one name, but for the first of them."""
_CHANNELS = re.compile(r" \d+->\d+")

Place = TypeVar("Place")


def alike(
    places: Iterable[Place], name: Callable[[Place], str], rest: Callable[[Place], Hashable]
) -> list[list[Place]]:
    """Group what has names that differ in numbers alone, and the same rest; in order.

    >>> names = ["stages.0.mixer", "head", "stages.1.mixer"]
    >>> alike(names, str, len)
    [['stages.0.mixer', 'stages.1.mixer'], ['head']]

    """
    groups: dict[Hashable, list[Place]] = {}
    for place in places:
        alike_in = _NUMBER.sub("*", _numbered(name(place))), rest(place)
        groups.setdefault(alike_in, []).append(place)
    return list(groups.values())


def common_name(names: Sequence[str]) -> str:
    """Write names that differ in numbers alone as one, with a star for what differs.

    >>> common_name(["stages.0.blocks.1", "stages.2.blocks.1"])
    'stages.*.blocks.1'

    """
    if any(map(_NUMBERED.search, names)):
        names = [*map(_numbered, names)] if len(set(names)) > 1 else names
    parts = zip(*map(_NUMBER.split, names), strict=True)
    return "".join(each[0] if len(set(each)) == 1 else "*" for each in parts)


def _numbered(name: str) -> str:
    return name if _NUMBERED.search(name) else f"{name}_0"


def without_channels(text: str) -> str:
    """Leave the channels out of a description."""
    return _CHANNELS.sub("", text)


def common_text(texts: Sequence[str]) -> str:
    """Write descriptions that differ in channels alone as one, without them if they do.

    >>> common_text(["3x3 conv 8->8, stride 2", "3x3 conv 8->16, stride 2"])
    '3x3 conv, stride 2'

    """
    return texts[0] if len(set(texts)) == 1 else without_channels(texts[0])
