"""What pruning did, as plain records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from reparam.lab.pruning.targets import Target

__all__ = ["ChannelGroup", "Kept", "LatencyChange", "LayerWidths", "PruneResult", "Trial"]


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


@dataclass(frozen=True)
class LatencyChange:
    """Latency of the net that was given and of the new one, measured in interleaved rounds.

    Attributes:
        engine: Where.
        batch: Inputs a call.
        threads: CPU threads of a call; None for the engine's own default.
        before: Median seconds a call, of the net that was given.
        after: The same of the new net.
        ratio: Median over the rounds of after / before.
        quartiles: First and third quartile of that ratio.
    """

    engine: str
    batch: int
    threads: int | None
    before: float
    after: float
    ratio: float
    quartiles: tuple[float, float]

    @property
    def clear(self) -> bool:
        """Whether one of the two is faster in most rounds."""
        low, high = self.quartiles
        return not low <= 1 <= high

    def __str__(self) -> str:
        low, high = self.quartiles
        return (
            f"{1e3 * self.before:.3g} ms -> {1e3 * self.after:.3g} ms in {self.engine}: "
            f"{self.ratio:.2f} ({low:.2f} to {high:.2f})"
        )


@dataclass(frozen=True)
class Trial:
    """One net that the search tried.

    Attributes:
        steps: Steps of the schedule of channels that it has taken.
        multiply_adds: Of one call.
        latency: How it compared with the net that was given, or None where only multiply-adds were
            asked for.
    """

    steps: int
    multiply_adds: int
    latency: LatencyChange | None = None


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


def _arrow(layer: LayerWidths) -> str:
    (before_in, before_out), (after_in, after_out) = layer.before, layer.after
    return f"{before_in} -> {before_out} is now {after_in} -> {after_out}"


def _listed(names: tuple[str, ...], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
