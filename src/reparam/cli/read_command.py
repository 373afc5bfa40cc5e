"""``reparam read``: what a file says about itself, and whether that is still true."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import reparam
from reparam.cli.groups import argument
from reparam.cli.options import JsonOption
from reparam.cli.terminal import Terminal
from reparam.deploy.exporting.certificate import check_certificate
from reparam.deploy.exporting.content import KEPT_IN


def read(
    file: Path = argument("A file that fuse wrote.", "FILE"), *, as_json: JsonOption = False
) -> None:
    """Print the metadata of FILE; fail if its content is not the one that was compared.

    Exit code 2: its content has been changed since its certificate was written.
    """
    terminal = Terminal(as_json=as_json)
    metadata = reparam.read_metadata(file)
    held = check_certificate(file) if file.suffix in KEPT_IN else None
    metadata.pop("certificate", None)
    certificate = None if held is None else asdict(held)
    terminal.json({"file": str(file), **metadata, "certificate": certificate})
    terminal.table(str(file), ("", ""), [(key, str(value)) for key, value in metadata.items()])
    if held is None:
        terminal.hint("Note:", "it holds no certificate; reparam fuse --certify writes one")
    else:
        terminal.done(f"The content is the one that was compared: {held}")
