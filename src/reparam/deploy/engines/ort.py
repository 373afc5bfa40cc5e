"""ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam._support import optional
from reparam.deploy.engines.base import Engine, Format, Runner, Settings, register
from reparam.deploy.engines.int8 import warn_if_saturating
from reparam.deploy.engines.onnx_writer import onnx_metadata, write_onnx
from reparam.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


__all__ = ["OnnxRuntimeEngine"]


class _SessionRunner(Runner):
    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [value.name for value in session.get_inputs()]

    def bind(self, inputs: Sequence[torch.Tensor]) -> Callable[[], object]:
        run, feed = self._session.run, self._feed(inputs)
        return lambda: run(None, feed)

    def run(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.from_numpy(y) for y in self._session.run(None, self._feed(inputs))]

    def _feed(self, inputs: Sequence[torch.Tensor]) -> dict[str, Any]:
        arrays = (value.detach().cpu().contiguous().numpy() for value in inputs)
        return dict(zip(self._names, arrays, strict=True))


@register
class OnnxRuntimeEngine(Engine):
    """ONNX Runtime with its default graph optimisations and the CPU provider."""

    name: ClassVar[str] = "onnxruntime"
    label: ClassVar[str] = "ONNX Runtime"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    formats: ClassVar[tuple[Format, ...]] = (
        Format("ONNX", ".onnx", name, write_onnx, onnx_metadata, ("onnx", "onnxscript")),
    )
    requirements: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "onnxscript")

    def open(self, path: Path, settings: Settings) -> Runner:
        """Open a session on an ONNX file."""
        runtime = optional.require(
            "onnxruntime", extra=self.extra, purpose="the engine 'onnxruntime'"
        )
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        # Without this, the pool of one session keeps spinning after its last call and takes the
        # cores from whatever is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if settings.threads is not None:
            options.intra_op_num_threads = settings.threads
        try:
            session = runtime.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ExportError(f"ONNX Runtime could not load {path.name}: {error}") from error
        about = session.get_modelmeta().custom_metadata_map
        warn_if_saturating(path.name, about, self.name)
        return _SessionRunner(session)
