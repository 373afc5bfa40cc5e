"""Folding as a pass of Olive: an ONNX file in, a fused file out, compared before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reparam._support.optional import require
from reparam.fusing import fuse_onnx_file

require("olive", extra="olive", purpose="The pass of Olive")

# ruff: noqa: E402 - the import comes behind the question whether it can be made
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam


class ReparamFuse(Pass):  # type: ignore[misc]  # Olive is not there when types are checked
    """Fold the branches, norms and scales of an ONNX model (:func:`reparam.fusing.fuse_onnx_file`).

    The file is run beside the original in ONNX Runtime before it appears. Put the pass behind the
    conversion and in front of quantization.
    """

    @classmethod
    def _default_config(cls, _accelerator: Any, /) -> dict[str, PassConfigParam]:
        return {
            "where": PassConfigParam(
                type_=list[str] | None, default_value=None, description="Names of what may fold."
            ),
            "check": PassConfigParam(
                type_=bool, default_value=True, description="Run both files and compare them."
            ),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: Any, output_model_path: str
    ) -> ONNXModelHandler:
        source = Path(model.model_path)
        out = Path(resolve_onnx_path(output_model_path, source.name))
        fuse_onnx_file(source, out, where=config.where, check=config.check)
        return ONNXModelHandler(model_path=str(out.parent), onnx_file_name=out.name)


def _config() -> dict[str, Any]:
    """Olive's own passes, which a configuration replaces as a whole, and this one."""
    config = OlivePackageConfig.load_default_config().model_dump(mode="json")
    config["passes"]["reparamfuse"] = {
        "module_path": f"{__name__}.{ReparamFuse.__name__}",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
    }
    return dict(config)


CONFIG = _config()
"""The ``package_config`` of Olive's ``run``: its own passes, and ``ReparamFuse``."""
