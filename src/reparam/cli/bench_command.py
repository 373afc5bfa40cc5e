"""``reparam bench``: how fast models run here, in which engine, and in which form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reparam._support.files import check_destination
from reparam.cli.bench import (
    Request,
    figure1_models,
    is_file,
    measure,
    numbers,
    picked,
    summary,
    tell,
    tell_picked,
    usable_engines,
    words,
)
from reparam.cli.options import (
    InputSizeOption,
    JsonOption,
    KeyOption,
    NumClassesOption,
    ShapesOption,
    StrictOption,
    WeightsOption,
    inputs_from,
    target_from,
)
from reparam.cli.targets import command
from reparam.cli.terminal import Terminal
from reparam.errors import InputError
from reparam.report import from_benchmark, render

__all__ = ["bench"]

_ROUNDS, _MOST_ROUNDS = 15, 60
_FIGURE1_SECONDS = 480.0
_FIGURE1_TITLE = "Accuracy against latency: re-parameterized nets and others on this machine"
_FIGURE1_OUT = Path("reparam-figure1.json")

ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL...",
        help="repvgg_a0, timm:NAME, torchvision:NAME, package.module:factory, or an exported file.",
    ),
]
EnginesOption = Annotated[
    str | None,
    typer.Option(
        "--engines", metavar="A,B", help="eager,onnxruntime,openvino as far as installed; others."
    ),
]
PrecisionsOption = Annotated[
    str, typer.Option("--precisions", metavar="A,B", help="fp32, bf16, or both.")
]
FormsOption = Annotated[
    str | None,
    typer.Option("--forms", metavar="A,B", help="train, deploy, or both (the default)."),
]
BatchesOption = Annotated[str, typer.Option("--batches", metavar="N,M", help="Inputs a call.")]
ThreadsOption = Annotated[
    str | None,
    typer.Option("--threads", metavar="N,M", help="CPU threads; each engine's default if left."),
]
RoundsOption = Annotated[
    int | None, typer.Option("--rounds", metavar="N", min=1, help="Interleaved rounds, at most.")
]
SecondsOption = Annotated[
    float | None,
    typer.Option("--seconds", metavar="S", min=1, help="Fit the rounds into this time."),
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
Figure1Option = Annotated[
    bool,
    typer.Option(
        "--figure1",
        help="RepVGG, MobileOne and others against ResNets, deploy form, with a page; 10 minutes.",
    ),
]


def bench(  # noqa: PLR0913 - one argument for each option
    models: ModelsArgument = None,
    *,
    engines: EnginesOption = None,
    precisions: PrecisionsOption = "fp32",
    forms: FormsOption = None,
    batches: BatchesOption = "1",
    threads: ThreadsOption = None,
    shape: ShapesOption = None,
    input_size: InputSizeOption = None,
    weights: WeightsOption = None,
    key: KeyOption = None,
    strict: StrictOption = True,
    num_classes: NumClassesOption = None,
    rounds: RoundsOption = None,
    seconds: SecondsOption = None,
    out: OutOption = None,
    pick: PickOption = False,
    figure1: Figure1Option = False,
    as_json: JsonOption = False,
) -> None:
    """Time models in train and deploy form, in every engine, in interleaved rounds."""
    terminal = Terminal()
    if figure1 and pick:
        raise InputError("--figure1 compares many models and --pick is about one; leave one out")
    installed, missing = usable_engines()
    if missing and engines is None:
        terminal.note(f"note: {missing}")
    if figure1 and not models:
        drawn, left_out = figure1_models()
        models = list(drawn)
        if left_out:
            terminal.note(f"note: {left_out}")
    seconds = seconds or (_FIGURE1_SECONDS if figure1 else None)
    request = Request(
        models=tuple(models or ()),
        forms=words(forms or ("deploy" if figure1 else "train,deploy"), "--forms"),
        engines=installed if engines is None else words(engines, "--engines"),
        precisions=words(precisions, "--precisions"),
        batches=numbers(batches, "--batches"),
        threads=(None,) if threads is None else numbers(threads, "--threads"),
        inputs=inputs_from(shape, input_size),
        checkpoint=target_from("", weights, key, strict).checkpoint,
        num_classes=num_classes,
        rounds=rounds or (_ROUNDS if seconds is None else _MOST_ROUNDS),
        seconds=seconds,
        title=_FIGURE1_TITLE if figure1 else "",
        figure1=figure1,
    )
    if pick:
        outcome = picked(request, terminal, stem=out)
        if as_json:
            terminal.json(outcome.as_dict())
        else:
            tell_picked(terminal, outcome)
        return
    target = out or (_FIGURE1_OUT if figure1 else None)
    _check_destination(target)
    result = measure(request, terminal)
    if target is not None:
        result.save(target)
    results = from_benchmark(result)
    page = render(results, target.with_suffix(".html")) if target and figure1 else None
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
