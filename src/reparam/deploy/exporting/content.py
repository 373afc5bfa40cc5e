"""The content of a file apart from what it says about itself, and how that is changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reparam._support.files import atomic_path, is_there
from reparam._support.optional import require
from reparam.deploy.engines.ov import RT_INFO
from reparam.deploy.engines.pytorch import METADATA_FILE, is_package
from reparam.deploy.exporting.formats import formats
from reparam.deploy.exporting.metadata import add_to_sidecar
from reparam.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reparam.diffing.reading import Network


def content_hash(file: Path) -> str:
    """SHA-256 of everything in a file, and in one beside it, but what it says about itself.

    Raises:
        InputError: It cannot be read.

    """
    parts = _IN.get(file.suffix, _in_any)
    try:
        return _digest(parts(file))
    except Exception as error:
        raise InputError(f"{file.name} cannot be read as {file.suffix}: {error}") from error


def hash_of(network: Network) -> str:
    """SHA-256 of the weights of a network, or of the content of a file."""
    if isinstance(network, (str, os.PathLike)):
        return content_hash(Path(network))
    if hasattr(network, "graph") and hasattr(network, "opset_import"):
        return _digest(_in_graph(network))
    held: Any = network.state_dict
    state = held() if callable(held) else held | getattr(network, "constants", {})
    return _digest(
        part
        for name, value in sorted(state.items())
        for part in (f"{name} {value.dtype} {tuple(value.shape)}".encode(), as_bytes(value))
    )


def known(path: str | os.PathLike[str]) -> Path:
    """The path of a file whose kind can hold a certificate.

    Raises:
        InputError: It is of another kind, or there is none.

    """
    file = Path(path)
    if file.suffix not in KEPT_IN:
        raise InputError(f"{file.name} holds no certificate; kinds that do: {', '.join(KEPT_IN)}")
    if not is_there(file):
        raise InputError(f"there is no file {file.name!r} in {file.parent}")
    return file


def add_metadata(file: Path, more: Mapping[str, str]) -> None:
    """Write a file, or what lies beside one that holds none, again with more metadata.

    Raises:
        InputError: It is machine code, into which metadata is compiled.

    """
    if file.suffix not in _WITH:
        add_to_sidecar(file, more)
        return
    if file.suffix == ".pt2" and is_package(file):
        raise InputError(f"{file.name} is machine code, to which nothing can be added")
    with atomic_path(file) as temporary:
        _WITH[file.suffix](file, temporary, more)


def as_bytes(value: torch.Tensor) -> bytes:
    """The bytes of a tensor, as they would be stored."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def _digest(parts: Iterator[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()


# ------------------------------------------------------------------ contents


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


def _in_openvino(file: Path) -> Iterator[bytes]:
    yield _OWN.sub("", file.read_text(encoding="utf-8")).encode()
    yield file.with_suffix(".bin").read_bytes()


def _in_any(file: Path) -> Iterator[bytes]:
    """Of a format without metadata, all; and the file beside it, where it has one."""
    yield file.read_bytes()
    for companion in {entry.companion for entry in formats() if entry.suffix == file.suffix}:
        if companion is not None:
            yield file.with_suffix(companion).read_bytes()


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and weights of a ``.safetensors`` file, which begins with the size of the header."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


# ------------------------------------------------------------------ metadata


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


def _openvino_with(file: Path, out: Path, more: Mapping[str, str]) -> None:
    text = file.read_text(encoding="utf-8")
    for key in more:
        text = re.sub(rf"\s*<{re.escape(key)} value=\"[^\"]*\"\s*/>", "", text)
    told = "".join(f'<{key} value="{escape(value)}" />' for key, value in more.items())
    head, end, tail = text.rpartition(f"</{RT_INFO}>")
    if not end:
        raise InputError(f"{file.name} was not written by this package: it holds no metadata of it")
    out.write_text(f"{head}{told}{end}{tail}", encoding="utf-8")


_OWN = re.compile(rf"<{RT_INFO}>.*</{RT_INFO}>", re.DOTALL)
"""What an OpenVINO file says about itself; signs in values are escaped there."""

_IN: dict[str, Callable[[Path], Iterator[bytes]]] = {
    ".onnx": _in_onnx, ".pt2": _in_pt2, ".safetensors": _in_safetensors, ".xml": _in_openvino,
}  # fmt: skip
_WITH: dict[str, Callable[[Path, Path, Mapping[str, str]], None]] = {
    ".onnx": _onnx_with, ".pt2": _pt2_with, ".safetensors": _safetensors_with,
    ".xml": _openvino_with,
}  # fmt: skip

KEPT_IN = (*_WITH, *(
    entry.suffix for entry in formats() if entry.suffix not in _WITH and not entry.read_metadata
))  # fmt: skip
"""Suffixes of files that hold a certificate, themselves or in the file beside them."""
