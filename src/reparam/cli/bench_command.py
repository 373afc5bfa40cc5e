"""``reparam bench``: how fast models run here, in which engine, and in which form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reparam._support.files import check_destination
from reparam.cli.bench import (
    MeasureOptions,
    Request,
    measure,
    picked,
    summary,
    tell,
    tell_picked,
)
from reparam.cli.exported_files import is_file
from reparam.cli.options import JsonOption, ModelOptions, NamedInputOptions
from reparam.cli.targets import command
from reparam.cli.terminal import Terminal
from reparam.errors import InputError
from reparam.report import from_benchmark, render

__all__ = ["bench"]

_FIGURE1_OUT = Path("reparam-figure1.json")

ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL...",
        help="repvgg_a0, timm:NAME, torchvision:NAME, package.module:factory, or an exported file.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="OUT", help="Results file (.json); with --pick, OUT plus a suffix."
    ),
]
PickOption = Annotated[
    bool, typer.Option("--pick", help="Name the fastest engine that agrees; write its file to OUT.")
]


def bench(
    models: ModelsArgument = None,
    *,
    how: MeasureOptions,
    about: ModelOptions,
    given: NamedInputOptions,
    out: OutOption = None,
    pick: PickOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time models in train and deploy form, in every engine, in interleaved rounds."""
    terminal = Terminal()
    if how.figure1 and pick:
        raise InputError("--figure1 compares many models and --pick is about one; leave one out")
    request = how.request(models, about, given, terminal.note)
    if pick:
        outcome = picked(request, terminal, stem=out)
        if as_json:
            terminal.json(outcome.as_dict())
        else:
            tell_picked(terminal, outcome)
        return
    target = out or (_FIGURE1_OUT if how.figure1 else None)
    _check_destination(target)
    result = measure(request, terminal)
    if target is not None:
        result.save(target)
    results = from_benchmark(result)
    page = render(results, target.with_suffix(".html")) if target and how.figure1 else None
    if as_json:
        terminal.json(summary(results))
        return
    tell(terminal, results)
    _tell_next(terminal, request, target, page)


def _check_destination(out: Path | None) -> None:
    """Refuse a path that cannot be written before minutes are spent on what goes there."""
    if out is None:
        return
    if out.suffix.lower() != ".json":
        raise InputError(f"the results are JSON: give -o with the suffix .json, not {out.name!r}")
    check_destination(out)


def _tell_next(terminal: Terminal, request: Request, out: Path | None, page: Path | None) -> None:
    if out is None:
        terminal.hint("Next:", "add -o results.json to keep the times, and a page can be drawn")
        return
    terminal.done(f"Wrote {out}")
    if page is not None:
        terminal.hint("Page:", str(page.resolve()))
    else:
        words = ["report", str(out), "-o", str(out.with_suffix(".html"))]
        terminal.hint("Next:", command(*words))
    buildable = [model for model in request.models if not is_file(model)]
    if buildable:
        stem = "fastest" if out is None else str(out.with_suffix(""))
        target = request.target(buildable[0])
        words = [*target.words(), *request.inputs.words(), "--pick", "-o", stem]
        terminal.hint("Next:", command("bench", *words))
