"""What an exported file says about itself."""

from __future__ import annotations

import importlib.metadata
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam._support import optional
from reparam._support.arguments import PATH, takes
from reparam._support.files import is_there
from reparam.deploy.engines.aoti import package_metadata
from reparam.deploy.engines.coreml import package_notes
from reparam.deploy.engines.ov_writer import RT_INFO
from reparam.deploy.engines.pt2_writer import METADATA_FILE
from reparam.deploy.engines.pytorch import is_package
from reparam.errors import InputError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

    from reparam.deploy.exporting.formats import Format

__all__ = ["FORMS", "describe_model", "read_metadata", "write_sidecar"]

FORMS = ("train", "fused")
_PREFIX = "reparam."
_PACKAGES = {
    ".onnx": ("onnx", "onnxscript"),
    ".xml": ("openvino",),
    ".safetensors": ("safetensors",),
    ".pte": ("executorch",),
    ".param": ("ncnn", "pnnx"),
    ".tflite": ("litert-torch", "ai-edge-litert"),
    ".mlpackage": ("coremltools",),
    ".engine": ("tensorrt",),
}
"""The packages that write and read the files of each suffix."""


def describe_model(
    model: nn.Module,
    entry: Format,
    *,
    form: str,
    source: str,
    inputs: Sequence[torch.Tensor],
    notes: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the metadata of a file: keys with a common prefix, values that are text."""
    from reparam import __version__

    packages = ("torch", *_PACKAGES.get(entry.suffix, ()))
    versions = {name: importlib.metadata.version(name) for name in packages}
    content = {
        **(notes or {}),
        "version": __version__,
        "form": form,
        "source": source,
        "inputs": json.dumps([[str(x.dtype).removeprefix("torch."), *x.shape] for x in inputs]),
        "parameters": str(sum(p.numel() for p in model.parameters())),
        "written_with": json.dumps(versions, sort_keys=True),
    }
    if entry.layout:
        content["layout"] = entry.layout
    if entry.precision != "fp32":
        content["precision"] = entry.precision
    return {_PREFIX + key: value for key, value in content.items()}


@takes(path=PATH)
def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a file written by :func:`reparam.export` says about itself.

    Returns:
        ``version`` of this package, ``form`` (``"train"`` or ``"fused"``), ``source`` (what the
        model was made from), ``inputs`` (type and sizes of each that it was checked on),
        ``parameters`` (their number), ``written_with`` (versions by package), ``pruned`` (channels
        in and out by layer, if channels are gone), ``layout`` (of images, where the format knows
        two), ``precision`` (if it is not float32), and notes of whoever wrote. Empty if the file
        says nothing.

    Raises:
        InputError: The file does not exist, or is of a format that holds no metadata.
        MissingExtraError: The package that reads the format is not installed.
    """
    file = Path(path)
    if not is_there(file):
        raise InputError(f"there is no file {file.name!r} in {file.parent}")
    readers = {
        ".onnx": _read_onnx,
        ".pt2": _read_pt2,
        ".safetensors": _read_safetensors,
        ".xml": _read_openvino,
        ".mlpackage": package_notes,
        **dict.fromkeys((".engine", ".param", ".pte", ".tflite"), _read_sidecar),
    }
    if file.suffix.lower() not in readers:
        known = ", ".join(readers)
        raise InputError(
            f"{file.name!r} holds no metadata that can be read; formats that do: {known}"
        )
    found = readers[file.suffix.lower()](file)
    content: dict[str, Any] = {
        key.removeprefix(_PREFIX): value for key, value in found.items() if key.startswith(_PREFIX)
    }
    for key in ("written_with", "inputs", "pruned"):
        if key in content:
            content[key] = json.loads(content[key])
    if "parameters" in content:
        content["parameters"] = int(content["parameters"])
    return content


def write_sidecar(file: Path, metadata: Mapping[str, str]) -> None:
    """Write metadata beside a file of a format that holds none."""
    _sidecar(file).write_text(json.dumps(dict(metadata), indent=1) + "\n", encoding="utf-8")


def _sidecar(file: Path) -> Path:
    return file.with_name(file.name + ".json")


def _read_sidecar(file: Path) -> dict[str, str]:
    beside = _sidecar(file)
    if not beside.is_file():
        return {}
    content: dict[str, str] = json.loads(beside.read_text(encoding="utf-8"))
    return content


def _read_onnx(file: Path) -> dict[str, str]:
    onnx = optional.require("onnx", extra="deploy", purpose="reading ONNX")
    model = onnx.load(str(file), load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}


def _read_safetensors(file: Path) -> dict[str, str]:
    safetensors = optional.require("safetensors", extra="deploy", purpose="reading .safetensors")
    with safetensors.safe_open(str(file), framework="pt") as handle:
        return dict(handle.metadata() or {})


def _read_pt2(file: Path) -> dict[str, str]:
    if is_package(file):
        return package_metadata(file)
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith(METADATA_FILE):
                content: dict[str, str] = json.loads(archive.read(name))
                return content
    return {}


def _read_openvino(file: Path) -> dict[str, str]:
    openvino = optional.require("openvino", extra="deploy", purpose="reading OpenVINO IR")
    model = openvino.Core().read_model(str(file))
    if not model.has_rt_info([RT_INFO]):
        return {}
    return {key: str(value) for key, value in model.get_rt_info([RT_INFO]).value.items()}
