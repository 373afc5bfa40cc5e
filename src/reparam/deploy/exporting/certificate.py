"""A certificate in a file: what it was proven equal to, and that its content is still the same."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reparam._support.arguments import PATH, takes
from reparam._support.files import atomic_path, is_there
from reparam._support.optional import require
from reparam.deploy.engines.pt2_writer import METADATA_FILE
from reparam.deploy.exporting.metadata import KEY_OF_CERTIFICATE, read_metadata
from reparam.diffing import BOUND, diff
from reparam.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from reparam.diffing.reading import Network

__all__ = ["Certificate", "certify", "check_certificate"]

_SUFFIXES = (".onnx", ".pt2", ".safetensors")


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

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        if self.outcome == "equal":
            return (
                f"proven equal to {self.reference[:12]}: {self.numbers:,} numbers within "
                f"{self.worst:.0%} of {self.bound} (inputs {shapes})"
            )
        return (
            f"sampled against {self.reference[:12]} (inputs {shapes}); {self.proven:.0%} of its "
            f"operations are proven, and the rest is not: {self.why}"
        )


@takes(path=PATH)
def certify(
    reference: Network,
    path: str | os.PathLike[str],
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    *,
    model: torch.nn.Module | None = None,
) -> Certificate:
    """Compare a file with what it was made from, and write into the file what was shown.

    The file is compared by :func:`reparam.diff`; a ``.safetensors`` file holds weights alone, so
    that ``model``, whose weights it must hold, is compared in its place.

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
    from reparam import __version__

    file = _known(path)
    if file.suffix == ".safetensors" and model is None:
        raise InputError(f"{file.name} holds weights alone; give the model that they are of")
    found = diff(reference, file if model is None else model, example_inputs)
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
        _hash_of(reference),
        content_hash(file),
        __version__,
    )
    _add_metadata(file, {KEY_OF_CERTIFICATE: json.dumps(asdict(made))})
    return made


@takes(path=PATH)
def check_certificate(path: str | os.PathLike[str]) -> Certificate | None:
    """Return what a file says was shown of it, if its content is still what that was shown of.

    Returns:
        None where the file says nothing of that kind.

    Raises:
        InputError: Its content is another than the one that was compared.

    """
    file = _known(path)
    held = read_metadata(file).get("certificate")
    if held is None:
        return None
    shapes = tuple(tuple(shape) for shape in held["shapes"])
    certificate = replace(Certificate(**held), shapes=shapes)
    found = content_hash(file)
    if found != certificate.content:
        raise InputError(
            f"{file.name} has been changed since it was compared: its content has the hash "
            f"{found[:12]}, and its certificate is of {certificate.content[:12]}; compare it again "
            f"with `reparam diff`"
        )
    return certificate


def _known(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if file.suffix not in _SUFFIXES:
        raise InputError(f"{file.name} holds no certificate; kinds that do: {', '.join(_SUFFIXES)}")
    if not is_there(file):
        raise InputError(f"there is no file {file.name!r} in {file.parent}")
    return file


# ------------------------------------------------------------------ hashes


def content_hash(file: Path) -> str:
    """SHA-256 of everything in a file but what it says about itself."""
    parts = {".onnx": _in_onnx, ".pt2": _in_pt2, ".safetensors": _in_safetensors}[file.suffix]
    return _digest(parts(file))


def _hash_of(network: Network) -> str:
    if isinstance(network, (str, os.PathLike)):
        return content_hash(Path(network))
    if hasattr(network, "graph") and hasattr(network, "opset_import"):
        return _digest(_in_graph(network))
    return _digest(
        part
        for name, value in sorted(network.state_dict().items())
        for part in (f"{name} {value.dtype} {tuple(value.shape)}".encode(), _bytes(value))
    )


def _digest(parts: Iterator[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


def _bytes(value: torch.Tensor) -> bytes:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def _in_onnx(file: Path) -> Iterator[bytes]:
    onnx = require("onnx", extra="deploy", purpose="reading ONNX files")
    return _in_graph(onnx.load(file))


def _in_graph(model: Any) -> Iterator[bytes]:
    helper = require("onnx.numpy_helper", extra="deploy", purpose="reading ONNX files")
    rest = type(model)()
    rest.CopyFrom(model)
    del rest.metadata_props[:]
    del rest.graph.initializer[:]
    yield rest.SerializeToString(deterministic=True)
    for entry in model.graph.initializer:
        yield f"{entry.name} {entry.data_type} {list(entry.dims)}".encode()
        yield helper.to_array(entry).tobytes()


def _in_pt2(file: Path) -> Iterator[bytes]:
    with zipfile.ZipFile(file) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith(METADATA_FILE):
                yield name.encode()
                yield archive.read(name)


def _in_safetensors(file: Path) -> Iterator[bytes]:
    header, rest = _split(file.read_bytes())
    header.pop("__metadata__", None)
    yield json.dumps(header, sort_keys=True).encode()
    yield rest


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and weights of a ``.safetensors`` file, which begins with the size of the header."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


# ------------------------------------------------------------------ metadata


def _add_metadata(file: Path, more: Mapping[str, str]) -> None:
    """Write the file again with more metadata, and the same content."""
    write = {".onnx": _onnx_with, ".pt2": _pt2_with, ".safetensors": _safetensors_with}
    with atomic_path(file) as temporary:
        write[file.suffix](file, temporary, more)


def _onnx_with(file: Path, out: Path, more: Mapping[str, str]) -> None:
    onnx = require("onnx", extra="deploy", purpose="writing ONNX files")
    model = onnx.load(file, load_external_data=False)
    held = {entry.key: entry.value for entry in model.metadata_props} | dict(more)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, held)
    out.write_bytes(model.SerializeToString())


def _safetensors_with(file: Path, out: Path, more: Mapping[str, str]) -> None:
    header, rest = _split(file.read_bytes())
    header["__metadata__"] = header.get("__metadata__", {}) | dict(more)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write_bytes(len(text).to_bytes(8, "little") + text + rest)


def _pt2_with(file: Path, out: Path, more: Mapping[str, str]) -> None:
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(out, "w") as written:
        root = archive.namelist()[0].partition("/")[0]
        name = next((each for each in archive.namelist() if each.endswith(METADATA_FILE)), None)
        held = {} if name is None else json.loads(archive.read(name))
        for entry in archive.infolist():
            if entry.filename != name:
                written.writestr(entry, archive.read(entry))
        written.writestr(name or f"{root}/extra/{METADATA_FILE}", json.dumps(held | dict(more)))
