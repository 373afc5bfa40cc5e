"""``reparam fuse``: fold, compare, and write only what is equal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import reparam
from reparam.cli.exported_files import (
    example,
    input_shapes,
    is_onnx,
    is_program,
    read,
    read_program,
)
from reparam.cli.groups import command, option
from reparam.cli.options import (
    Inputs,
    JsonOption,
    ModelArgument,
    ModelOptions,
    NamedInputOptions,
    OutFileOption,
    PartOptions,
    Target,
    check_out,
    refuse_for_files,
    refuse_names,
)
from reparam.cli.plan_command import plan_as_dict
from reparam.cli.targets import example_inputs, load_model, reference_of
from reparam.cli.telling import BUILT_WITH, as_stored, counted, megabytes, tell_export, within
from reparam.cli.terminal import Terminal
from reparam.deploy.engines.pytorch import save_program
from reparam.deploy.exporting import ExportResult
from reparam.deploy.exporting import certify as make_certificate
from reparam.errors import InputError
from reparam.frontends.onnx.inputs import required_inputs
from reparam.fusing import fuse_onnx_file
from reparam.reasons import Why

_COUNTS = {
    "convolutions": "convolutions", "norms": "batch_norms", "parameters": "parameters",
    "multiply_adds": "multiply_adds",
}  # fmt: skip
"""What is told of what a module executes, and its name in the record."""
_SPOKEN = {"batch_norms": "batch norms", "multiply_adds": "multiply-adds"}


@dataclass(frozen=True, kw_only=True)
class FuseOptions:
    """How a MODEL is folded and written."""

    fixed_shapes: bool = option(
        "Fix every shape in OUT; else batch and size may vary.", default=False
    )
    backend: str | None = option(
        "aoti; fp16 (.tflite, .mlpackage); nhwc, nhwc-fp16 (.tflite); int8 (.mlpackage).", "NAME"
    )
    check: bool = option("Compare an ONNX file with what it becomes.", default=True)
    freeze_inputs: bool = option("Take defaults of an ONNX file's inputs for good.", default=False)
    certify: bool = option(
        "Prove OUT equal to MODEL number by number, and write into it what was shown.",
        default=False,
    )


@dataclass(frozen=True, eq=False)
class _Fused:
    """What was folded and written, whatever MODEL is.

    Attributes:
        plan: What folded, and what did not.
        verdict: The comparison, if there was one.
        told: Of what it is told that it is equal.
        export: The record of a module's file, or name, format and size of another's.
        counts: What is executed before and after, by kind.
        notes: What a person should know.
        next: The command that comes next.
    """

    plan: reparam.Plan[Any]
    verdict: reparam.Verdict | None
    told: str
    export: ExportResult | dict[str, Any]
    counts: tuple[dict[str, int], dict[str, int]] | None = None
    title: str = ""
    notes: tuple[str, ...] = ()
    next: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same for a program."""
        found: dict[str, Any] = {}
        if self.counts is not None:
            found["before"], found["after"] = self.counts
        if self.verdict is not None:
            found["verdict"] = as_stored(self.verdict)
        export = self.export if isinstance(self.export, dict) else self.export.as_dict()
        return {**found, "export": export, "plan": plan_as_dict(self.plan)}


def fuse(
    model: ModelArgument,
    *,
    out: OutFileOption,
    about: ModelOptions,
    given: NamedInputOptions,
    part: PartOptions,
    how: FuseOptions,
    as_json: JsonOption = False,
) -> None:
    """Fold MODEL and write it to OUT, once it is shown to compute what MODEL computes."""
    terminal = Terminal(as_json=as_json)
    check_out(out, how.backend)
    run = _module
    if is_onnx(model) or is_program(model):
        run = _onnx_file if is_onnx(model) else _program
    done = run(terminal, about.target(model), out, given.inputs, part.asked(), how)
    terminal.json({"model": model, **done.as_dict()})
    _tell(terminal, done, out)
    if isinstance(done.export, dict) and how.certify:
        # From one file to the other; both say what their inputs are.
        terminal.done(f"The file is {make_certificate(model, out)}")


def _module(
    terminal: Terminal, target: Target, out: Path, inputs: Inputs, asked: dict[str, Any],
    how: FuseOptions,
) -> _Fused:  # fmt: skip
    model = target.name
    refuse_names(model, inputs)
    if how.freeze_inputs or not how.check:
        needless = "--freeze-inputs" if how.freeze_inputs else "--no-check"
        raise InputError(f"{needless} is for ONNX files, and {model} is none; leave it out")
    loaded = load_model(target, inputs)
    reference = reference_of(loaded, asked)
    sample = example_inputs(reference, inputs)
    with terminal.progress(f"Fusing {model}") as update:
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
            dynamic=not how.fixed_shapes,
            backend=how.backend,
            form="fused",
            source=model,
            certify=how.certify,
        )
    nets = [counted(net, sample) for net in (reference.model, fused)]
    before, after = ({told: net[name] for name, told in _COUNTS.items()} for net in nets)
    follow: tuple[str, ...] = ()
    if reference is loaded:  # else the two do not return the same
        follow = ("verify", model, str(out), *inputs.words(), *target.words()[1:])
    return _Fused(
        found, verdict, "The fused model is equal", written, (before, after),
        f"Fused {loaded.origin}", () if loaded.report else (BUILT_WITH,), follow,
    )  # fmt: skip


def _onnx_file(
    terminal: Terminal, target: Target, out: Path, inputs: Inputs, asked: dict[str, Any],
    how: FuseOptions,
) -> _Fused:  # fmt: skip
    """Fold an ONNX file into another, compared in ONNX Runtime before it takes its place."""
    model = target.name
    refuse_for_files(target, backend=how.backend, fixed_shapes=how.fixed_shapes or None)
    if not is_onnx(str(out)):
        raise InputError(f"an ONNX file is fused into an ONNX file; give -o a name.onnx, not {out}")
    with terminal.progress(f"Fusing {model}"):
        shapes = input_shapes(model, read(model), inputs)
        fused = fuse_onnx_file(
            model, out, input_shapes=shapes, check=how.check, freeze_inputs=how.freeze_inputs,
            **asked,
        )  # fmt: skip
    notes = () if fused.verdict else ("it was not compared with the original",)
    if any(refusal.reason.kind is Why.OVERRIDABLE for refusal in fused.plan.refusals):
        notes = ("weights of it are inputs, too; add --freeze-inputs to fold them", *notes)
    files, taken = [model, str(out)], inputs
    if asked["outputs"] is not None or asked["fixed"] is not None:
        # The two no longer take the same inputs.
        files, left = [str(out)], {value.name for value in required_inputs(read(str(out)))}
        taken = replace(inputs, named={k: v for k, v in inputs.named.items() if k in left})
    export = {"path": out.name, "format": "ONNX", "size_bytes": fused.size_bytes}
    return _Fused(
        fused.plan, fused.verdict, "It is equal in ONNX Runtime", export,
        (fused.before, fused.after), f"Fused {model}", notes,
        ("bench", *files, "--engines", "onnxruntime", *taken.words()),
    )  # fmt: skip


def _program(
    terminal: Terminal, target: Target, out: Path, inputs: Inputs, asked: dict[str, Any],
    how: FuseOptions,
) -> _Fused:  # fmt: skip
    """Fold an exported program into another, compared before it takes its place."""
    model = target.name
    refuse_for_files(
        target, backend=how.backend, fixed_shapes=how.fixed_shapes or None,
        freeze_inputs=how.freeze_inputs or None, no_check=not how.check or None,
    )  # fmt: skip
    if not is_program(str(out)):
        raise InputError(f"a program is fused into a program; give -o a name.pt2, not {out}")
    program = read_program(model)
    (sample,) = example(model, inputs).values()
    with terminal.progress(f"Fusing {model}"):
        found = reparam.plan(program, **asked)
        fused = found.apply()
        verdict = reparam.verify(program.module(), fused.module(), sample)
        verdict.raise_if_different()
        size = save_program(fused, out)
    export = {"path": out.name, "format": "torch.export", "size_bytes": size}
    follow = ("verify", model, str(out), *inputs.words())
    return _Fused(found, verdict, "The fused program is equal", export, next=follow)


def _tell(terminal: Terminal, done: _Fused, out: Path) -> None:
    """Print what folded, what was left, how far both are apart, the file, and what comes next."""
    if done.counts is None:
        terminal.text(done.plan)
    else:
        terminal.table(done.title, ("", "before", "after"), _rows(done))
        for note in done.plan.notes:
            terminal.hint("Note:", note)
        if left := len(done.plan.refusals):
            places = "place was" if left == 1 else "places were"
            terminal.hint("Note:", f"{left} {places} left as found; reparam plan says why")
    for note in done.notes:
        terminal.hint("Note:", note)
    if done.verdict is not None:
        terminal.done(f"{done.told}: {within(done.verdict)}")
    if isinstance(done.export, ExportResult):
        tell_export(terminal, done.export)
    else:
        terminal.done(f"Wrote {out} ({megabytes(done.export['size_bytes'])})")
    if done.next:
        terminal.hint("Next:", command(*done.next))


def _rows(done: _Fused) -> list[tuple[str, str, str]]:
    """What is executed; of a file, the operations whose number changed, and all of them."""
    before, after = done.counts or ({}, {})
    of_file = isinstance(done.export, dict)
    rows = [
        (kind if of_file else _SPOKEN.get(kind, kind), count, after.get(kind, 0))
        for kind, count in before.items()
        if not of_file or count != after.get(kind, 0)
    ]
    if of_file:
        rows.append(("operations in all", sum(before.values()), sum(after.values())))
    return [(kind, f"{old:,}", f"{new:,}") for kind, old, new in rows]
