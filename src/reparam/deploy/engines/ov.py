"""OpenVINO on the CPU."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam._support.processor import multiplies_bf16
from reparam.deploy.engines._inputs import as_arrays
from reparam.deploy.engines._quiet import converting, explained
from reparam.deploy.engines.base import Engine, Format, Runner, Settings, get_engine, register
from reparam.deploy.engines.int8 import warn_if_saturating
from reparam.deploy.engines.program import Dynamic
from reparam.errors import MachineWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from reparam.deploy.engines.program import Axes, Conversion

RT_INFO = "reparam"
"""Section of the graph's run-time information that holds the metadata."""


def to_openvino(conversion: Conversion) -> tuple[Any, Axes]:
    """Convert a model in memory; return the OpenVINO model and the variable dimensions.

    Raises:
        MissingExtraError: openvino is not installed.
        ExportError: The model cannot be converted.
    """
    openvino = get_engine("openvino").module("openvino")
    program = conversion.program()
    with converting(f"OpenVINO could not convert {conversion.name}"):
        converted = openvino.convert_model(program.exported)
        # The shapes that it was exported for: the converter lets most sizes vary.
        shapes = {
            port: openvino.PartialShape([-1 if d in free else n for d, n in enumerate(x.shape)])
            for port, x, free in zip(converted.inputs, conversion.inputs, program.axes, strict=True)
        }
        converted.reshape(shapes)
    return converted, program.axes


def _write(conversion: Conversion, path: Path) -> Axes:
    """Write ``path`` (the graph) and a ``.bin`` file beside it (the weights, float32)."""
    converted, axes = to_openvino(conversion)
    for key, value in conversion.metadata.items():
        converted.set_rt_info(value, [RT_INFO, key])
    openvino = get_engine("openvino").module("openvino")
    openvino.save_model(converted, str(path), compress_to_fp16=False)
    return axes


def _read(path: Path) -> Any:
    return get_engine("openvino").module("openvino").Core().read_model(str(path))


def _metadata(model: Any) -> dict[str, str]:
    """Return what a file says about itself: an IR, or an ONNX file that OpenVINO has read."""
    sections = [name for name in (RT_INFO, "framework") if model.has_rt_info([name])]
    found = [model.get_rt_info([name]).value for name in sections]
    return {
        key: str(getattr(value, "value", value))
        for section in found
        if isinstance(section, dict)
        for key, value in section.items()
    }


class _CompiledRunner(Runner):
    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = compiled.outputs

    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
        infer, arrays = self._request.infer, dict(enumerate(as_arrays(inputs)))
        return lambda: infer(arrays, share_inputs=True)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        results = self._request.infer(dict(enumerate(as_arrays(inputs))))
        return [torch.from_numpy(results[port].copy()) for port in self._outputs]


@register
class OpenVinoEngine(Engine):
    """OpenVINO's CPU plugin, tuned for the latency of one request."""

    name: ClassVar[str] = "openvino"
    label: ClassVar[str] = "OpenVINO"
    suffixes: ClassVar[tuple[str, ...]] = (".xml", ".onnx")
    formats: ClassVar[tuple[Format, ...]] = (
        Format(
            "OpenVINO IR", ".xml", name, _write, lambda path: _metadata(_read(path)),
            ("openvino",), companion=".bin",
        ),
    )  # fmt: skip
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    requirements: ClassVar[tuple[str, ...]] = ("openvino",)

    def prepare(self, conversion: Conversion, settings: Settings) -> Runner:
        """Convert the module with fixed shapes and compile it."""
        self.require()
        self.check(settings)
        converted, _ = to_openvino(replace(conversion, dynamic=Dynamic.NONE))
        return self._compile(converted, settings, conversion.name)

    def open(self, path: Path, settings: Settings) -> Runner:
        """Compile an OpenVINO or ONNX file."""
        model = _read(path)
        warn_if_saturating(path.name, _metadata(model), self.name)
        return self._compile(model, settings, path.name)

    def input_sizes(self, path: Path) -> list[list[int | None]] | None:
        """Return the sizes of the inputs of an OpenVINO file."""
        if path.suffix.lower() != ".xml":
            return None
        shapes = [value.partial_shape for value in _read(path).inputs]
        return [[n.get_length() if n.is_static else None for n in shape] for shape in shapes]

    def _compile(self, source: Any, settings: Settings, what: str) -> Runner:
        # The precision is always given: left alone, the plugin picks bf16 on processors with AMX.
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _hint(settings.precision),
        }
        if settings.threads is not None:
            options["INFERENCE_NUM_THREADS"] = settings.threads
        core = self.module("openvino").Core()
        with explained(f"OpenVINO could not compile {what}"):
            return _CompiledRunner(core.compile_model(source, "CPU", options))


def _hint(precision: str) -> str:
    """Return OpenVINO's name of what it is to compute in, and warn where that is something else."""
    if precision == "fp32":
        return "f32"
    if multiplies_bf16():
        return "bf16"
    warnings.warn(
        "this processor has no instructions for bf16, so that OpenVINO computes in fp32: results "
        "and times are those of fp32",
        MachineWarning,
        stacklevel=2,
    )
    return "f32"
