"""Writing HTML and SVG elements: every text and every attribute is escaped here."""

from __future__ import annotations

import re
from html import escape

__all__ = ["element", "layer_label", "text", "typeset"]


def text(value: object) -> str:
    """`value` as text that is safe inside an element."""
    return escape(str(value), quote=False)


def element(name: str, *children: str, **attributes: object) -> str:
    """An element with `children`, which are markup already.

    An underscore in an attribute's name is written as a hyphen, a trailing one is dropped (for
    ``class_`` and ``for_``); None leaves the attribute out; floats are rounded to 1/1000.

    >>> element("text", text("a < b"), x=1.23456, class_="tick", text_anchor="end")
    '<text x="1.235" class="tick" text-anchor="end">a &lt; b</text>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return escape(str(value))


def layer_label(name: str, what: str, *, room: int) -> str:
    """The name of a layer and, where there is room for both, what it is.

    A name that is too long loses its beginning: layers of one net differ at the end.

    Args:
        name: path of the layer.
        what: what it is.
        room: characters of a name beside which `what` can stand.
    """
    return element("code", element("bdi", text(name))) + (
        element("span", text(what), class_="detail") if len(name) <= room else ""
    )


def typeset(words: str) -> str:
    """Plain ASCII as the planner writes it, with the signs a reader expects.

    >>> typeset("3x3 conv 16->32, stride 2")
    '3×3 conv 16 → 32, stride 2'
    """
    return re.sub(r"(?<=\d)x(?=\d)", "×", words).replace("->", " → ")
