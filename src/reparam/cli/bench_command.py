"""``reparam bench``: how fast models run here, in which engine, and in which form."""

from __future__ import annotations

from pathlib import Path

from reparam._support.files import check_destination
from reparam.cli.bench.measuring import measure
from reparam.cli.bench.picking import picked, tell_picked
from reparam.cli.bench.request import MeasureOptions, Request
from reparam.cli.bench.summary import summary, tell
from reparam.cli.exported_files import is_file
from reparam.cli.groups import argument, command, option
from reparam.cli.options import JsonOption, ModelOptions, NamedInputOptions
from reparam.cli.terminal import Terminal
from reparam.errors import InputError
from reparam.report import from_benchmark, render

_FIGURE1_OUT = Path("reparam-figure1.json")


def bench(
    models: list[str] | None = argument(
        "repvgg_a0, timm:NAME, torchvision:NAME, package.module:factory, or an exported file.",
        "MODEL...",
        default=None,
    ),
    *,
    how: MeasureOptions,
    about: ModelOptions,
    given: NamedInputOptions,
    out: Path | None = option(
        "Results file (.json); with --pick, OUT plus a suffix.", "OUT", flags=("--out", "-o")
    ),
    pick: bool = option(
        "Name the fastest engine that agrees; write its file to OUT.", default=False
    ),
    as_json: JsonOption = False,
) -> None:
    """Time models in train and deploy form, in every engine, in interleaved rounds."""
    terminal = Terminal(as_json=as_json)
    if how.figure1 and pick:
        raise InputError("--figure1 compares many models and --pick is about one; leave one out")
    request = how.request(models, about, given, terminal.note)
    if pick:
        outcome = picked(request, terminal, stem=out)
        terminal.json(outcome.as_dict())
        tell_picked(terminal, outcome)
        return
    target = out or (_FIGURE1_OUT if how.figure1 else None)
    if target is not None:
        if target.suffix.lower() != ".json":
            found = repr(target.name)
            raise InputError(f"the results are JSON: give -o with the suffix .json, not {found}")
        check_destination(target)
    result = measure(request, terminal)
    if target is not None:
        result.save(target)
    results = from_benchmark(result)
    page = render(results, target.with_suffix(".html")) if target and how.figure1 else None
    terminal.json(summary(results))
    tell(terminal, results)
    _tell_next(terminal, request, target, page)


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
        target = request.about.target(buildable[0])
        words = [*target.words(), *request.inputs.words(), "--pick", "-o", str(out.with_suffix(""))]
        terminal.hint("Next:", command("bench", *words))
