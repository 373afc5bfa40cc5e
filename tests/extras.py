"""What the optional packages are called where they are imported."""

from __future__ import annotations

__all__ = ["EXTRAS_ONLY"]

EXTRAS_ONLY = [
    "PIL",
    "ai_edge_litert",
    "coremltools",
    "jinja2",
    "lightning",
    "litert_torch",
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
