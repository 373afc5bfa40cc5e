"""``reparam train``: train wide, and end with the straight net, compared and exported."""

from __future__ import annotations

from reparam.cli.options import JsonOption
from reparam.cli.terminal import Terminal
from reparam.cli.training import TrainRequest, as_dict, run, tell

__all__ = ["train"]


def train(*, request: TrainRequest, as_json: JsonOption = False) -> None:
    """Train MODEL on DATA, fuse it, show that nothing changed, and export it.

    Several processes: torchrun or SLURM start them; give --devices and --nodes as they do.
    """
    terminal = Terminal()
    finished = run(request, terminal)
    if finished is None:
        return
    if as_json:
        terminal.json(as_dict(finished))
    else:
        tell(terminal, request, finished)
