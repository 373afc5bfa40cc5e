"""What a quantized file is for: its engine and its quantizer, the processors, and their sums."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from reparam._support import optional
from reparam.deploy.engines import Format, get_engine
from reparam.deploy.engines.int8 import Target, sums_saturate
from reparam.deploy.exporting.formats import find_format
from reparam.errors import InputError, MachineWarning
from reparam.lab.quantizing.arithmetic import Arithmetic
from reparam.lab.quantizing.backends import Backend
from reparam.lab.quantizing.litert_int8 import write_litert_int8
from reparam.lab.quantizing.onnx_qdq import write_onnx_int8
from reparam.lab.quantizing.openvino_ir import write_openvino_int8

if TYPE_CHECKING:
    from pathlib import Path

BACKENDS = {
    backend.engine: backend
    for backend in (
        Backend("openvino", ".xml", "NNCF", write_openvino_int8, ("openvino", "nncf")),
        Backend(
            "onnxruntime", ".onnx", "ONNX Runtime", write_onnx_int8,
            ("onnx", "onnxscript", "onnxruntime"), joins_taps=True,
        ),
        Backend("litert", ".tflite", "ai-edge-quantizer", write_litert_int8, weight_bits=(8,)),
    )
}  # fmt: skip
"""The engines that there are quantizers for, by their names."""


def check_target(target: Path, engine: str | None = None) -> Format:
    """Return the format of a path, once it can be quantized and its packages are there.

    Raises:
        InputError: The suffix is of no format that holds integers, or of another engine, or the
            folder does not exist.
        MissingExtraError: A package is not installed.
    """
    found = next((b for b in BACKENDS.values() if b.suffix == target.suffix.lower()), None)
    if found is None:
        known = " and ".join(f"{each.suffix} (for {name})" for name, each in BACKENDS.items())
        raise InputError(f"{target.name!r} is of no kind that is quantized here; these are {known}")
    if engine is not None and engine not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise InputError(f"no quantizer is for the engine {engine!r}; there are some for: {known}")
    if engine not in (None, found.engine):
        raise InputError(
            f"{target.name!r} is a file for {found.engine}, and the engine asked for is {engine}, "
            f"which takes {BACKENDS[engine].suffix} files here; change one of the two"
        )
    if not target.parent.is_dir():
        raise InputError(
            f"cannot write {target}: {target.parent} is not a folder; create it or choose another"
        )
    entry = find_format(target)
    get_engine(entry.engine).require()
    for package in found.packages:
        optional.require(package, extra="quantize", purpose=f"Quantizing for {found.engine}")
    return entry


def arithmetic_on(target: Target, weight_bits: int | None, backend: Backend) -> Arithmetic:
    """Return how the file will be computed on its target, and warn where this machine differs."""
    if weight_bits == 7 and 7 not in backend.weight_bits:
        raise InputError(
            f"weight_bits is {weight_bits}, and {backend.engine} has weights of 8 bits; its sums "
            "do not saturate, so leave it out"
        )
    bits = weight_bits if weight_bits is not None else 7 if target.saturates else 8
    arithmetic = Arithmetic(bits, target.saturates and bits == 8, backend.joins_taps)
    if arithmetic.saturates and not sums_saturate(backend.engine):
        warnings.warn(
            f"with weights of eight bits, sums of products saturate on {target.what} and not on "
            "this machine: what the file loses there is in the diagnosis and not in the verdict; "
            "leave weight_bits out, or make it 7",
            MachineWarning,
            stacklevel=3,
        )
    return arithmetic
