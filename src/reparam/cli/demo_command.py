"""``reparam demo``: the whole story on bundled data, with a page at the end."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from reparam._support.optional import available
from reparam.cli.groups import command, option
from reparam.cli.terminal import Terminal
from reparam.errors import InputError, MissingExtraError

_NEEDED = (
    "sklearn",
    "lightning",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "safetensors",
    "jinja2",
)


def demo(
    *,
    out: Path = option(
        "Folder for what the demo leaves.", "FOLDER", flags=("--out", "-o"),
        default=Path("reparam-demo"),
    ),
    quick: bool = option("Seconds instead of minutes; too small to mean anything.", default=False),
) -> None:  # fmt: skip
    """Train a small multi-branch net, fold it, prove it equal, export it and measure it.

    It takes one to three minutes on two cores, needs no network, and leaves a folder with the
    model, the numbers, and a page to look at.
    """
    missing = [package for package in _NEEDED if not available(package)]
    if missing:  # all at once, before anything is trained
        raise MissingExtraError(", ".join(missing), "all", "The demo")
    from reparam.cli.demo.measure import measure
    from reparam.cli.demo.nets import FULL, QUICK
    from reparam.cli.demo.story import prove, train_all, train_twins, write
    from reparam.cli.demo.summary import caption, table

    terminal, settings = Terminal(), QUICK if quick else FULL
    start = time.perf_counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {out}: {error.strerror}; choose another with --out"
        ) from error
    results, forms = train_all(settings, terminal)
    results = replace(results, command=command("demo", *(["--quick"] if quick else [])))
    results = prove(results, forms, out, terminal)
    results = train_twins(results, settings, terminal)
    results = measure(results, forms, settings, terminal)
    page = write(results, out)
    terminal.text()
    terminal.table(caption(results), *table(results))
    terminal.text()
    terminal.done(f"Done in {time.perf_counter() - start:.0f} s")
    terminal.hint("Page:", str(page.resolve()))
