"""Exported files as MODEL: told from names, and the shapes that they take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reparam._support.optional import require
from reparam.cli.options import Inputs, checked_size
from reparam.cli.targets import SEED, SIZE
from reparam.deploy.engines import declared_sizes_of
from reparam.deploy.engines.pytorch import is_package, load_program
from reparam.deploy.exporting.formats import suffixes
from reparam.errors import InputError
from reparam.frontends.onnx.inputs import declared_sizes, required_inputs
from reparam.fusing.onnx_file import read_onnx_file
from reparam.fusing.onnx_samples import input_sizes, random_input

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import ModelProto
    from torch.export import ExportedProgram


def is_onnx(name: str) -> bool:
    """Whether a MODEL is an ONNX file.

    >>> is_onnx("net.onnx"), is_onnx("timm:resnet18")
    (True, False)
    """
    return Path(name).suffix.lower() == ".onnx"


def is_program(name: str) -> bool:
    """Whether a MODEL is a program of torch.export.

    >>> is_program("net.pt2"), is_program("net.onnx")
    (True, False)
    """
    return ":" not in name and Path(name).suffix.lower() == ".pt2"


def read_program(name: str) -> ExportedProgram:
    """Read a program of torch.export."""
    path = Path(name)
    if not path.is_file():
        raise InputError(f"there is no file {path.name} in {path.parent}")
    if is_package(path):
        raise InputError(
            f"{path.name} holds machine code (AOTInductor), in which nothing folds; give the "
            f"program that it was compiled from"
        )
    return load_program(path)


def is_file(name: str) -> bool:
    """Whether a MODEL is an exported file."""
    return ":" not in name and Path(name).suffix.lower() in suffixes()


def read(name: str) -> ModelProto:
    """Read a file, having asked for the package that reads it."""
    require("onnx", extra="deploy", purpose="Reading ONNX files")
    return read_onnx_file(name)


def input_shapes(name: str, model: ModelProto, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """What --shape and --input-size say about the inputs of a file; empty if nothing."""
    declared = {value.name: declared_sizes(value) for value in required_inputs(model)}
    found = dict(inputs.named)
    if inputs.shape is not None:
        if len(declared) != 1:
            names = ", ".join(declared)
            raise InputError(
                f"{name} has {len(declared)} inputs ({names}); give a shape by name, as in "
                f"--shape {next(iter(declared), 'NAME')}={','.join(map(str, inputs.shape))}"
            )
        found |= dict.fromkeys(declared, inputs.shape)
    if inputs.size is not None:
        for key, sizes in declared.items():
            if key not in found and sizes:
                found[key] = _shape(name, sizes, Inputs(size=inputs.size))
    return found


def example(name: str, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Inputs for a file, by name where it has several: of the shapes that it declares or was asked.

    Sizes that are left open are 1 for the batch and 224 pixels.
    """
    generator = torch.Generator().manual_seed(SEED)
    if not is_onnx(name):
        if inputs.named:
            key = next(iter(inputs.named))
            raise InputError(f"--shape {key}=... is for an input of an ONNX file; {name} is none")
        sizes, side = declared_sizes_of(Path(name)), inputs.size or SIZE
        shape = _shape(name, sizes, inputs) if sizes else inputs.shape or (1, 3, side, side)
        return {"": torch.randn(checked_size(shape), generator=generator)}
    model = read(name)
    declared = {value.name: value for value in required_inputs(model)}
    given = input_shapes(name, model, replace(inputs, size=None))
    unknown = next((key for key in given if key not in declared), None)
    if unknown is not None:
        raise InputError(f"{name} has no input {unknown!r}; its inputs are {', '.join(declared)}")
    return {
        key: random_input(
            value,
            checked_size(_shape(name, input_sizes(model, value), _of(inputs, given.get(key)))),
            generator,
        )
        for key, value in declared.items()
    }


def _of(inputs: Inputs, shape: tuple[int, ...] | None) -> Inputs:
    """What was said about one of several inputs."""
    return Inputs(shape=shape, size=None if shape else inputs.size)


def taken_by(name: str, inputs: Inputs) -> Inputs:
    """What was said about the input, and what a file says that takes one size alone."""
    sizes = _only_input(name)
    if not any(isinstance(size, int) for size in (sizes or [])[2:]):
        return inputs
    return Inputs(shape=_shape(name, sizes or [], inputs))


def fixed_batch(name: str) -> int | None:
    """The number of images that a file takes at a call, if it takes no other."""
    sizes = _only_input(name)
    return sizes[0] if sizes and isinstance(sizes[0], int) else None


def _only_input(name: str) -> Sequence[int | str | None] | None:
    """The sizes that a file declares of its input; None if it has several or does not say."""
    if not is_onnx(name):
        return declared_sizes_of(Path(name))
    declared = required_inputs(read(name))
    return declared_sizes(declared[0]) if len(declared) == 1 else None


def _shape(name: str, sizes: Sequence[int | str | None], inputs: Inputs) -> tuple[int, ...]:
    """What was asked for, and what a file declares where nothing was."""
    asked = inputs.shape or (None, None, *(inputs.size,) * (len(sizes) - 2))[: len(sizes)]
    takes = [size if isinstance(size, int) else None for size in sizes]
    if len(asked) != len(takes) or any(
        want not in {None, have} for want, have in zip(asked, takes, strict=True) if have
    ):
        shown = ",".join(str(size or "N") for size in takes)
        raise InputError(
            f"{name} takes inputs of the shape {shown} (N: any number); give such a --shape, or "
            f"leave it and --input-size out"
        )
    return tuple(
        want or have or (SIZE if axis else 1)
        for axis, (want, have) in enumerate(zip(asked, takes, strict=True))
    )
