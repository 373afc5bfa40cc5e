"""Multi-branch form to single path: the public transformation of the package."""

from __future__ import annotations

from reparam.frontends.onnx.inputs import freeze_inputs
from reparam.fusing.asked import reference_model
from reparam.fusing.driver import FoldWarning, Plan
from reparam.fusing.equivalent import operator
from reparam.fusing.onnx_file import FusedFile, fuse_onnx_file
from reparam.fusing.plans import fuse, plan
from reparam.fusing.regions import Region

__all__ = [
    "FoldWarning",
    "FusedFile",
    "Plan",
    "Region",
    "freeze_inputs",
    "fuse",
    "fuse_onnx_file",
    "operator",
    "plan",
    "reference_model",
]
