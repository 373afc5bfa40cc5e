"""What quantizing came to, for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.cli.targets import command
from reparam.report import sentence
from reparam.report.recording import quantization_record

if TYPE_CHECKING:
    from reparam.cli.terminal import Terminal
    from reparam.lab.quantizing import LayerDiagnosis, QuantizeResult

__all__ = ["tell"]

_ROWS = 8
"""Layers that the table shows; all are in the JSON."""


def tell(terminal: Terminal, model: str, result: QuantizeResult) -> None:
    """Print the verdict, the layers that hurt, the file, and what can be done next."""
    score = result.score
    rows = []
    if score.float_accuracy is not None and score.accuracy is not None:
        rows.append(
            ("accuracy", f"{score.float_accuracy:.2%}", f"{score.accuracy:.2%} in {result.engine}")
        )
    if score.agreement is not None:
        rows.append(("same class as float", "", f"{score.agreement:.2%}"))
    rows += [
        ("signal to noise of the output", "", f"{score.output_db:.1f} dB"),
        ("size", f"{result.float_bytes / 1e6:.2f} MB", f"{result.size_bytes / 1e6:.2f} MB"),
        ("layers", str(_layers(result)), f"{len(result.quantized)} in int8"),
    ]
    terminal.table(f"Quantized {model}", ("", "float", "int8"), rows)
    terminal.text(f"  judged on {score.on}; calibrated on {result.calibration}")
    terminal.text()
    _tell_layers(terminal, result)
    if result.equalised:
        terminal.done(f"Channels were equalised at {len(result.equalised)} places")
    if result.kept_float:
        terminal.done(f"Left in float: {', '.join(result.kept_float)}")
    terminal.done(f"Wrote {result.path} ({result.format}), read back in {result.engine}")
    terminal.done(f"Weights of {result.weight_bits} bits, right on {result.right_on}")
    for hint in _next(result):
        terminal.hint("Next:", hint)


def _layers(result: QuantizeResult) -> int:
    return len(result.quantized) + len(result.kept_float)


def _tell_layers(terminal: Terminal, result: QuantizeResult) -> None:
    if result.diagnosis is None:
        return
    worst = result.diagnosis.worst(_ROWS)
    title = "Layers that hurt most, each rounded alone (6 dB are one bit)"
    columns = ("layer", "weights", "reads", "spread", "in dB", "output dB")
    terminal.table(title, columns, [_row(layer) for layer in worst])
    left = len(result.diagnosis.layers) - len(worst)
    more = f", {left} more layers with --json" if left else ""
    terminal.text(f"  all at once: {result.diagnosis.output_db:.1f} dB by simulation{more}")
    terminal.text()


def _row(layer: LayerDiagnosis) -> tuple[str, ...]:
    return (
        layer.name,
        f"{layer.weight_low:.2f}..{layer.weight_high:.2f}",
        f"{layer.input_low:.1f}..{layer.input_high:.1f}",
        f"{layer.input_spread:.1f}x",
        f"{layer.input_db:.0f}",
        f"{layer.output_db:.1f}",
    )


def _next(result: QuantizeResult) -> list[str]:
    """Remedies that were not tried, where too much was lost; and the measurement."""
    size = str(result.input_shape[-1])
    bench = command("bench", str(result.path), "--engines", result.engine, "--input-size", size)
    untried = sentence("advice", quantization_record(result))
    return [untried, bench] if untried else [bench]
