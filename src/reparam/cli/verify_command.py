"""``reparam verify``: do two models compute the same?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

import reparam
from reparam._support.files import is_there
from reparam.cli.exported_files import (
    is_file,
    is_onnx,
    is_program,
    taken_by,
    verify_files,
    verify_programs,
)
from reparam.cli.notes import warnings_noted
from reparam.cli.options import (
    JsonOption,
    ModelOptions,
    NamedInputOptions,
    refuse_for_files,
    refuse_names,
)
from reparam.cli.targets import Checkpoint, Loaded, Target, example_inputs, load_model
from reparam.cli.terminal import Terminal
from reparam.deploy.engines import Runner, Settings, UnsupportedCaseError, get_engine
from reparam.deploy.engines.parity import FACTORS, Reference
from reparam.deploy.exporting import formats, read_metadata
from reparam.errors import InputError, ReparamError

__all__ = ["verify"]

_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")

ReferenceArgument = Annotated[
    str, typer.Argument(metavar="REFERENCE", help="The model as trained, given like any MODEL.")
]
CandidateArgument = Annotated[
    str,
    typer.Argument(
        metavar="CANDIDATE",
        help="An exported file, a file with the weights of the fused REFERENCE, or a MODEL.",
    ),
]
CandidateWeightsOption = Annotated[
    Path | None,
    typer.Option("--candidate-weights", metavar="FILE", help="Checkpoint for CANDIDATE."),
]


def verify(
    reference: ReferenceArgument,
    candidate: CandidateArgument,
    *,
    about: ModelOptions,
    candidate_weights: CandidateWeightsOption = None,
    given: NamedInputOptions,
    as_json: JsonOption = False,
) -> None:
    """Compare CANDIDATE with REFERENCE on the same input; exit code 1 if they differ.

    The tolerance is measured: a small multiple of the rounding error of REFERENCE itself.
    """
    terminal = Terminal()
    inputs, target = given.inputs, about.target(reference)
    compared: list[int] | None = None
    if is_onnx(reference):
        refuse_for_files(target, candidate_weights=candidate_weights)
        with terminal.progress(f"Comparing {candidate} with {reference}"):
            verdict = verify_files(reference, candidate, inputs)
        origin = reference
    elif is_program(reference):
        refuse_for_files(target, candidate_weights=candidate_weights)
        with terminal.progress(f"Comparing {candidate} with {reference}"):
            verdict = verify_programs(reference, candidate, inputs)
        origin = reference
    else:
        refuse_names(reference, inputs)
        loaded = load_model(target, inputs)
        if is_file(candidate) and is_there(Path(candidate)):
            inputs = taken_by(candidate, inputs)
        sample = example_inputs(loaded, inputs)
        with terminal.progress(f"Comparing {candidate} with {reference}"), warnings_noted(terminal):
            run = _runnable(loaded, candidate, candidate_weights, about.num_classes)
            allowed = _allowed(terminal, loaded, candidate, sample)
            verdict = reparam.verify(loaded.model, run, sample, tolerance=allowed)
        origin, compared = loaded.origin, list(sample.shape)
    if as_json:
        terminal.json(
            {
                "reference": reference,
                "candidate": candidate,
                "shape": compared,
                **asdict(verdict),
                "ok": verdict.ok,
            }
        )
    elif verdict.ok:
        agreement = "" if verdict.agreement is None else f", top-1 {100 * verdict.agreement:.0f} %"
        terminal.done(
            f"{candidate} is equal to {origin}: largest difference {verdict.max_abs:.1e}, "
            f"where rounding explains {verdict.tolerance:.1e}{agreement}"
        )
        size = "" if compared is None else f" of shape {'x'.join(map(str, compared))}"
        terminal.hint("Compared on:", f"random inputs{size}")
    verdict.raise_if_different()


def _runnable(
    reference: Loaded,
    candidate: str,
    weights: Path | None,
    num_classes: int | None,
) -> Callable[..., Any]:
    """What CANDIDATE stands for, as something that can be called with the inputs."""
    path = Path(candidate)
    suffix = path.suffix.lower()
    if ":" in candidate or not suffix:
        checkpoint = None if weights is None else Checkpoint(weights)
        return load_model(Target(candidate, checkpoint, num_classes)).model
    if not is_there(path):
        raise InputError(f"there is no file {candidate}; give an exported file or a MODEL")
    if weights is not None:
        raise InputError(
            f"{candidate} is a file with its own weights; leave --candidate-weights out"
        )
    if suffix in _WEIGHTS:
        return reparam.load_fused(reference.model, path)
    return _exported(path)


def _allowed(terminal: Terminal, reference: Loaded, candidate: str, sample: Tensor) -> float | None:
    """What rounding explains in the type of a file, where that is not the reference's."""
    if not is_file(candidate) or Path(candidate).suffix.lower() in _WEIGHTS:
        return None
    precision = read_metadata(candidate).get("precision", "fp32")
    if precision == "int8":
        terminal.note(
            f"note: {Path(candidate).name} is in eight bits, which is more than rounding; what it "
            "costs on data, reparam quantize says"
        )
    if precision == "fp32" or precision not in FACTORS:
        return None
    return Reference(reference.model, (sample,)).allowed(precision)


def _exported(path: Path) -> Callable[..., Any]:
    """The file in the first engine of its suffix that can read it."""
    entries = [entry for entry in formats() if entry.suffix == path.suffix.lower()]
    if not entries:
        known = ", ".join(dict.fromkeys((*(entry.suffix for entry in formats()), *_WEIGHTS)))
        raise InputError(
            f"{path.name} has a suffix that cannot be compared; those that can: {known}"
        )
    objections = []
    for name in dict.fromkeys(entry.engine for entry in entries):
        engine = get_engine(name)
        engine.require()
        try:
            runner = engine.load(path, Settings())
        except UnsupportedCaseError as objection:
            objections.append(str(objection))
        except ReparamError:
            raise
        except Exception as error:  # each engine has errors of its own for broken files
            raise InputError(f"{path} cannot be read by {name}: {_first_line(error)}") from error
        else:
            return partial(_run, path, runner)
    raise InputError(f"no engine reads {path.name}: {'; '.join(objections)}")


def _run(path: Path, runner: Runner, *inputs: Tensor) -> list[Tensor]:
    try:
        return runner.run(inputs)
    except ReparamError:
        raise
    except Exception as error:
        shapes = ", ".join("x".join(map(str, value.shape)) for value in inputs)
        raise InputError(
            f"{path} does not run on inputs of shape {shapes}: {_first_line(error)}; give the "
            "shape that it takes with --shape"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
