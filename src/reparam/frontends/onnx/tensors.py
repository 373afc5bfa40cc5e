"""Tensors of ONNX files as torch tensors, and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reparam._support.optional import require
from reparam.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from onnx import ModelProto, TensorProto

FLOATS = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
"""ONNX's numbers of the types that weights have."""

MOST_BYTES = 2**31 - 2**20
"""Bytes of weights that one file may hold: a protocol buffer ends at 2 GiB, the graph included."""

_CODES = {dtype: code for code, dtype in FLOATS.items()}


def onnx_module(name: str = "onnx") -> ModuleType:
    """Import a module of the onnx package."""
    return require(name, extra="deploy", purpose="fusing an ONNX model")


def to_torch(tensor: TensorProto) -> Tensor:
    """Read a tensor in the type that it is stored in.

    Raises:
        InputError: Its numbers lie in another file that was not read, or are fewer than its shape
            says.

    """
    helper = onnx_module("onnx.numpy_helper")
    if tensor.data_location == 1 and not tensor.HasField("raw_data"):
        raise InputError(
            f"the numbers of {tensor.name!r} lie in another file, which was not read; load the "
            f"model with onnx.load(path), or fuse the file with reparam.fusing.fuse_onnx_file"
        )
    try:
        array = helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        shape, count = tuple(tensor.dims), math.prod(tensor.dims)
        raise InputError(
            f"the tensor {tensor.name!r} of shape {shape} does not hold {count} numbers: {error}"
        ) from error
    return from_array(array)


def from_array(array: Any) -> Tensor:
    """Read an array of numpy; without a copy where torch may write to it."""
    if not getattr(array, "shape", ()):
        array = onnx_module("numpy").asarray(array)
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = array.copy(order="C")
    if array.dtype.itemsize == 2 and array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_torch(value: Tensor, name: str) -> TensorProto:
    """Write a floating-point tensor, in its own type."""
    onnx = onnx_module()
    value = value.detach().cpu().contiguous()
    tensor: TensorProto = onnx.TensorProto(
        name=name, data_type=_CODES[value.dtype], dims=list(value.shape)
    )
    raw = value.reshape(-1).view(torch.uint8).numpy()
    tensor.raw_data = raw.tobytes()
    return tensor


def constant_tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Names and tensors that Constant nodes hold: some converters keep weights there."""
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def bytes_of(model: ModelProto) -> int:
    """Bytes of the weights of a model, in initializers and Constant nodes."""
    inner = (tensor for _, tensor in constant_tensors(model))
    return sum(_bytes(tensor) for tensor in (*model.graph.initializer, *inner))


def _bytes(tensor: TensorProto) -> int:
    # What is not stored as bytes is packed as 4 or 8 bytes a number, or fewer.
    return len(tensor.raw_data) or 8 * math.prod(tensor.dims)


def as_double(value: Tensor) -> Tensor:
    """Move floating-point numbers to float64; others stay what they are."""
    return value.to(torch.float64) if value.is_floating_point() else value


def as_array(value: Tensor) -> Any:
    """Hand a tensor to numpy without a copy."""
    return value.detach().numpy()
