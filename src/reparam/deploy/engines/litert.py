"""LiteRT (TensorFlow Lite): the engine of Android and of browsers, run here on this processor.

litert-torch converts, ai-edge-quantizer rounds, and ai-edge-litert runs the file with XNNPACK.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam.deploy.engines._inputs import one_by_one
from reparam.deploy.engines._quiet import converting, silent
from reparam.deploy.engines.base import (
    Engine,
    Format,
    Runner,
    Settings,
    UnsupportedCaseError,
    get_engine,
    register,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from reparam.deploy.engines.program import Axes, Conversion, Program

_COLOURS = (1, 3, 4)
"""Sizes by which a dimension is told to be the channels of an image."""
_HALF = {
    "regex": ".*",
    "operation": "*",
    "algorithm_key": "float_casting",
    "op_config": {
        "weight_tensor_config": {
            "num_bits": 16,
            "symmetric": True,
            "granularity": "TENSORWISE",
            "dtype": "FLOAT",
        },
        "compute_precision": "FLOAT",
        "explicit_dequantize": True,
        "skip_checks": False,
        "min_weight_elements": 0,
    },
}
"""Weights stored in float16, and widened where they are used: the engine computes in float32."""


def _write(
    conversion: Conversion, path: Path, *, half: bool = False, channels_last: bool = False
) -> Axes:
    content, axes = to_litert(conversion, channels_last=channels_last)
    path.write_bytes(_halved(content) if half else content)
    return axes


def to_litert(conversion: Conversion, *, channels_last: bool = False) -> tuple[bytes, Axes]:
    """Return the content of a ``.tflite`` file, and what varies.

    A file for one sample, with every shape fixed, is what accelerators of phones take and what
    :attr:`Dynamic.AUTO` writes; :attr:`Dynamic.BATCH` and :attr:`Dynamic.SIZE` keep dimensions
    variable, which the converter allows to some models.

    Args:
        conversion: The model; its metadata stand in a file beside it.
        channels_last: Take inputs of three and more dimensions as ``(N, ..., C)``, as cameras and
            image libraries of phones give them; outputs stay as the model makes them.

    Raises:
        MissingExtraError: litert-torch is not installed.
        ExportError: The model cannot be converted, or not with what may vary.
    """
    converter = get_engine("litert").module("litert_torch")
    converter.config.show_progress = False
    program = conversion.of_one_sample().program()
    model, sample, shapes = conversion.model, program.inputs, program.shapes
    if channels_last:
        model, sample, shapes = _channels_last(converter, model, program)
    what = f"litert-torch could not convert {conversion.name}"
    with converting(what, program.hint, briefly=True), silent():
        converted = converter.convert(model, sample, dynamic_shapes=shapes)
        return bytes(converted.model_content()), program.axes


def _channels_last(
    converter: Any, model: nn.Module, program: Program
) -> tuple[nn.Module, tuple[torch.Tensor, ...], Any]:
    """Return a model that takes images channels last, its inputs, and what varies in them."""
    images = [i for i, x in enumerate(program.inputs) if x.dim() > 2]
    wrapped = converter.to_channel_last_io(model, args=images).eval()
    sample = tuple(x.movedim(1, -1) if i in images else x for i, x in enumerate(program.inputs))
    if not program.shapes:
        return wrapped, sample, None
    shapes = tuple(
        {i - (i > 1 and n in images): dim for i, dim in each.items()}
        for n, each in enumerate(program.shapes)
    )
    # The wrapper takes its arguments as one, and so does the description of their shapes.
    return wrapped, sample, (shapes,)


def _halved(content: bytes) -> bytes:
    tools = get_engine("litert").module("ai_edge_quantizer.quantizer")
    with silent():
        quantizer = tools.Quantizer(content)
        quantizer.load_quantization_recipe([_HALF])
        return bytes(quantizer.quantize(enable_progress_report=False).quantized_model)


class _InterpreterRunner(Runner):
    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self.inputs = interpreter.get_input_details()
        self._outputs = interpreter.get_output_details()
        self._shapes = [tuple(map(int, detail["shape"])) for detail in self.inputs]

    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
        arrays = [_array(x, detail) for x, detail in zip(inputs, self.inputs, strict=True)]
        return lambda: self._invoke(arrays)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        fixed = int(self.inputs[0]["shape_signature"][0]) if inputs[0].dim() else 0
        if fixed != 1 or inputs[0].shape[0] == 1:
            found = self._invoke([_array(x, d) for x, d in zip(inputs, self.inputs, strict=True)])
            return [_tensor(y, d) for y, d in zip(found, self._outputs, strict=True)]
        return one_by_one(self.run, inputs)

    def _invoke(self, arrays: Sequence[Any]) -> list[Any]:
        if [array.shape for array in arrays] != self._shapes:
            self._resize(arrays)
        for detail, array in zip(self.inputs, arrays, strict=True):
            self._interpreter.set_tensor(detail["index"], array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(detail["index"]) for detail in self._outputs]

    def _resize(self, arrays: Sequence[Any]) -> None:
        for detail, array in zip(self.inputs, arrays, strict=True):
            self._interpreter.resize_tensor_input(detail["index"], array.shape, strict=True)
        self._interpreter.allocate_tensors()
        self._shapes = [array.shape for array in arrays]


def _array(value: torch.Tensor, detail: Mapping[str, Any]) -> Any:
    """Return an input as the file takes it: its type, and its order of dimensions."""
    taken = [int(n) for n in detail["shape_signature"]]
    for ordered in (value, value.movedim(1, -1) if value.dim() > 2 else value):
        if len(taken) == ordered.dim() and all(
            n in (-1, m) for n, m in zip(taken, ordered.shape, strict=True)
        ):
            array = ordered.detach().cpu().contiguous().numpy()
            step, zero = detail["quantization"]
            if step and value.is_floating_point():
                array = (array / step).round() + zero
                low, high = (-128, 127) if detail["dtype"]().nbytes == 1 else (-32768, 32767)
                array = array.clip(low, high)
            return array.astype(detail["dtype"], copy=False)
    raise UnsupportedCaseError(
        f"the LiteRT file takes an input of shape {tuple(taken)}, and was given "
        f"{tuple(value.shape)}, which is that neither as it is nor with the channels last"
    )


def _tensor(array: Any, detail: Mapping[str, Any]) -> torch.Tensor:
    """Return an output in floats where the file gives the numbers of steps."""
    step, zero = detail["quantization"]
    found = torch.tensor(array)
    return (found.float() - zero) * step if step else found


def _format(*, half: bool = False, channels_last: bool = False) -> Format:
    """In float32 or with weights in float16, for images either way around."""
    parts = ("nhwc" if channels_last else "", "fp16" if half else "")
    return Format(
        "LiteRT",
        ".tflite",
        "litert",
        partial(_write, half=half, channels_last=channels_last),
        packages=("litert-torch", "ai-edge-litert"),
        backend="-".join(filter(None, parts)) or None,
        precision="fp16" if half else "fp32",
        layout="NHWC" if channels_last else "NCHW",
    )


@register
class LiteRTEngine(Engine):
    """LiteRT's interpreter with XNNPACK's kernels, on the CPU."""

    name: ClassVar[str] = "litert"
    label: ClassVar[str] = "LiteRT"
    suffixes: ClassVar[tuple[str, ...]] = (".tflite",)
    formats: ClassVar[tuple[Format, ...]] = (
        _format(),
        _format(half=True),
        _format(channels_last=True),
        _format(half=True, channels_last=True),
    )
    requirements: ClassVar[tuple[str, ...]] = ("ai_edge_litert", "litert_torch")
    extra: ClassVar[str] = "litert"

    def module(self, name: str) -> Any:
        """Import a module of the engine, in silence; see :meth:`Engine.module`."""
        with silent():
            return super().module(name)

    def input_sizes(self, path: Path) -> list[list[int | None]]:
        """Return the sizes of the inputs, the channels of images first."""
        inputs = self.open(path, Settings()).inputs
        shapes = [tuple(map(int, detail["shape_signature"])) for detail in inputs]
        ordered = [
            (s[0], s[-1], *s[1:-1]) if len(s) > 2 and s[-1] in _COLOURS and s[1] not in _COLOURS
            else s
            for s in shapes
        ]  # fmt: skip
        return [[size if size > 0 else None for size in shape] for shape in ordered]

    def open(self, path: Path, settings: Settings) -> _InterpreterRunner:
        """Load a ``.tflite`` file; inputs are given channels first, whichever it takes."""
        runtime = self.module("ai_edge_litert.interpreter")
        with silent():
            # From memory, so that the file may go.
            interpreter = runtime.Interpreter(
                model_content=path.read_bytes(), num_threads=settings.threads
            )
            interpreter.allocate_tensors()
        return _InterpreterRunner(interpreter)
