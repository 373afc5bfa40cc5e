"""Sums of eight-bit products on different processors: where they saturate, and what follows.

x86 processors without VNNI (and AMX) multiply unsigned by signed bytes and add the products in
pairs, in sixteen bits, with saturation (``vpmaddubsw``): two products of 255 and 127 are 64,770,
and 32,767 is what comes of them. Weights of seven bits cannot get there: 255 (64 + 64) = 32,640.
All other processors add in 32 bits.
"""

from __future__ import annotations

import functools
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from reparam._support import optional
from reparam._support.files import scratch
from reparam.deploy.engines.base import Settings, get_engine
from reparam.errors import InputError, MachineWarning

AUTO = "auto"


@dataclass(frozen=True)
class Target:
    """The processors that an eight-bit file is for.

    Attributes:
        name: What it is asked for by.
        what: The processors, in words.
        saturates: Whether pairs of products are added in sixteen bits there.
    """

    name: str
    what: str
    saturates: bool


_ALL = (
    Target("any", "any processor", saturates=True),
    Target("avx2", "x86 with SSE4.1 or AVX2, without VNNI", saturates=True),
    Target("avx512", "x86 with AVX-512, without VNNI", saturates=True),
    Target("vnni", "x86 with VNNI or AMX", saturates=False),
    Target("arm", "64-bit Arm", saturates=False),
)
TARGETS = {target.name: target for target in _ALL}
"""Targets by name."""

_WIDE = frozenset({"litert"})
"""Engines that add products of bytes in 32 bits everywhere: XNNPACK widens the bytes first."""

_BITS_KEY = "reparam.weight_bits"
_CHANNELS = 64


def find_target(name: str, engine: str) -> Target:
    """Return the target of that name; for ``"auto"``, what this processor is in the engine.

    Raises:
        InputError: There is no such target.
        MissingExtraError: The engine is not installed.
    """
    if engine in _WIDE and name in (AUTO, *TARGETS):
        return Target("any" if name == AUTO else name, TARGETS["any"].what, saturates=False)
    if name == AUTO:
        if sums_saturate(engine):
            return TARGETS["avx2"]
        return TARGETS["arm" if platform.machine().lower() in ("aarch64", "arm64") else "vnni"]
    try:
        return TARGETS[name]
    except KeyError:
        known = ", ".join((AUTO, *TARGETS))
        raise InputError(f"no target is called {name!r}; known targets: {known}") from None


def right_on(weight_bits: int, engine: str = "") -> str:
    """Return the processors on which sums of products with such weights are right, in words."""
    if weight_bits < 8 or engine in _WIDE:
        return TARGETS["any"].what
    return f"processors that add in 32 bits: {TARGETS['vnni'].what}, {TARGETS['arm'].what}"


@functools.cache
def sums_saturate(engine: str) -> bool:
    """Say whether an engine's sums of eight-bit products saturate on this processor.

    Measured: the engine multiplies the largest bytes that there are. So what keeps an engine from
    instructions that the processor has (``ONEDNN_MAX_CPU_ISA``) counts as well.

    Raises:
        MissingExtraError: The engine is not installed.
    """
    if engine in _WIDE:
        return False
    with scratch() as folder:
        path = folder / "largest.onnx"
        _write_largest(path)
        runner = get_engine(engine).load(path, Settings(threads=1))
        (found,) = runner.run((torch.full((4, _CHANNELS), 255.0),))
        del runner
    return bool(found.min() < 0.75 * 255 * 127 * _CHANNELS)


def _write_largest(path: Path) -> None:
    """Write a linear map in eight bits whose weights are all 127, with steps of one."""
    onnx = optional.require("onnx", extra="deploy", purpose="measuring eight-bit sums")
    numpy = optional.require("numpy", extra="deploy", purpose="measuring eight-bit sums")
    node, floats = onnx.helper.make_node, onnx.TensorProto.FLOAT
    constants = {
        "one": numpy.float32(1),
        "zero": numpy.uint8(0),
        "weight": numpy.full((_CHANNELS, _CHANNELS), 127, numpy.int8),
        "weight_zero": numpy.int8(0),
        "step": numpy.float32(127 * _CHANNELS),
    }
    nodes = [
        node("QuantizeLinear", ["x", "one", "zero"], ["x8"]),
        node("DequantizeLinear", ["x8", "one", "zero"], ["rounded"]),
        node("DequantizeLinear", ["weight", "one", "weight_zero"], ["w"]),
        node("MatMul", ["rounded", "w"], ["sums"]),
        node("QuantizeLinear", ["sums", "step", "zero"], ["sums8"]),
        node("DequantizeLinear", ["sums8", "step", "zero"], ["y"]),
    ]
    shape = [4, _CHANNELS]
    graph = onnx.helper.make_graph(
        nodes,
        "largest",
        [onnx.helper.make_tensor_value_info("x", floats, shape)],
        [onnx.helper.make_tensor_value_info("y", floats, shape)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8
    )
    path.write_bytes(model.SerializeToString())


def warn_if_saturating(file: str, metadata: Mapping[str, str], engine: str) -> None:
    """Warn of a file whose sums saturate here, so that it computes something else than elsewhere.

    Args:
        file: Its name.
        metadata: What it says about itself.
        engine: The engine that is to run it.
    """
    if metadata.get(_BITS_KEY) == "8" and sums_saturate(engine):
        warnings.warn(
            f"{file} has eight-bit weights, which are right on {right_on(8)}; on this one "
            f"{engine} adds products in pairs in 16 bits, where they saturate, so that accuracy "
            "and agreement found here are not those found there; quantize for the target 'avx2'",
            MachineWarning,
            stacklevel=2,
        )
