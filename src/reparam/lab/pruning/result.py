"""What pruning did, as plain records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from reparam.lab.pruning.targets import LatencyChange, Target, Trial


@dataclass(frozen=True)
class LayerWidths:
    """A layer and its channels.

    Attributes:
        name: Path of the module.
        what: What it is, such as ``"3x3 conv"``.
        before: Channels in and out of the layer that was given.
        after: The same now.
    """

    name: str
    what: str
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def changed(self) -> bool:
        """Whether it has become smaller."""
        return self.before != self.after


@dataclass(frozen=True)
class ChannelGroup:
    """Layers that write the same channels, which can only go from all of them at once.

    Attributes:
        layers: Paths of the layers whose outputs they are.
        before: How many there were.
        after: How many there are.
    """

    layers: tuple[str, ...]
    before: int
    after: int


@dataclass(frozen=True)
class Kept:
    """A layer whose outputs stay, and why."""

    where: str
    why: str


@dataclass(frozen=True, eq=False)
class PruneResult:
    """A smaller net, and how it came to be.

    Attributes:
        model: The new net, in eval mode: of the same classes, with fewer channels.
        importance: The criterion.
        target: What was asked for; as text, in words.
        layers: Every layer with channels, in the order in which the net registers them.
        groups: Layers that write the same channels, where they are more than one: the price of
            additions, which a single path does not pay.
        kept: Layers whose outputs stay, and why.
        multiply_adds: Of one call, before and after.
        parameters: Before and after.
        solved: Layers whose weights were solved anew on data.
        latency: Where it was measured, with other rounds than those of the search.
        trials: What the search tried.
    """

    model: nn.Module
    importance: str
    target: Target
    layers: tuple[LayerWidths, ...]
    groups: tuple[ChannelGroup, ...]
    kept: tuple[Kept, ...]
    multiply_adds: tuple[int, int]
    parameters: tuple[int, int]
    latency: LatencyChange | None
    solved: tuple[str, ...]
    trials: tuple[Trial, ...]

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Channels in and out of every layer now, by its path."""
        return {layer.name: layer.after for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """Return all but the net, as plain values for JSON."""
        found: dict[str, Any] = {"importance": self.importance, "target": str(self.target)}
        found |= {
            key: [asdict(entry) for entry in getattr(self, key)]
            for key in ("layers", "groups", "kept", "trials")
        }
        pairs = {"multiply_adds": self.multiply_adds, "parameters": self.parameters}
        found |= {key: {"before": a, "after": b} for key, (a, b) in pairs.items()}
        found["solved"] = list(self.solved)
        return found | {"latency": None if self.latency is None else asdict(self.latency)}

    def __str__(self) -> str:
        """Return a table of the layers that changed, and the totals."""
        lines = [f"Pruned to {self.target}, by {self.importance}"]
        rows = [(layer.name, layer.what, _arrow(layer)) for layer in self.layers if layer.changed]
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
        lines += [
            "  "
            + "  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip()
            for row in rows
        ]
        for group in self.groups:
            lines.append(
                f"  {len(group.layers)} layers share {group.before} -> {group.after} channels: "
                f"{_listed(group.layers)}"
            )
        lines += [f"  left alone: {kept.where}: {kept.why}" for kept in self.kept]
        for what, (before, after) in (
            ("multiply-adds", self.multiply_adds),
            ("parameters", self.parameters),
        ):
            lines.append(f"{what} {before:,} -> {after:,} ({after / before:.2f})")
        return "\n".join(lines if self.latency is None else [*lines, f"latency {self.latency}"])


def layer_widths(before: nn.Module, after: nn.Module) -> tuple[LayerWidths, ...]:
    """Compare the widths of two nets with the same layers."""
    smaller = dict(after.named_modules())
    return tuple(
        LayerWidths(name, _what(layer), _widths(layer), _widths(smaller[name]))
        for name, layer in before.named_modules()
        if isinstance(layer, _ConvNd | nn.Linear)
    )


def _widths(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, _ConvNd):
        return (layer.in_channels, layer.out_channels)
    rows, columns = layer.get_parameter("weight").shape
    return (columns, rows)


def _what(layer: nn.Module) -> str:
    if not isinstance(layer, _ConvNd):
        return "linear"
    return "x".join(map(str, layer.kernel_size)) + " conv"


def _arrow(layer: LayerWidths) -> str:
    (before_in, before_out), (after_in, after_out) = layer.before, layer.after
    return f"{before_in} -> {before_out} is now {after_in} -> {after_out}"


def _listed(names: tuple[str, ...], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
