"""``reparam fuse``: fold, compare, and write only what is equal."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import reparam
from reparam.cli.counts import counted
from reparam.cli.exported_files import (
    example,
    input_shapes,
    is_onnx,
    is_program,
    read,
    read_program,
)
from reparam.cli.notes import warnings_noted
from reparam.cli.options import (
    JsonOption,
    ModelArgument,
    ModelOptions,
    NamedInputOptions,
    OutFileOption,
    PartOptions,
    check_out,
    refuse_for_files,
    refuse_names,
)
from reparam.cli.plan_command import plan_as_dict
from reparam.cli.targets import Inputs, command, example_inputs, load_model, reference_of
from reparam.cli.terminal import Terminal
from reparam.deploy.engines.pt2_writer import save_program
from reparam.deploy.exporting import ExportResult
from reparam.deploy.exporting import certify as make_certificate
from reparam.errors import InputError
from reparam.frontends.onnx.inputs import required_inputs
from reparam.fusing import fuse_onnx_file
from reparam.reasons import Why

__all__ = ["fuse"]

FixedOption = Annotated[
    bool,
    typer.Option("--fixed-shapes", help="Fix every shape in OUT; else batch and size may vary."),
]

BackendOption = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="aoti; fp16 (.tflite, .mlpackage); nhwc, nhwc-fp16 (.tflite); int8 (.mlpackage).",
    ),
]


CheckOption = Annotated[
    bool,
    typer.Option("--check/--no-check", help="Compare an ONNX file with what it becomes."),
]

CertifyOption = Annotated[
    bool,
    typer.Option(
        "--certify",
        help="Prove OUT equal to MODEL number by number, and write into it what was shown.",
    ),
]

FreezeOption = Annotated[
    bool,
    typer.Option("--freeze-inputs", help="Take defaults of an ONNX file's inputs for good."),
]


def fuse(  # noqa: PLR0913 - one argument for each option or group of them
    model: ModelArgument,
    *,
    out: OutFileOption,
    about: ModelOptions,
    given: NamedInputOptions,
    part: PartOptions,
    fixed_shapes: FixedOption = False,
    backend: BackendOption = None,
    check: CheckOption = True,
    freeze_inputs: FreezeOption = False,
    certify: CertifyOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fold MODEL and write it to OUT, once it is shown to compute what MODEL computes."""
    terminal = Terminal()
    check_out(out, backend)
    inputs, target, asked = given.inputs, about.target(model), part.asked()
    if is_onnx(model):
        refuse_for_files(target, backend=backend, fixed_shapes=fixed_shapes or None)
        how = {"check": check, "freeze_inputs": freeze_inputs, **asked}
        _fuse_file(terminal, model, out, inputs, how, as_json=as_json)
        if certify:
            _certify(terminal, model, out, as_json=as_json)
        return
    if is_program(model):
        refuse_for_files(
            target, backend=backend, fixed_shapes=fixed_shapes or None,
            freeze_inputs=freeze_inputs or None, no_check=not check or None,
        )  # fmt: skip
        _fuse_program(terminal, model, out, inputs, asked, as_json=as_json)
        if certify:
            _certify(terminal, model, out, as_json=as_json)
        return
    refuse_names(model, inputs)
    if freeze_inputs or not check:
        option = "--freeze-inputs" if freeze_inputs else "--no-check"
        raise InputError(f"{option} is for ONNX files, and {model} is none; leave it out")
    loaded = load_model(target, inputs)
    reference = reference_of(loaded, asked)
    sample = example_inputs(reference, inputs)
    with terminal.progress(f"Fusing {model}") as update, warnings_noted(terminal):
        update(0, 4, "reading")
        found = reparam.plan(loaded.model, sample, **asked)
        update(1, 4, "folding")
        fused = found.apply()
        update(2, 4, "comparing")
        verdict = reparam.verify(reference.model, fused, sample)
        verdict.raise_if_different()
        update(3, 4, f"writing {out.name} and reading it back")
        written = reparam.export(
            fused,
            out,
            sample,
            reference=reference.model,
            dynamic=not fixed_shapes,
            backend=backend,
            form="fused",
            source=model,
            certify=certify,
        )
    counts = (_counts(reference.model, sample), _counts(fused, sample))
    if as_json:
        terminal.json(
            {
                "model": model,
                "before": counts[0],
                "after": counts[1],
                "verdict": {**asdict(verdict), "ok": verdict.ok},
                "export": written.as_dict(),
                "plan": plan_as_dict(found),
            }
        )
        return
    _tell_counts(terminal, loaded.origin, counts)
    for note in found.notes:
        terminal.hint("Note:", note)
    _tell_refusals(terminal, found)
    if loaded.report is None:
        terminal.hint("Note:", "no --weights were given; the model has those it was built with")
    terminal.done(
        f"The fused model is equal: largest difference {verdict.max_abs:.1e}, "
        f"where rounding explains {verdict.tolerance:.1e}"
    )
    _tell_export(terminal, written)
    if reference is loaded:  # else the two do not return the same
        options = [*inputs.words(), *target.words()[1:]]
        terminal.hint("Next:", command("verify", model, str(out), *options))


def _certify(terminal: Terminal, model: str, out: Path, *, as_json: bool) -> None:
    """Prove what was written, from one file to the other; both say what their inputs are."""
    shown = make_certificate(model, out)
    if not as_json:
        terminal.done(f"The file is {shown}")


def _counts(model: nn.Module, sample: torch.Tensor) -> dict[str, int]:
    """What one inference executes and stores."""
    found = counted(model, sample)
    return {
        "convolutions": found["convolutions"],
        "batch_norms": found["norms"],
        "parameters": found["parameters"],
        "multiply_adds": found["multiply_adds"],
    }


def _fuse_file(
    terminal: Terminal,
    model: str,
    out: Path,
    inputs: Inputs,
    options: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Fold an ONNX file into another, compared in ONNX Runtime before it takes its place."""
    if not is_onnx(str(out)):
        raise InputError(f"an ONNX file is fused into an ONNX file; give -o a name.onnx, not {out}")
    with terminal.progress(f"Fusing {model}"), warnings_noted(terminal):
        shapes = input_shapes(model, read(model), inputs)
        fused = fuse_onnx_file(model, out, input_shapes=shapes, **options)
    verdict = fused.verdict
    if as_json:
        told = {"model": model, "before": fused.before, "after": fused.after}
        if verdict is not None:
            told["verdict"] = {**asdict(verdict), "ok": verdict.ok}
        told["export"] = {"path": out.name, "format": "ONNX", "size_bytes": fused.size_bytes}
        terminal.json({**told, "plan": plan_as_dict(fused.plan)})
        return
    changed = [k for k, times in fused.before.items() if times != fused.after.get(k, 0)]
    rows = [(kind, f"{fused.before[kind]:,}", f"{fused.after.get(kind, 0):,}") for kind in changed]
    totals = (f"{sum(fused.before.values()):,}", f"{sum(fused.after.values()):,}")
    rows.append(("operations in all", *totals))
    terminal.table(f"Fused {model}", ("", "before", "after"), rows)
    for note in fused.plan.notes:
        terminal.hint("Note:", note)
    _tell_refusals(terminal, fused.plan)
    if any(refusal.reason.kind is Why.OVERRIDABLE for refusal in fused.plan.refusals):
        terminal.hint("Note:", "weights of it are inputs, too; add --freeze-inputs to fold them")
    terminal.done(f"Wrote {out} ({fused.size_bytes / 1e6:.1f} MB)")
    if verdict is None:
        terminal.hint("Note:", "it was not compared with the original")
    else:
        terminal.done(
            f"It is equal in ONNX Runtime: largest difference {verdict.max_abs:.1e}, where "
            f"rounding explains {verdict.tolerance:.1e}"
        )
    if options["outputs"] is None and options["fixed"] is None:
        files, taken = [model, str(out)], inputs
    else:  # the two no longer take the same inputs
        files, left = [str(out)], {value.name for value in required_inputs(read(str(out)))}
        taken = replace(inputs, named={k: v for k, v in inputs.named.items() if k in left})
    terminal.hint("Next:", command("bench", *files, "--engines", "onnxruntime", *taken.words()))


def _fuse_program(
    terminal: Terminal, model: str, out: Path, inputs: Inputs, asked: dict[str, Any], *,
    as_json: bool,
) -> None:  # fmt: skip
    """Fold an exported program into another, compared before it takes its place."""
    if not is_program(str(out)):
        raise InputError(f"a program is fused into a program; give -o a name.pt2, not {out}")
    program = read_program(model)
    (sample,) = example(model, inputs).values()
    with terminal.progress(f"Fusing {model}"), warnings_noted(terminal):
        found = reparam.plan(program, **asked)
        fused = found.apply()
        verdict = reparam.verify(program.module(), fused.module(), sample)
        verdict.raise_if_different()
        size = save_program(fused, out)
    if as_json:
        told: dict[str, Any] = {"model": model, "verdict": {**asdict(verdict), "ok": verdict.ok}}
        told["export"] = {"path": out.name, "format": "torch.export", "size_bytes": size}
        terminal.json({**told, "plan": plan_as_dict(found)})
        return
    terminal.text(found)
    terminal.done(f"Wrote {out} ({size / 1e6:.1f} MB)")
    terminal.done(
        f"The fused program is equal: largest difference {verdict.max_abs:.1e}, "
        f"where rounding explains {verdict.tolerance:.1e}"
    )
    terminal.hint("Next:", command("verify", model, str(out), *inputs.words()))


def _tell_counts(
    terminal: Terminal, origin: str, counts: tuple[dict[str, int], dict[str, int]]
) -> None:
    before, after = counts
    names = {"multiply_adds": "multiply-adds"}
    rows = [
        (names.get(key, key.replace("_", " ")), f"{before[key]:,}", f"{after[key]:,}")
        for key in before
    ]
    terminal.table(f"Fused {origin}", ("", "before", "after"), rows)


def _tell_refusals(terminal: Terminal, found: reparam.Plan[Any]) -> None:
    left = len(found.refusals)
    if left:
        places = "place was" if left == 1 else "places were"
        terminal.hint("Note:", f"{left} {places} left as found; reparam plan says why")


def _tell_export(terminal: Terminal, written: ExportResult) -> None:
    parity = written.parity
    terminal.done(f"Wrote {written.path} ({written.format}, {written.size_bytes / 1e6:.1f} MB)")
    if written.certificate is not None:
        terminal.done(f"The file is {written.certificate}")
    terminal.done(
        f"Read back in {written.engine}: largest difference {parity.max_abs:.1e}, "
        f"where rounding explains {parity.tolerance:.1e}"
    )
