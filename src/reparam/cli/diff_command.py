"""``reparam diff``: are two networks the same function, and if not, where do they part?"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
import typer
from torch import nn

import reparam
from reparam._support.files import check_destination
from reparam.cli.groups import argument, option
from reparam.cli.options import (
    InputOptions,
    Inputs,
    JsonOption,
    ModelOptions,
    Target,
    refuse_for_files,
)
from reparam.cli.pages import PageOption, check_page, leave_page, provenance
from reparam.cli.targets import example_inputs, load_model
from reparam.cli.terminal import Terminal
from reparam.diffing.explaining import write_part
from reparam.errors import InputError
from reparam.report import from_diff

_FILES = (".onnx", ".pt2")
_CODES = {"equal": 0, "different": 1, "not shown": 3}


def diff(  # noqa: PLR0913 - one argument for each option or group of them
    context: typer.Context,
    first: str = argument("A MODEL, or an .onnx or .pt2 file.", "A"),
    second: str = argument("Another.", "B"),
    *,
    about: ModelOptions,
    candidate_weights: Path | None = option("Checkpoint for B.", "FILE"),
    example: InputOptions,
    explain: bool = option(
        "Write the smallest part that differs of each, as A.first.onnx and B.second.onnx.",
        default=False,
    ),
    overwrite: bool = option("Let --explain replace files that exist.", default=False),
    report: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether A and B are the same function, by proof, and where they part if not.

    Exit code 0: equal. 1: different, an input shows it. 3: not shown to be equal.
    """
    terminal = Terminal(as_json=as_json)
    check_page(report)
    written = _parts(first, second, overwrite=overwrite) if explain else ()
    inputs = example.inputs
    left, sample = _side(about.target(first), inputs)
    against = Target(name=second, weights=candidate_weights, num_classes=about.num_classes)
    right, other = _side(against, inputs)
    asked = inputs.shape is not None or inputs.size is not None
    given = sample if sample is not None else other
    with terminal.progress(f"Comparing {first} with {second}"):
        # A file says itself what its inputs are.
        found = reparam.diff(left, right, None if _fixed(first, second) and not asked else given)
    if written and any(found.parts):
        for path, name, parts in zip(written, (first, second), found.parts, strict=True):
            write_part(name, parts, path)
    if report is not None:
        told = from_diff(found, first=first, second=second, **provenance(context, "torch"))
        leave_page(terminal, told, report)
    terminal.json({"first": first, "second": second, **asdict(found)})
    if found.outcome == "equal":
        terminal.done(str(found))
    else:
        terminal.text(found)
        if written and any(found.parts):
            terminal.text(f"  parts  {written[0]}, {written[1]}")
    raise typer.Exit(_CODES[found.outcome])


def _side(target: Target, inputs: Inputs) -> tuple[nn.Module | str, torch.Tensor | None]:
    if _fixed(target.name):
        refuse_for_files(replace(target, num_classes=None))  # which may be about the other side
        given = None if inputs.shape is None else torch.randn(inputs.shape)
        return target.name, given
    loaded = load_model(target, inputs)
    return loaded.model, example_inputs(loaded, inputs)


def _fixed(*names: str) -> bool:
    """Whether one of the two is a file, which says what its inputs are."""
    return any(Path(name).suffix.lower() in _FILES for name in names)


def _parts(first: str, second: str, *, overwrite: bool) -> tuple[Path, Path]:
    """Where the parts that differ are written: beside nothing of the user's."""
    for name in (first, second):
        if Path(name).suffix.lower() != ".onnx":
            raise InputError(
                f"--explain writes parts of ONNX files, and {name!r} is none; export it first: "
                f"reparam fuse {name} -o net.onnx"
            )
    paths = Path(f"{Path(first).stem}.first.onnx"), Path(f"{Path(second).stem}.second.onnx")
    for path in paths:
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; give --overwrite to replace it")
        check_destination(path)
    return paths
