"""``reparam plan``: what would fold, what not, and why."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

import reparam
from reparam.cli.exported_files import is_onnx, is_program, read, read_program
from reparam.cli.groups import command, option, words
from reparam.cli.options import (
    InputOptions,
    JsonOption,
    ModelArgument,
    ModelOptions,
    PartOptions,
    refuse_for_files,
)
from reparam.cli.pages import PageOption, check_page, leave_page, provenance
from reparam.cli.targets import example_inputs, load_model, reference_of
from reparam.cli.terminal import Terminal
from reparam.reasons import Why
from reparam.report import from_plan


def plan(  # noqa: PLR0913 - one argument for each option or group of them
    context: typer.Context,
    model: ModelArgument,
    *,
    about: ModelOptions,
    example: InputOptions,
    part: PartOptions,
    every: bool = option(
        "Tell each place by itself, with its sizes.", flags=("--all",), default=False
    ),
    report: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what would fold in MODEL, what not, and why. Nothing is changed."""
    terminal = Terminal(as_json=as_json)
    check_page(report)
    inputs, target, asked = example.inputs, about.target(model), part.asked()
    subject: Any
    sample = None
    if is_onnx(model) or is_program(model):
        refuse_for_files(target)
        subject = read(model) if is_onnx(model) else read_program(model)
        out = f"{Path(model).stem}-fused{Path(model).suffix.lower()}"
    else:
        loaded = load_model(target, inputs)
        subject, sample = loaded.model, example_inputs(reference_of(loaded, asked), inputs)
        out = f"{Path(model.rpartition(':')[2]).name}.onnx"
    with terminal.progress(f"Reading {model}"):
        found = reparam.plan(subject, sample, **asked)
    if report is not None:
        told = from_plan(found, model=model, **provenance(context, "torch"))
        leave_page(terminal, told, report)
    terminal.json({"model": model, **plan_as_dict(found)})
    terminal.lines((line.text, line.kind) for line in found.page(terminal.width, every=every))
    terminal.text()
    if found.regions or part.outputs or part.fix:
        given = [*target.words(), *inputs.words(), *words(part)]
        terminal.hint("Next:", command("fuse", *given, "-o", out))
    elif any(refusal.reason.kind is Why.OVERRIDABLE for refusal in found.refusals):
        terminal.hint("Next:", command("fuse", model, "--freeze-inputs", "-o", out))


def plan_as_dict(found: reparam.Plan[Any]) -> dict[str, object]:
    """The regions and refusals of a plan as JSON can hold them."""
    return {
        "regions": [asdict(region) for region in found.regions],
        "refusals": [
            {"where": r.where, "what": r.what, "why": r.why, "kind": r.reason.kind.name}
            for r in found.refusals
        ],
        "notes": list(found.notes),
    }
