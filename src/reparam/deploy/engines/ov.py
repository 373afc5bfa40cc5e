"""OpenVINO on the CPU."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam._support import optional
from reparam._support.processor import multiplies_bf16
from reparam.deploy.engines.base import Engine, Format, Runner, Settings, register
from reparam.deploy.engines.int8 import warn_if_saturating
from reparam.deploy.engines.ov_writer import RT_INFO, openvino_metadata, to_openvino, write_openvino
from reparam.deploy.engines.program import Dynamic
from reparam.errors import ExportError, MachineWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from reparam.deploy.engines.program import Conversion

__all__ = ["OpenVinoEngine"]


class _CompiledRunner(Runner):
    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = compiled.outputs

    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
        infer, arrays = self._request.infer, self._arrays(inputs)
        return lambda: infer(arrays, share_inputs=True)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        results = self._request.infer(self._arrays(inputs))
        return [torch.from_numpy(results[port].copy()) for port in self._outputs]

    @staticmethod
    def _arrays(inputs: Sequence[torch.Tensor]) -> dict[int, Any]:
        arrays = (value.detach().cpu().contiguous().numpy() for value in inputs)
        return dict(enumerate(arrays))


@register
class OpenVinoEngine(Engine):
    """OpenVINO's CPU plugin, tuned for the latency of one request."""

    name: ClassVar[str] = "openvino"
    label: ClassVar[str] = "OpenVINO"
    suffixes: ClassVar[tuple[str, ...]] = (".xml", ".onnx")
    formats: ClassVar[tuple[Format, ...]] = (
        Format(
            "OpenVINO IR",
            ".xml",
            name,
            write_openvino,
            openvino_metadata,
            ("openvino",),
            companion=".bin",
        ),
    )  # fmt: skip
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    requirements: ClassVar[tuple[str, ...]] = ("openvino",)

    def prepare(self, conversion: Conversion, settings: Settings, folder: Path) -> Runner:
        """Convert the module with fixed shapes and compile it."""
        del folder
        self.require()
        self.check(settings)
        converted, _ = to_openvino(replace(conversion, dynamic=Dynamic.NONE))
        return self._compile(converted, settings, conversion.name)

    def open(self, path: Path, settings: Settings) -> Runner:
        """Compile an OpenVINO or ONNX file."""
        openvino = optional.require("openvino", extra=self.extra, purpose="the engine 'openvino'")
        try:
            model = openvino.Core().read_model(str(path))
        except Exception as error:
            raise ExportError(f"OpenVINO could not read {path.name}: {error}") from error
        warn_if_saturating(path.name, _metadata(model), self.name)
        return self._compile(model, settings, path.name)

    def input_sizes(self, path: Path) -> list[list[int | None]] | None:
        """Return the sizes of the inputs of an OpenVINO file."""
        if path.suffix.lower() != ".xml":
            return None
        openvino = optional.require("openvino", extra=self.extra, purpose=f"reading {path.name}")
        try:
            model = openvino.Core().read_model(str(path))
        except RuntimeError as error:
            raise ExportError(f"OpenVINO could not read {path.name}: {error}") from error
        shapes = [value.partial_shape for value in model.inputs]
        return [[n.get_length() if n.is_static else None for n in shape] for shape in shapes]

    def _compile(self, source: Any, settings: Settings, what: str) -> Runner:
        openvino = optional.require("openvino", extra=self.extra, purpose="the engine 'openvino'")
        # The precision is always given: left alone, the plugin picks bf16 on processors with AMX.
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _hint(settings.precision),
        }
        if settings.threads is not None:
            options["INFERENCE_NUM_THREADS"] = settings.threads
        try:
            return _CompiledRunner(openvino.Core().compile_model(source, "CPU", options))
        except Exception as error:
            raise ExportError(f"OpenVINO could not compile {what}: {error}") from error


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
