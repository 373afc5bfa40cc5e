"""What the optional packages are called where they are imported."""

from __future__ import annotations

__all__ = ["EXTRAS_ONLY"]

EXTRAS_ONLY = [
    "PIL",
    "jinja2",
    "lightning",
    "nncf",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "plotly",
    "rich",
    "safetensors",
    "sklearn",
    "timm",
    "torch_pruning",
    "torchao",
    "torchmetrics",
    "torchvision",
    "typer",
    "webdataset",
]
