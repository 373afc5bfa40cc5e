"""The page that a command leaves beside its result, and the numbers that it is drawn from."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reparam._support.files import check_destination, write_text
from reparam._support.optional import require
from reparam.cli.groups import command, typed
from reparam.deploy.benchmarking.environment import describe_environment
from reparam.errors import InputError
from reparam.report import Results, load_results, render, to_json
from reparam.report.benchmarks import environment_record

if TYPE_CHECKING:
    from reparam.cli.terminal import Terminal

PageOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="PAGE",
        help="HTML page to draw of the result; its numbers stand beside it, PAGE with .json.",
    ),
]


def numbers_of(page: Path) -> Path:
    """The results file of a page, which ``reparam report`` draws again, alone or with others."""
    return page.with_suffix(".json")


def check_page(page: Path | None) -> None:
    """Refuse a page that cannot be written before minutes are spent on what goes there."""
    if page is None:
        return
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(
            f"the page is HTML: give --report with the suffix .html, not {page.name!r}"
        )
    require("jinja2", extra="report", purpose="Drawing the report page")
    numbers = numbers_of(page)
    for file in (page, numbers):
        check_destination(file)
    if not numbers.exists():
        return
    try:
        load_results(numbers)
    except InputError as error:
        raise InputError(
            f"the numbers of {page.name} go into {numbers.name}, which is there and is no results "
            "file; give the page another name"
        ) from error


def leave_page(
    terminal: Terminal, results: Results, page: Path, *, net: tuple[Path, str] | None = None
) -> None:
    """Write the numbers and the page, and say where they are.

    Args:
        terminal: where it is said.
        results: what the page is drawn from.
        page: the HTML file.
        net: the file that the results are about, and what it is, if there is one.
    """
    numbers = numbers_of(page)
    beside = {numbers: "every number on this page"}
    # The page refers to what lies in its own folder, so that both can move together.
    if net is not None and net[0].resolve().parent == page.resolve().parent:
        beside = {net[0]: net[1], **beside}
    results = replace(results, files={file.name: told for file, told in beside.items()})
    write_text(numbers, to_json(results))
    # From the stored file, so that the page shows what was kept and not what was in memory.
    render(numbers, page)
    terminal.done(f"Wrote {numbers}, which reparam report draws together with others")
    terminal.hint("Page:", str(page.resolve()))


def provenance(context: typer.Context, package: str) -> dict[str, Any]:
    """When, by which command, on what, and with which version of `package` a result was made."""
    environment = describe_environment()
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        environment["versions"][package] = importlib.metadata.version(package)
    return {
        "created": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        "command": _typed(context),
        "environment": environment_record(environment),
    }


def _typed(context: typer.Context) -> str:
    """The command as it has to be typed to get the same: what was given, by its longest name."""
    words = [context.info_name or ""]
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        if parameter.param_type_name == "argument":
            words.append(str(context.params[name]))
            continue
        flag = max(parameter.opts, key=len)
        off = max(parameter.secondary_opts, key=len, default="")
        words += typed(flag, off, context.params[name])
    return command(*words)
