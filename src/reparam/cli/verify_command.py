"""``reparam verify``: do two models compute the same?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import reparam
from reparam._support.files import is_there
from reparam.cli.exported_files import (
    example,
    input_shapes,
    is_file,
    is_onnx,
    is_program,
    read,
    read_program,
    taken_by,
)
from reparam.cli.groups import argument, option
from reparam.cli.options import (
    Inputs,
    JsonOption,
    ModelOptions,
    NamedInputOptions,
    Target,
    refuse_for_files,
    refuse_names,
)
from reparam.cli.targets import Loaded, example_inputs, load_model
from reparam.cli.telling import as_stored, within
from reparam.cli.terminal import Terminal
from reparam.deploy.engines import Runner, Settings, UnsupportedCaseError, get_engine
from reparam.deploy.engines.parity import FACTORS, Reference
from reparam.deploy.exporting import formats, read_metadata
from reparam.deploy.exporting.formats import suffixes
from reparam.errors import InputError, ReparamError
from reparam.fusing.onnx_compare import compare_onnx_files

_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def verify(
    reference: str = argument("The model as trained, given like any MODEL.", "REFERENCE"),
    candidate: str = argument(
        "An exported file, a file with the weights of the fused REFERENCE, or a MODEL.",
        "CANDIDATE",
    ),
    *,
    about: ModelOptions,
    candidate_weights: Path | None = option("Checkpoint for CANDIDATE.", "FILE"),
    given: NamedInputOptions,
    as_json: JsonOption = False,
) -> None:
    """Compare CANDIDATE with REFERENCE on the same input; exit code 1 if they differ.

    The tolerance is measured: a small multiple of the rounding error of REFERENCE itself.
    """
    terminal = Terminal(as_json=as_json)
    inputs, target = given.inputs, about.target(reference)
    origin, sample = reference, None
    title = f"Comparing {candidate} with {reference}"
    if is_onnx(reference) or is_program(reference):
        refuse_for_files(target, candidate_weights=candidate_weights)
        with terminal.progress(title):
            verdict = _files(reference, candidate, inputs)
    else:
        refuse_names(reference, inputs)
        loaded = load_model(target, inputs)
        if is_file(candidate) and is_there(Path(candidate)):
            inputs = taken_by(candidate, inputs)
        origin, sample = loaded.origin, example_inputs(loaded, inputs)
        with terminal.progress(title):
            run = _runnable(loaded, candidate, candidate_weights, about.num_classes)
            allowed = _allowed(terminal, loaded, candidate, sample)
            verdict = reparam.verify(loaded.model, run, sample, tolerance=allowed)
    shape = None if sample is None else list(sample.shape)
    names = {"reference": reference, "candidate": candidate, "shape": shape}
    terminal.json({**names, **as_stored(verdict)})
    if verdict.ok:
        agreement = "" if verdict.agreement is None else f", top-1 {100 * verdict.agreement:.0f} %"
        terminal.done(f"{candidate} is equal to {origin}: {within(verdict)}{agreement}")
        size = "" if shape is None else f" of shape {'x'.join(map(str, shape))}"
        terminal.hint("Compared on:", f"random inputs{size}")
    verdict.raise_if_different()


def _files(reference: str, candidate: str, inputs: Inputs) -> reparam.Verdict:
    """Compare two ONNX files in ONNX Runtime, or two programs of torch.export."""
    for is_one, kind in ((is_onnx, "an ONNX file"), (is_program, "an exported program")):
        if is_one(reference) and not is_one(candidate):
            raise InputError(
                f"{reference} is {kind}, and so must {candidate} be; or give the MODEL first "
                f"and the file second, as in reparam verify MODEL {reference}"
            )
    if is_program(reference):
        ours, theirs = (read_program(name).module() for name in (reference, candidate))
        return reparam.verify(ours, theirs, tuple(example(reference, inputs).values()))
    model = read(reference)
    read(candidate)
    shapes = input_shapes(reference, model, inputs)
    return compare_onnx_files(Path(reference), Path(candidate), model, shapes)


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
        other = Target(name=candidate, weights=weights, num_classes=num_classes)
        return load_model(other).model
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
        known = ", ".join(dict.fromkeys((*suffixes(), *_WEIGHTS)))
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
        why = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{path} does not run on inputs of shape {shapes}: {why}; give the shape that it takes "
            "with --shape"
        ) from error
