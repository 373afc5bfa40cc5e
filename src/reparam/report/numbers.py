"""How numbers are written for a reader: few digits, units beside them, no false precision."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTHING = 150.0
"""Decibels above which an error is no more than single precision's own: the two are equal."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927), which behaves near 0 and 1.

    >>> low, high = wilson_interval(355, 360)
    >>> round(low, 3), round(high, 3)
    (0.968, 0.994)
    """
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def significant(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits, never in exponent form.

    >>> significant(0.012345), significant(9.876), significant(12345.0)
    ('0.0123', '9.88', '12,345')
    """
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def tick(value: float) -> str:
    """A value on an axis.

    >>> tick(1200.0), tick(0.5), tick(1.25)
    ('1,200', '0.5', '1.25')
    """
    return f"{value:,.0f}" if value == int(value) else significant(value).rstrip("0")


def milliseconds(value: float) -> str:
    """A duration given in milliseconds.

    >>> milliseconds(9.876), milliseconds(134.2)
    ('9.88 ms', '134 ms')
    """
    return f"{significant(value)} ms"


def kibibytes(value: int) -> str:
    """A size given in bytes.

    >>> kibibytes(512), kibibytes(131072), kibibytes(3 * 2**20)
    ('512 B', '128 KiB', '3.00 MiB')
    """
    if value < 1024:
        return f"{value} B"
    if value < 1024 * 1024:
        return f"{significant(value / 1024)} KiB"
    return f"{significant(value / 1024 / 1024)} MiB"


def count(value: int | None) -> str:
    """A count; from ten thousand on in thousands, millions, or (short scale) billions.

    What nobody counted is a dash.

    >>> count(22), count(4321), count(51_820_000), count(1_400_000_000), count(None)
    ('22', '4,321', '51.8 M', '1.40 B', '–')
    """
    if value is None:
        return "–"
    for least, size, unit in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{significant(value / size)} {unit}"
    return f"{value:,}"


def percent(share: float) -> str:
    """A share as a percentage with one decimal.

    >>> percent(0.9861)
    '98.6 %'
    """
    return f"{100 * share:.1f} %"


def ratio(value: float) -> str:
    """A factor.

    >>> ratio(1.634), ratio(12.3)
    ('1.63×', '12.3×')
    """
    return f"{significant(value)}×"


def times(value: float) -> str:
    """How many of one thing another is, without digits that say nothing.

    >>> times(4.0), times(1.5)
    ('4×', '1.5×')
    """
    return f"{value:.3g}×"


def plain(value: float) -> str:
    """A number as it is.

    >>> plain(1437), plain(41.5)
    ('1,437', '41.5')
    """
    return f"{value:,}"


def plural(number: int, noun: str) -> str:
    """A number of things.

    >>> plural(1, "thread"), plural(4, "thread")
    ('1 thread', '4 threads')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def of(pair: tuple[int, int]) -> str:
    """A part of a whole.

    >>> of((356, 360))
    '356 of 360'
    """
    return f"{pair[0]:,} of {pair[1]:,}"


def change(pair: tuple[int, int]) -> str:
    """A count before and after.

    >>> change((32, 16)), change((10, 10))
    ('32 → 16', '10')
    """
    before, after = pair
    return f"{before:,} → {after:,}" if before != after else f"{after:,}"


def span(values: Sequence[float]) -> str:
    """The least and the largest of some numbers, once where they read the same.

    >>> span([0.1, 0.25, 0.2]), span([0.5])
    ('0.10 to 0.25', '0.50')
    """
    low, high = (f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def error(value: float) -> str:
    """A small difference, in powers of ten.

    >>> error(0.0), error(1.234e-6)
    ('0', '1.2 × 10⁻⁶')
    """
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def decibels(value: float) -> str:
    """A ratio of signal to noise.

    >>> decibels(31.24), decibels(200.0)
    ('31.2 dB', 'no error')
    """
    return "no error" if value >= NOTHING else f"{value:.1f} dB"


def noise_share(value: float) -> str:
    """The same ratio as noise in per cent of the signal, by amplitude.

    >>> noise_share(20.0), noise_share(40.0)
    ('10 %', '1.0 %')
    """
    return f"{significant(100 * 10 ** (-value / 20), 2)} %"


def typeset(words: str) -> str:
    """Plain ASCII as the planner writes it, with the signs a reader expects.

    >>> typeset("3x3 conv 16->32, stride 2")
    '3×3 conv 16 → 32, stride 2'
    """
    return re.sub(r"(?<=\d)x(?=\d)", "×", words).replace("->", " → ")


def unbroken(shown: str) -> str:
    r"""A number that a line may end in before a bracket or an arrow alone.

    >>> unbroken("80.0 % → 70.0 %")
    '80.0\xa0% →\xa070.0\xa0%'
    """
    return re.sub(r" (?![(→])", "\xa0", shown)


def nice_ticks(maximum: float, wanted: int = 5) -> list[float]:
    """Round values from zero up to at least `maximum`, about `wanted` of them.

    >>> nice_ticks(9.3)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if maximum <= 0:
        return [0.0, 1.0]
    raw = maximum / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    steps = math.ceil(maximum / step - 1e-9)
    return [round(step * index, 12) for index in range(steps + 1)]
