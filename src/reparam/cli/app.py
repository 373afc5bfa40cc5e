"""The commands under one name."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from reparam import __version__
from reparam.cli.command import Command, check_checkpoints
from reparam.cli.groups import flat
from reparam.cli.guard import DEBUG_FLAG, guarded
from reparam.cli.terminal import Terminal

COMMANDS = {
    "demo": "The whole story on bundled data, with a page at the end.",
    "plan": "What would fold in MODEL, what not, and why.",
    "fuse": "Fold MODEL and write the equal net to OUT.",
    "verify": "Compare two models on the same input.",
    "diff": "Prove two models equal, or say where they part.",
    "read": "What a file says about itself, and whether its content is still that.",
    "train": "Train MODEL on DATA, and fuse it.",
    "bench": "Time models in train and deploy form, in every engine.",
    "quantize": "Write the fused MODEL in eight bits to OUT.",
    "prune": "Remove channels from the fused MODEL down to a target.",
    "report": "Draw one page of stored results.",
}
"""Every command and its purpose; ``reparam plan`` is ``plan`` in ``reparam.cli.plan_command``."""


class _Commands(TyperGroup):
    """The commands, each imported when it is run: their packages take seconds to load."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": dict.fromkeys(COMMANDS)})

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - typer passes it
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in COMMANDS:
            check_checkpoints(args[1:])
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - typer passes it
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"reparam.cli.{cmd_name}_command")
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(cmd_name, cls=Command)(flat(getattr(module, cmd_name)))
        return typer.main.get_command(alone)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer passes it
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    name="reparam",
    cls=_Commands,
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


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    return guarded(lambda line: app(line, prog_name="reparam"), arguments, Terminal())
