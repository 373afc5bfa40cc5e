"""Arguments and options that several commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from reparam._support.files import check_destination
from reparam._support.optional import require
from reparam.cli.command import CHECKPOINT_FLAGS
from reparam.cli.groups import option, words
from reparam.deploy.engines import Format, get_engine
from reparam.deploy.exporting.formats import find_format, suffixes
from reparam.errors import InputError

MOST_CLASSES = 1_000_000
"""More are a slip of the finger, and take the memory of the machine."""
MOST_NUMBERS = 1 << 28
"""Of one input: 1 GiB in float32. What is larger is a slip of the finger."""
MOST_PROCESSES = 256
"""Of one run; so many on one machine help nowhere."""

_MODEL = (
    "repvgg_a0, timm:NAME, torchvision:NAME, hf:FOLDER, ultralytics:FILE, package.module:factory "
    "or net.onnx"
)
_FILE_TO_WRITE = f"File to write; its suffix is the format: {', '.join(suffixes())}."

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=f"{_MODEL}.")]
OutFileOption = Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help=_FILE_TO_WRITE)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--input-size", "--size", metavar="PIXELS", min=1, help="Side of a square example image."
    ),
]
EvaluateOption = Annotated[
    int | None,
    typer.Option("--evaluate", metavar="N", min=1, help="Judge on N held-out images, not all."),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is said about a MODEL beside its name."""

    weights: Path | None = option(
        "Checkpoint to load into MODEL.", "FILE", flags=CHECKPOINT_FLAGS[:2]
    )
    key: str | None = option("Entry of FILE with the weights; found if left.", "NAME")
    strict: bool = option("Refuse weights that do not match in everything.", default=True)
    num_classes: int | None = option(
        "Classes, if not MODEL's default.", "N", min=1, max=MOST_CLASSES
    )

    def __post_init__(self) -> None:
        """Refuse options about a checkpoint where there is none to load."""
        for name, given in (("--key", self.key is not None), ("--no-strict", not self.strict)):
            if given and self.weights is None:
                raise InputError(f"{name} is about a checkpoint; give --weights too")

    def target(self, name: str) -> Target:
        """All that is said about one MODEL."""
        about = {each.name: getattr(self, each.name) for each in fields(ModelOptions)}
        return Target(name=name, **about)


@dataclass(frozen=True, kw_only=True)
class Target(ModelOptions):
    """A MODEL as the command line gives it: its name, and what is said about it."""

    name: str

    def words(self) -> list[str]:
        """The same, as it is typed."""
        return [self.name, *words(self)]

    def holding(self, weights: Path) -> Target:
        """The same MODEL with the weights of another file."""
        return replace(self, weights=weights, key=None, strict=True)


@dataclass(frozen=True)
class Inputs:
    """What was said about the input: a whole shape, the side of square images, shapes by name."""

    shape: tuple[int, ...] | None = None
    size: int | None = None
    named: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def words(self) -> list[str]:
        """The same, as it is typed."""
        given = {"": self.shape} if self.shape is not None else {}
        shapes = [
            word
            for name, shape in {**given, **self.named}.items()
            for word in ("--shape", f"{name}{'=' if name else ''}{','.join(map(str, shape))}")
        ]
        return shapes if self.size is None else [*shapes, "--input-size", str(self.size)]


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """What is said about the example input of a net that takes one."""

    shape: str | None = option("Shape of the example input, batch included.", "N,C,H,W")
    input_size: SizeOption = None

    @property
    def inputs(self) -> Inputs:
        """The two together."""
        return _inputs([] if self.shape is None else [self.shape], self.input_size)


@dataclass(frozen=True, kw_only=True)
class NamedInputOptions:
    """What is said about the example inputs of a net or a file, which may take several."""

    shape: list[str] | None = option(
        "Shape of the example input, batch included; one for each input of an ONNX file.",
        "[NAME=]N,C,H,W",
    )
    input_size: SizeOption = None

    @property
    def inputs(self) -> Inputs:
        """All together."""
        return _inputs(self.shape or [], self.input_size)


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """What of a MODEL is to fold, or to stay at all."""

    where: list[str] | None = option("Fold this part only; * fits anything. Repeatable.", "NAME")
    outputs: list[str] | None = option(
        "Keep this result only: a name or position; dots lead into nested ones. Repeatable.",
        "NAME",
    )
    fix: list[str] | None = option(
        "Fix an input for good: a file.npy, a number, true, false or null. Repeatable.",
        "NAME=VALUE",
    )

    def asked(self) -> dict[str, Any]:
        """What :func:`reparam.plan` takes."""
        fixed: dict[str, Any] = {}
        for text in self.fix or ():
            name, equals, value = text.partition("=")
            if not equals or not name or name in fixed:
                why = "is the second one for it" if name in fixed else "names no value"
                raise InputError(f"--fix {text} {why}; give name=file.npy, or name=0.5")
            fixed[name] = _value(name, value)
        # One name alone asks for that result itself.
        kept = self.outputs
        one = kept[0] if kept and len(kept) == 1 else kept
        return {"where": self.where or None, "outputs": one or None, "fixed": fixed or None}


@dataclass(frozen=True, kw_only=True)
class PixelOptions:
    """How images are normalised, where not as the data set says."""

    mean: str | None = option("Subtracted from images of 0 to 1, with --std.", "R,G,B")
    std: str | None = option("What images are divided by, with --mean.", "R,G,B")


def refuse_for_files(target: Target, **options: object) -> None:
    """Refuse options that say how to build a model, where MODEL is a file that is built."""
    given = {"weights": target.weights, "num_classes": target.num_classes, **options}
    for name, value in given.items():
        if value is not None:
            option = name.replace("_", "-")
            raise InputError(f"{target.name} is a file with its own weights; leave --{option} out")


def check_out(out: Path, backend: str | None = None) -> None:
    """Refuse a path that cannot be written before minutes are spent on what goes there."""
    entry = check_format(out, backend)
    check_destination(out)
    if entry.companion:
        check_destination(out.with_suffix(entry.companion))


def check_format(out: Path, backend: str | None = None) -> Format:
    """Find the format that a suffix names, if what reads it back is here."""
    if out.suffix.lower() not in suffixes():
        known = ", ".join(suffixes())
        raise InputError(f"the suffix {out.suffix!r} of {out} names no format; use one of: {known}")
    entry = find_format(out, backend)
    get_engine(entry.engine).require()
    return entry


def _inputs(texts: list[str], input_size: int | None) -> Inputs:
    named: dict[str, tuple[int, ...]] = {}
    alone = None
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        if name in named or (not equals and alone is not None):
            raise InputError(f"--shape {text} is the second one for the same input; give one each")
        if equals:
            named[name] = _shape(sizes)
        else:
            alone = _shape(sizes)
    return Inputs(shape=alone, size=input_size, named=named)


def _value(name: str, text: str) -> Any:
    """Read a value to fix: an array in a file, or a plain one."""
    if Path(text).suffix.lower() != ".npy":
        try:
            return json.loads(text)
        except ValueError as error:
            raise InputError(
                f"--fix {name}={text} is no value; give a file.npy, a number, true, false or null"
            ) from error
    numpy = require("numpy", extra="deploy", purpose="reading an array")
    try:
        return torch.from_numpy(numpy.load(text, allow_pickle=False))
    except OSError as error:
        raise InputError(f"--fix {name}: cannot read {text}: {error.strerror}") from error
    except (ValueError, TypeError, EOFError) as error:
        msg = f"--fix {name}: {text} is no array of numbers as numpy.save writes it"
        raise InputError(msg) from error


def refuse_names(model: str, inputs: Inputs) -> None:
    """Refuse shapes of inputs by name, where MODEL is no ONNX file."""
    if inputs.named:
        name, shape = next(iter(inputs.named.items()))
        sizes = ",".join(map(str, shape))
        raise InputError(
            f"--shape {name}={sizes} is for an input of an ONNX file, and {model} is none; "
            f"give --shape {sizes}"
        )


def _shape(text: str) -> tuple[int, ...]:
    """Read ``"1,3,224,224"`` or ``"1x3x224x224"``."""
    parts = text.lower().replace("x", ",").split(",")
    try:
        shape = tuple(int(part) for part in parts)
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(
            f"--shape {text!r} is not a shape; give whole numbers from 1 on, as in 1,3,224,224"
        )
    return checked_size(shape)


def checked_size(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape, if the memory has a chance to hold it."""
    if math.prod(shape) > MOST_NUMBERS:
        size = "x".join(map(str, shape))
        raise InputError(
            f"an input of shape {size} has more than {MOST_NUMBERS:,} numbers; give a smaller one"
        )
    return shape
