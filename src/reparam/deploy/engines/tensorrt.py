"""TensorRT, where it and an NVIDIA GPU are present."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam._support.files import scratch
from reparam._support.spelling import advice
from reparam.deploy.engines.base import (
    Engine,
    Format,
    Runner,
    Settings,
    UnsupportedCaseError,
    get_engine,
    register,
)
from reparam.deploy.engines.ort import write_onnx
from reparam.deploy.engines.program import Dynamic
from reparam.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from reparam.deploy.engines.program import Axes, Conversion


def _write(conversion: Conversion, path: Path) -> Axes:
    """Build a TensorRT engine for this machine's GPU and write it.

    An engine is tuned for a range of shapes: a variable batch reaches from 1 to at least 16 and
    twice the example's.
    """
    library = get_engine("tensorrt").module("tensorrt")
    if conversion.dynamic is Dynamic.SIZE:
        raise ExportError(
            "TensorRT engines are written here with a variable batch and a fixed size"
            + advice("; {dynamic} asks for these", dynamic="batch")
            + advice("; {dynamic} fixes every shape", dynamic=False)
        )
    varies = Dynamic.NONE if conversion.dynamic is Dynamic.NONE else Dynamic.BATCH
    with scratch() as folder:
        onnx_file = folder / "model.onnx"
        axes = write_onnx(replace(conversion, dynamic=varies), onnx_file)
        content = _build(library, onnx_file.read_bytes(), conversion.inputs, axes)
    path.write_bytes(content)
    return axes


def _build(
    library: Any,
    content: bytes,
    inputs: Sequence[torch.Tensor],
    axes: Sequence[dict[int, str]],
) -> bytes:
    builder = library.Builder(library.Logger(library.Logger.ERROR))
    network = builder.create_network(0)
    parser = library.OnnxParser(network, library.Logger(library.Logger.ERROR))
    if not parser.parse(content):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ExportError(f"TensorRT could not read the model: {errors}")
    config = builder.create_builder_config()
    # TF32 keeps ten bits of a product; single precision was asked for.
    config.clear_flag(library.BuilderFlag.TF32)
    if any(axes):
        profile = builder.create_optimization_profile()
        for i, value in enumerate(inputs):
            batch, rest = value.shape[0], tuple(value.shape[1:])
            largest = max(16, 2 * batch)
            profile.set_shape(
                network.get_input(i).name, (1, *rest), (batch, *rest), (largest, *rest)
            )
        config.add_optimization_profile(profile)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise ExportError("TensorRT could not build an engine from the model")
    return bytes(built)


class _ContextRunner(Runner):
    def __init__(self, library: Any, engine: Any) -> None:
        self._engine, self._context = engine, engine.create_execution_context()
        modes = [
            (name, engine.get_tensor_mode(name) == library.TensorIOMode.INPUT)
            for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
        ]
        self._inputs = [name for name, is_input in modes if is_input]
        self._outputs = [name for name, is_input in modes if not is_input]

    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
        return self._bind(inputs)[0]

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        call, outputs = self._bind(inputs)
        call()
        return [y.cpu() for y in outputs]

    def _bind(
        self, inputs: Sequence[torch.Tensor]
    ) -> tuple[Callable[[], object], list[torch.Tensor]]:
        context, stream = self._context, torch.cuda.Stream()
        values = [x.detach().cuda().contiguous() for x in inputs]
        for name, value in zip(self._inputs, values, strict=True):
            if not context.set_input_shape(name, tuple(value.shape)):
                raise ExportError(
                    f"the TensorRT engine does not take the shape {tuple(value.shape)}"
                )
        outputs = [
            torch.empty(tuple(context.get_tensor_shape(name)), device="cuda")
            for name in self._outputs
        ]
        pairs = zip((*self._inputs, *self._outputs), (*values, *outputs), strict=True)
        addresses = [(name, tensor.data_ptr()) for name, tensor in pairs]
        torch.cuda.synchronize()

        def call() -> object:
            for name, address in addresses:
                context.set_tensor_address(name, address)
            context.execute_async_v3(stream.cuda_stream)
            stream.synchronize()
            return values  # held by this closure for as long as their addresses are used

        return call, outputs


@register
class TensorRtEngine(Engine):
    """TensorRT in single precision on the first NVIDIA GPU; inputs and outputs stay on it."""

    name: ClassVar[str] = "tensorrt"
    label: ClassVar[str] = "TensorRT"
    suffixes: ClassVar[tuple[str, ...]] = (".engine",)
    formats: ClassVar[tuple[Format, ...]] = (
        Format("TensorRT", ".engine", name, _write, packages=("tensorrt",)),
    )
    requirements: ClassVar[tuple[str, ...]] = ("tensorrt",)
    extra: ClassVar[str] = "tensorrt"

    def available(self) -> bool:
        """Say whether TensorRT is installed and PyTorch sees an NVIDIA GPU."""
        return super().available() and torch.cuda.is_available()

    def require(self) -> None:
        """Raise unless TensorRT is installed and there is a GPU."""
        super().require()
        if not torch.cuda.is_available():
            raise UnsupportedCaseError(
                f"the engine {self.name!r} needs an NVIDIA GPU, and PyTorch sees none"
            )

    def open(self, path: Path, settings: Settings) -> Runner:
        """Load a built engine."""
        del settings  # it has its precision, and no threads
        self.require()
        library = self.module("tensorrt")
        runtime = library.Runtime(library.Logger(library.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ExportError(
                f"TensorRT could not load {path.name}; engines fit one GPU and version"
            )
        return _ContextRunner(library, engine)
