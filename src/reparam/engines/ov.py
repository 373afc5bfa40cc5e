"""OpenVINO on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam import _optional
from reparam.engines.base import Engine, Runner, Settings, register
from reparam.engines.ov_writer import to_openvino
from reparam.engines.program import Dynamic
from reparam.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

__all__ = ["OpenVinoEngine"]

_HINTS = {"fp32": "f32", "bf16": "bf16"}


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
    suffixes: ClassVar[tuple[str, ...]] = (".xml", ".onnx")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    requirements: ClassVar[tuple[str, ...]] = ("openvino",)

    def prepare(
        self,
        model: nn.Module,
        example_inputs: Sequence[torch.Tensor],
        settings: Settings,
        folder: Path,
    ) -> Runner:
        """Convert the module with fixed shapes and compile it."""
        del folder
        self.require()
        self.check(settings)
        converted, _ = to_openvino(model, example_inputs, dynamic=Dynamic.NONE)
        return self._compile(converted, settings, type(model).__name__)

    def load(self, path: Path, settings: Settings) -> Runner:
        """Compile an OpenVINO or ONNX file."""
        if path.suffix not in self.suffixes:
            return super().load(path, settings)
        self.check(settings)
        return self._compile(str(path), settings, path.name)

    def _compile(self, source: Any, settings: Settings, what: str) -> Runner:
        openvino = _optional.require("openvino", extra=self.extra, purpose="the engine 'openvino'")
        # The precision is always given: left alone, the plugin picks bf16 on processors with AMX.
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[settings.precision],
        }
        if settings.threads is not None:
            options["INFERENCE_NUM_THREADS"] = settings.threads
        try:
            return _CompiledRunner(openvino.Core().compile_model(source, "CPU", options))
        except Exception as error:
            raise ExportError(f"OpenVINO could not compile {what}: {error}") from error
