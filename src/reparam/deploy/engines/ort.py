"""ONNX, and ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from reparam._support import optional
from reparam.deploy.engines._inputs import as_arrays
from reparam.deploy.engines._quiet import converting, explained
from reparam.deploy.engines.base import Engine, Format, Runner, Settings, register
from reparam.deploy.engines.int8 import warn_if_saturating
from reparam.errors import ExportError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from reparam.deploy.engines.program import Axes, Conversion

_LIMIT = 2**31
"""A protocol buffer holds at most this many bytes."""


def write_onnx(conversion: Conversion, path: Path) -> Axes:
    """Write one ``.onnx`` file with its metadata, and check it against the ONNX specification."""
    onnx = optional.require("onnx", extra="deploy", purpose="exporting to ONNX")
    optional.require("onnxscript", extra="deploy", purpose="exporting to ONNX")
    size = sum(p.numel() * p.element_size() for p in conversion.model.parameters())
    if size >= _LIMIT:
        raise ExportError(
            f"the model has {size / 1e9:.1f} GB of parameters, and one ONNX file holds 2.1 GB; "
            "export to .pt2 or .xml instead"
        )
    program = conversion.program()
    outputs = len(program.exported.graph_signature.user_outputs)
    with converting(f"torch.onnx could not convert {conversion.name}"):
        written = torch.onnx.export(
            program.exported,
            input_names=_names("input", len(program.inputs)),
            output_names=_names("output", outputs),
            dynamo=True,
            verbose=False,
        )
    if written is None:
        raise ExportError("torch.onnx.export ended without an error and without a model")
    proto = written.model_proto
    onnx.helper.set_model_props(proto, dict(conversion.metadata))
    path.write_bytes(proto.SerializeToString())
    with explained("the ONNX file does not pass onnx.checker"):
        onnx.checker.check_model(str(path), full_check=True)
    return program.axes


def _names(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]


def _metadata(path: Path) -> dict[str, str]:
    onnx = optional.require("onnx", extra="deploy", purpose="reading ONNX")
    model = onnx.load(str(path), load_external_data=False)
    if not model.HasField("graph"):
        raise InputError(f"{path.name!r} is no ONNX file: it holds no graph")
    return {entry.key: entry.value for entry in model.metadata_props}


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
        return dict(zip(self._names, as_arrays(inputs), strict=True))


@register
class OnnxRuntimeEngine(Engine):
    """ONNX Runtime with its default graph optimisations and the CPU provider."""

    name: ClassVar[str] = "onnxruntime"
    label: ClassVar[str] = "ONNX Runtime"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    formats: ClassVar[tuple[Format, ...]] = (
        Format("ONNX", ".onnx", name, write_onnx, _metadata, ("onnx", "onnxscript")),
    )
    requirements: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "onnxscript")

    def open(self, path: Path, settings: Settings) -> Runner:
        """Open a session on an ONNX file."""
        runtime = self.module("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        # Without this, the pool of one session keeps spinning after its last call and takes the
        # cores from whatever is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if settings.threads is not None:
            options.intra_op_num_threads = settings.threads
        session = runtime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
        about = session.get_modelmeta().custom_metadata_map
        warn_if_saturating(path.name, about, self.name)
        return _SessionRunner(session)
