"""A certificate in a file: what it was proven equal to, and that its content is still the same."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from reparam._support.arguments import MODULE, NONE, PATH, TENSORS, takes
from reparam._support.optional import require
from reparam._support.records import decode
from reparam._support.untouched import leaves_untouched
from reparam._support.version import __version__
from reparam.deploy.engines.pytorch import is_package
from reparam.deploy.exporting.content import (
    add_metadata,
    as_bytes,
    content_hash,
    hash_of,
    known,
)
from reparam.deploy.exporting.metadata import KEY_OF_CERTIFICATE, read_metadata
from reparam.diffing import BOUND
from reparam.diffing.comparing import compared
from reparam.diffing.reading import open_side
from reparam.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reparam.diffing.difference import Difference
    from reparam.diffing.reading import Network

_READ = (".onnx", ".pt2")
"""Kinds of files that are compared themselves."""


@dataclass(frozen=True)
class Certificate:
    """What was shown of a file, and of which content of it.

    Attributes:
        outcome: ``"equal"``: proven, number by number. ``"not shown"``: samples agree, and only
            ``proven`` of the operations could be matched.
        numbers: Numbers compared.
        worst: Their largest difference, as a share of ``bound``.
        proven: Share of the operations that were matched.
        bound: What rounding explains.
        shapes: Shapes of the inputs that this holds for.
        why: What was not shown, if anything.
        reference: SHA-256 of the weights of what the file was compared with.
        content: SHA-256 of the file without its metadata.
        version: Version of this package.
        of: ``"file"``: the file itself was compared. ``"weights"``: the module, whose weights the
            file holds number for number. ``"model"``: the module that it was written from; of the
            file itself, only ``sampled`` tells.
        sampled: What running it on samples showed, when it was written and when it was compared.

    """

    outcome: str
    numbers: int
    worst: float
    proven: float
    bound: str
    shapes: tuple[tuple[int, ...], ...]
    why: str
    reference: str
    content: str
    version: str
    of: str = "file"
    sampled: str = ""

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        told = "written from a model " if self.of == "model" else ""
        if self.outcome == "equal":
            told += (
                f"proven equal to {self.reference[:12]}: {self.numbers:,} numbers within "
                f"{self.worst:.0%} of {self.bound} (inputs {shapes})"
            )
        else:
            told += (
                f"sampled against {self.reference[:12]} (inputs {shapes}); {self.proven:.0%} of "
                f"its operations are proven, and the rest is not: {self.why}"
            )
        if not self.sampled:
            return told
        return f"{told}; {'the file itself' if self.of == 'model' else 'it'} was {self.sampled}"


@takes(path=PATH, example_inputs=TENSORS | NONE, model=MODULE | NONE)
@leaves_untouched
def certify(
    reference: Network,
    path: str | os.PathLike[str],
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    *,
    model: torch.nn.Module | None = None,
) -> Certificate:
    """Compare a file with what it was made from, and write into the file what was shown.

    The file is compared by :func:`reparam.diff`; a ``.safetensors`` file holds weights alone, so
    that ``model``, whose weights it must hold, is compared in its place. Files of other kinds are
    certified when they are written, by ``reparam.export(..., certify=True)``.

    Args:
        reference: What the file was made from: a module in eval mode, a program, or a file.
        path: An ``.onnx``, ``.pt2`` or ``.safetensors`` file; its metadata is replaced, whole or
            not at all.
        example_inputs: A tensor or tensors of the shape to compare for; taken from the file where
            it declares them.
        model: The module that the weights of a ``.safetensors`` file are of.

    Raises:
        InputError: The file is of no such kind, or computes something else.

    """
    file = known(path)
    if file.suffix == ".safetensors":
        if model is None:
            raise InputError(f"{file.name} holds weights alone; give the model that they are of")
        _check_weights(file, model)
    elif file.suffix not in _READ or is_package(file):
        raise InputError(
            f"{file.name} cannot be compared any more; reparam.export(..., certify=True) "
            f"certifies such files as it writes them"
        )
    return certified(reference, file, example_inputs, model)


def certified(
    reference: Network,
    file: Path,
    example_inputs: Any,
    model: torch.nn.Module | None,
    sampled: str = "",
) -> Certificate:
    """Write into a file what can be shown of it, or of the module that it was written from.

    Raises:
        InputError: It computes something else.

    """
    itself = file.suffix in _READ and not is_package(file)
    of = "file" if itself else "weights" if file.suffix == ".safetensors" else "model"
    made_of: Any = file if itself else model
    side = open_side(made_of, file.name if itself else "model")
    found = compared(open_side(reference, "reference"), side, example_inputs)
    if found.outcome == "different":
        raise InputError(f"{file.name} is not the same function, so it is not certified: {found}")
    made = Certificate(
        found.outcome,
        found.numbers,
        found.worst,
        found.proven,
        BOUND,
        found.shapes,
        "" if found.outcome == "equal" else " ".join(str(found).split()),
        hash_of(reference),
        content_hash(file),
        __version__,
        of,
        "; ".join(filter(None, (sampled, _run(found)))),
    )
    add_metadata(file, {KEY_OF_CERTIFICATE: json.dumps(asdict(made))})
    return made


def _run(found: Difference) -> str:
    """What running both showed, each in its own runtime."""
    if found.apart is None:
        return ""
    return f"run on one input, with outputs {found.apart:.1e} of the largest from the reference's"


def _check_weights(file: Path, model: torch.nn.Module) -> None:
    safetensors = require("safetensors.torch", extra="deploy", purpose="reading .safetensors")
    try:
        held = safetensors.load_file(str(file))
    except Exception as error:
        raise InputError(f"{file.name} cannot be read as .safetensors: {error}") from error
    state = model.state_dict()
    other = set(held) ^ set(state)
    other |= {name for name in held.keys() & state.keys() if not _same(held[name], state[name])}
    if other:
        names = ", ".join(sorted(other)[:3])
        raise InputError(f"{file.name} does not hold the weights of the model: not so at {names}")


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    same = first.dtype == second.dtype and first.shape == second.shape
    return same and as_bytes(first) == as_bytes(second)


@takes(path=PATH)
def check_certificate(path: str | os.PathLike[str]) -> Certificate | None:
    """Return what a file says was shown of it, if its content is still what that was shown of.

    Returns:
        None where the file says nothing of that kind.

    Raises:
        InputError: Its content is another than the one that was compared.

    """
    file = known(path)
    held = read_metadata(file).get("certificate")
    if held is None:
        return None
    certificate = decode(Certificate, held, f"the certificate of {file.name}")
    found = content_hash(file)
    if found != certificate.content:
        raise InputError(
            f"{file.name} has been changed since it was compared: its content has the hash "
            f"{found[:12]}, and its certificate is of {certificate.content[:12]}; compare it again "
            f"with `reparam diff`"
        )
    return certificate
