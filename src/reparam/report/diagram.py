"""A block drawn from its branches: what was trained, and what is left of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reparam.report._markup import element, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam.report.results import BlockRecord, BranchRecord

__all__ = ["block_diagram"]

_BOX_WIDTH = 92
_BOX_HEIGHT = 30
_COLUMN = 108
_ROW = 46
_MARGIN = 10


@dataclass(frozen=True)
class _Layout:
    """Where things are, in view-box units (one is a CSS pixel when there is room)."""

    columns: int
    rows: int
    tail: int

    @property
    def width(self) -> float:
        return self.columns * _COLUMN + 2 * _MARGIN

    @property
    def centre(self) -> float:
        return self.width / 2

    @property
    def fork(self) -> float:
        return 44

    @property
    def join(self) -> float:
        return self.fork + 18 + self.rows * _ROW + 8

    @property
    def bottom(self) -> float:
        return self.join + 24 + self.tail * _ROW + 26

    def column(self, index: int) -> float:
        return _MARGIN + (index + 0.5) * _COLUMN


def block_diagram(block: BlockRecord) -> tuple[str, str]:
    """Two drawings of one height: the block in train form, and in deploy form."""
    rows = max(_longest(block.before), _longest(block.after))
    before = _drawing(block.before, block.tail, rows, "train", f"{block.where}, train form")
    after = _drawing(block.after, block.tail, rows, "deploy", f"{block.where}, deploy form")
    return before, after


def _longest(branches: Sequence[BranchRecord]) -> int:
    return max((len(branch.operators) for branch in branches), default=0)


def _drawing(
    branches: Sequence[BranchRecord], tail: Sequence[str], rows: int, role: str, name: str
) -> str:
    layout = _Layout(len(branches), rows, len(tail))
    marks = [
        _label(layout.centre, 14, "input"),
        _wire([(layout.centre, 20), (layout.centre, layout.fork)]),
    ]
    for index, branch in enumerate(branches):
        marks.append(_branch(branch, layout.column(index), layout))
    marks.append(_junction(layout, joined=len(branches) > 1))
    marks.append(_tail(tail, layout))
    return element(
        "svg",
        *marks,
        class_=f"diagram role-{role}",
        viewBox=f"0 0 {layout.width:g} {layout.bottom:g}",
        width=layout.width,
        height=layout.bottom,
        role="img",
        aria_label=_spoken(branches, tail, name),
    )


def _branch(branch: BranchRecord, x: float, layout: _Layout) -> str:
    marks = [
        _wire(
            [
                (layout.centre, layout.fork),
                (x, layout.fork),
                (x, layout.join),
                (layout.centre, layout.join),
            ]
        )
    ]
    # Short branches sit in the middle of the height, so that the wire is seen on both sides.
    top = layout.fork + 18 + (layout.rows - len(branch.operators)) * _ROW / 2
    for index, operator in enumerate(branch.operators):
        marks.append(_box(x, top + index * _ROW, operator))
    return "".join(marks)


def _junction(layout: _Layout, *, joined: bool) -> str:
    wire = _wire([(layout.centre, layout.join), (layout.centre, layout.join + 24)])
    if not joined:
        return wire
    circle = element("circle", cx=layout.centre, cy=layout.join, r=10, class_="sum")
    plus = element(
        "path",
        d=f"M{layout.centre - 5:g} {layout.join:g}h10M{layout.centre:g} {layout.join - 5:g}v10",
        class_="plus",
    )
    return wire + circle + plus


def _tail(tail: Sequence[str], layout: _Layout) -> str:
    y = layout.join + 24
    marks = []
    for operator in tail:
        marks.append(_wire([(layout.centre, y), (layout.centre, y + _ROW)]))
        marks.append(_box(layout.centre, y, operator, plain=True))
        y += _ROW
    marks.append(_wire([(layout.centre, y), (layout.centre, y + 6)]))
    marks.append(_label(layout.centre, y + 20, "output"))
    return "".join(marks)


def _box(x: float, y: float, label: str, *, plain: bool = False) -> str:
    kind = "plain" if plain else "norm" if label.upper().startswith("BN") else "conv"
    rect = element(
        "rect",
        x=x - _BOX_WIDTH / 2,
        y=y,
        width=_BOX_WIDTH,
        height=_BOX_HEIGHT,
        rx=4,
        class_=f"box {kind}",
    )
    middle = y + _BOX_HEIGHT / 2 + 4.5
    return rect + element(
        "text", text(label), x=x, y=middle, text_anchor="middle", class_=f"box-text {kind}"
    )


def _label(x: float, y: float, label: str) -> str:
    return element("text", text(label), x=x, y=y, text_anchor="middle", class_="wire-text")


def _wire(points: Sequence[tuple[float, float]]) -> str:
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
    return element("path", d=path, class_="wire")


def _spoken(branches: Sequence[BranchRecord], tail: Sequence[str], name: str) -> str:
    paths = "; ".join(", ".join(branch.operators) or "identity" for branch in branches)
    number = "one path" if len(branches) == 1 else f"{len(branches)} parallel paths, summed"
    behind = f" Then {', '.join(tail)}." if tail else ""
    return f"{name}: {number}: {paths}.{behind}"
