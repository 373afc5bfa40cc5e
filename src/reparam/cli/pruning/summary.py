"""What pruning came to, for a person and for a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reparam.report.numbers import count

if TYPE_CHECKING:
    from reparam.cli.pruning.inputs import Material
    from reparam.cli.terminal import Terminal
    from reparam.deploy.exporting import ExportResult
    from reparam.lab.pruning import PruneResult
    from reparam.report.recording import Judged

__all__ = ["as_dict", "tell"]

_MOST_LAYERS = 30


def as_dict(
    model: str,
    result: PruneResult,
    judged: Judged | None,
    written: ExportResult,
) -> dict[str, Any]:
    """Return all of it as JSON can hold it."""
    told: dict[str, Any] = {"model": model, **result.to_dict(), "export": written.as_dict()}
    if judged is not None:
        before, after, images = judged
        told["accuracy"] = {"before": before / images, "after": after / images}
    return told


def tell(
    terminal: Terminal,
    material: Material,
    result: PruneResult,
    judged: Judged | None,
    written: ExportResult,
) -> None:
    """Print the widths, what was saved and lost, and the file."""
    changed = [layer for layer in result.layers if layer.changed]
    rows = [
        (layer.name, layer.what, _pair(layer.before), _pair(layer.after))
        for layer in changed[:_MOST_LAYERS]
    ]
    terminal.table(
        f"Pruned {material.origin} to {result.target}, by {result.importance}",
        ("layer", "", "channels before", "after"),
        rows,
    )
    if len(changed) > len(rows):
        terminal.hint("Note:", f"{len(changed) - len(rows)} more layers; --json lists all")
    terminal.text()
    terminal.table("", ("", "before", "after", "of before"), _totals(result, judged))
    for group in result.groups:
        terminal.hint(
            "Together:",
            f"{len(group.layers)} layers write the same {group.before} -> {group.after} channels, "
            f"as their outputs are added: {', '.join(group.layers)}",
        )
    if result.kept:
        terminal.hint("Left alone:", f"{len(result.kept)} layers; --json says why")
    if result.solved:
        terminal.done(f"Solved {len(result.solved)} layers anew on data for what they gave before")
    parity = written.parity
    terminal.done(f"Wrote {written.path} ({written.format}, {written.size_bytes / 1e6:.1f} MB)")
    terminal.done(
        f"Read back in {written.engine}: largest difference {parity.max_abs:.1e}, "
        f"where rounding explains {parity.tolerance:.1e}"
    )


def _pair(widths: tuple[int, int]) -> str:
    return f"{widths[0]} -> {widths[1]}"


def _totals(result: PruneResult, judged: Judged | None) -> list[tuple[str, str, str, str]]:
    rows = [
        (name, count(before), count(after), f"{after / before:.2f}")
        for name, (before, after) in (
            ("multiply-adds", result.multiply_adds),
            ("parameters", result.parameters),
        )
    ]
    timed = result.latency
    if timed is not None:
        times = (f"{1e3 * timed.before:.3g} ms", f"{1e3 * timed.after:.3g} ms")
        rows.append((f"latency in {timed.engine}", *times, f"{timed.ratio:.2f}"))
    if judged is not None:
        before, after = (100 * right / judged[2] for right in judged[:2])
        rows.append(
            ("validation accuracy", f"{before:.2f} %", f"{after:.2f} %", f"{after - before:+.2f}")
        )
    return rows
