"""The commands under one name."""

from __future__ import annotations

from typing import Annotated

import typer

from reparam import __version__
from reparam.cli import (
    bench_command,
    demo_command,
    fuse_command,
    plan_command,
    prune_command,
    quantize_command,
    report_command,
    train_command,
    verify_command,
)
from reparam.cli.guard import DEBUG_FLAG, guarded
from reparam.cli.terminal import Terminal

__all__ = ["app", "run"]

app = typer.Typer(
    name="reparam",
    help="Train wide, deploy straight: fold multi-branch networks into equal, faster ones.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: it reads the same on a terminal, in a log file and at 80 columns.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it with the flag's value
    if wanted:
        Terminal().text(f"reparam {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option(DEBUG_FLAG, help="Print tracebacks; works behind a command too.")
    ] = False,
) -> None:
    """Fold multi-branch networks into equal, faster ones."""


app.command("demo")(demo_command.demo)
app.command("plan")(plan_command.plan)
app.command("fuse")(fuse_command.fuse)
app.command("verify")(verify_command.verify)
app.command("train")(train_command.train)
app.command("bench")(bench_command.bench)
app.command("quantize")(quantize_command.quantize)
app.command("prune")(prune_command.prune)
app.command("report")(report_command.report)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    return guarded(lambda line: app(line, prog_name="reparam"), arguments, Terminal())
