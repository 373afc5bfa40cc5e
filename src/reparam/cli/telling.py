"""What several commands count, print and store of what they did, said once."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from reparam.deploy.benchmarking import profile

if TYPE_CHECKING:
    import torch
    from torch import nn

    import reparam
    from reparam.cli.terminal import Terminal
    from reparam.deploy.engines.parity import Parity
    from reparam.deploy.exporting import ExportResult

BUILT_WITH = "no --weights were given; the model has those it was built with"


def counted(model: nn.Module, sample: torch.Tensor) -> dict[str, Any]:
    """Convolutions and norms executed, parameters, multiply-adds and bytes moved.

    The keys are fields of :class:`reparam.report.results.ModelRecord`.
    """
    found = profile(model, sample)
    norms = sum(times for name, times in found.operators.items() if "batch_norm" in name)
    return {
        "convolutions": found.operators.get("convolution", 0),
        "norms": norms,
        "parameters": found.parameters,
        "multiply_adds": found.multiply_adds,
        "bytes_moved": found.bytes_moved,
    }


def within(found: reparam.Verdict | Parity) -> str:
    """How far two models are apart, and how far rounding alone can take them."""
    return (
        f"largest difference {found.max_abs:.1e} ({found.max_rel:.0e} of the largest number), "
        f"where rounding explains {found.tolerance:.1e}"
    )


def as_stored(verdict: reparam.Verdict) -> dict[str, Any]:
    """A verdict for a program."""
    return {**asdict(verdict), "ok": verdict.ok}


def megabytes(size: int) -> str:
    """The size of a file."""
    return f"{size / 1e6:.1f} MB"


def tell_export(terminal: Terminal, written: ExportResult) -> None:
    """Say what was written, what was proven of it, and what its engine made of it."""
    terminal.done(f"Wrote {written.path} ({written.format}, {megabytes(written.size_bytes)})")
    if written.certificate is not None:
        terminal.done(f"The file is {written.certificate}")
    terminal.done(f"Read back in {written.engine}: {within(written.parity)}")
