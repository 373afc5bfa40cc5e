"""The deployment formats: for each, the function that writes it and the engine that reads it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reparam._support import optional
from reparam.deploy.engines import Settings, get_engine
from reparam.deploy.engines.aoti import write_aoti
from reparam.deploy.engines.coreml import write_coreml
from reparam.deploy.engines.executorch import write_executorch
from reparam.deploy.engines.litert import write_litert
from reparam.deploy.engines.ncnn import write_ncnn
from reparam.deploy.engines.onnx_writer import write_onnx
from reparam.deploy.engines.ov_writer import write_openvino
from reparam.deploy.engines.pt2_writer import write_pt2
from reparam.deploy.engines.pytorch import TorchRunner
from reparam.deploy.engines.tensorrt import write_tensorrt
from reparam.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from reparam.deploy.engines import Runner
    from reparam.deploy.engines.program import Axes, Conversion

__all__ = ["Format", "find_format", "formats"]


@dataclass(frozen=True)
class Format:
    """A deployment format.

    Attributes:
        name: Its name in messages and records.
        suffix: The suffix of its main file, which picks it.
        engine: Name of the engine that reads it back for the check.
        write: Writes a model, and returns the variable dimensions of each input.
        backend: The ``backend`` argument that picks it among formats of the same suffix.
        companion: Suffix of a second file it writes beside the main one, if any.
        sidecar: Whether its metadata stands in a JSON file beside it, for it holds none itself.
        precision: What it is judged in: ``"fp16"`` where its weights are rounded to that.
        layout: How images lie in its inputs, where the format knows two ways.
    """

    name: str
    suffix: str
    engine: str
    write: Callable[[Conversion, Path], Axes]
    backend: str | None = None
    companion: str | None = None
    sidecar: bool = False
    precision: str = "fp32"
    layout: str | None = None

    def load(self, path: Path, model: nn.Module) -> Runner:
        """Read a written file back, as its user will.

        Args:
            path: The main file.
            model: The model it was written from; only a file that holds weights alone needs its
                structure.

        Raises:
            MissingExtraError: The engine is not installed.
            ExportError: The file cannot be read.
        """
        if self.suffix == ".safetensors":
            return _load_weights(path, model)
        return get_engine(self.engine).load(path, Settings())


def _write_weights(conversion: Conversion, path: Path) -> Axes:
    """Write the state dict; shapes do not matter to it, so everything may vary."""
    safetensors = optional.require(
        "safetensors.torch", extra="deploy", purpose="writing .safetensors"
    )
    # Tied weights are written under each of their names: the format has no sharing.
    tensors = {
        k: v.detach().cpu().clone().contiguous() for k, v in conversion.model.state_dict().items()
    }
    path.write_bytes(safetensors.save(tensors, metadata={"format": "pt", **conversion.metadata}))
    return tuple({} for _ in conversion.inputs)


def _load_weights(path: Path, model: nn.Module) -> Runner:
    """Load the file into a copy of the model whose own weights are gone."""
    safetensors = optional.require(
        "safetensors.torch", extra="deploy", purpose="reading .safetensors"
    )
    blank = copy.deepcopy(model)
    with torch.no_grad():
        for value in blank.state_dict().values():
            value.fill_(torch.nan if value.is_floating_point() else 0)
    blank.load_state_dict(safetensors.load_file(str(path)), strict=True)
    return TorchRunner(blank, Settings())


def _litert_formats() -> Iterator[Format]:
    """LiteRT in float32 and with weights in float16, for images either way around."""
    for layout, half in product(("NCHW", "NHWC"), (False, True)):
        parts = ("nhwc" if layout == "NHWC" else "", "fp16" if half else "")
        yield Format(
            "LiteRT",
            ".tflite",
            "litert",
            partial(write_litert, half=half, channels_last=layout == "NHWC"),
            backend="-".join(filter(None, parts)) or None,
            sidecar=True,
            precision="fp16" if half else "fp32",
            layout=layout,
        )


_FORMATS = (
    Format("safetensors", ".safetensors", "eager", _write_weights),
    Format("torch.export", ".pt2", "eager", write_pt2),
    Format("ONNX", ".onnx", "onnxruntime", write_onnx),
    Format("OpenVINO IR", ".xml", "openvino", write_openvino, companion=".bin"),
    Format("AOTInductor", ".pt2", "aoti", write_aoti, backend="aoti"),
    Format("ExecuTorch", ".pte", "executorch", write_executorch, sidecar=True),
    Format("ncnn", ".param", "ncnn", write_ncnn, companion=".bin", sidecar=True),
    *_litert_formats(),
    Format("Core ML", ".mlpackage", "coreml", write_coreml),
    Format(
        "Core ML",
        ".mlpackage",
        "coreml",
        partial(write_coreml, half=True),
        backend="fp16",
        precision="fp16",
    ),
    Format("TensorRT", ".engine", "tensorrt", write_tensorrt, sidecar=True),
)


def formats() -> tuple[Format, ...]:
    """Return the formats :func:`reparam.export` writes."""
    return _FORMATS


def find_format(path: Path, backend: str | None = None) -> Format:
    """Return the format of a path.

    Raises:
        InputError: No format has that suffix, or none of that suffix has that backend.
    """
    of_suffix = [entry for entry in _FORMATS if entry.suffix == path.suffix.lower()]
    if not of_suffix:
        known = ", ".join(dict.fromkeys(entry.suffix for entry in _FORMATS))
        raise InputError(
            f"{path.name!r} has the suffix {path.suffix!r}, which is no export format; "
            f"known suffixes: {known}"
        )
    for entry in of_suffix:
        if entry.backend == backend:
            return entry
    backends = ", ".join(repr(entry.backend) for entry in of_suffix)
    raise InputError(f"{path.suffix} has no backend {backend!r}; its backends: {backends}")


def describe(axes: Axes) -> list[dict[str, Any]]:
    """Return the variable dimensions as JSON can hold them: positions become strings."""
    return [{str(position): name for position, name in each.items()} for each in axes]
