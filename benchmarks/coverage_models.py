"""The models of the coverage benchmark, and how their numbers are made representative."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Entry", "Example", "calibrate", "entries"]

Example = Tensor | tuple[Any, ...] | dict[str, Any]
"""What a model is called with: a tensor, arguments by position, or arguments by name."""

_TIMM = Path(__file__).parent / "data" / "timm-families.tsv"
_CLASSIFIERS = (
    ("alexnet", 96),
    ("convnext_tiny", 64),
    ("densenet121", 64),
    ("efficientnet_b0", 64),
    ("efficientnet_v2_s", 64),
    ("googlenet", 96),
    ("inception_v3", 96),
    ("maxvit_t", 224),
    ("mnasnet0_5", 64),
    ("mobilenet_v2", 64),
    ("mobilenet_v3_small", 64),
    ("regnet_x_400mf", 64),
    ("regnet_y_400mf", 64),
    ("resnet18", 64),
    ("resnet50", 64),
    ("resnext50_32x4d", 64),
    ("shufflenet_v2_x0_5", 64),
    ("squeezenet1_1", 96),
    ("swin_t", 64),
    ("vgg11_bn", 64),
    ("wide_resnet50_2", 64),
)
_SEGMENTERS = ("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large")
_DETECTORS = (
    ("fasterrcnn_mobilenet_v3_large_320_fpn", 320),
    ("fcos_resnet50_fpn", 160),
    ("maskrcnn_resnet50_fpn", 160),
    ("retinanet_resnet50_fpn", 160),
    ("ssdlite320_mobilenet_v3_large", 320),
)
_YOLO = ("yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n")


def _images(batch: int, px: int) -> Tensor:
    rng = torch.Generator().manual_seed(px + batch)
    return torch.randn(batch, 3, px, px, generator=rng, dtype=torch.float64)


@dataclass(frozen=True)
class Entry:
    """One model: how to build it, its input, and its library's own conversion if it has one.

    ``example`` makes what it is called with, in float64, of a batch size and an image size.
    ``parts`` gives the pieces to compare, each a function of the model and the input: a detector
    is compared before non-maximum suppression, which flips under rounding.
    """

    name: str
    build: Callable[[], nn.Module]
    image_px: int
    own: Callable[[nn.Module], nn.Module] | None = None
    parts: Callable[[nn.Module, Tensor], Any] | None = None
    batch: int = 8
    end_to_end: bool = False
    in_float32: bool = True
    example: Callable[[int, int], Any] = _images

    def run(self, model: nn.Module, x: Any) -> Any:
        """Compute what is compared."""
        if self.parts is not None:
            return self.parts(model, x)
        if isinstance(x, dict):
            return model(**x)
        return model(*x) if isinstance(x, tuple) else model(x)


def entries(which: set[str]) -> Iterator[Entry]:
    """Yield the entries of the chosen sets, which are names of libraries."""
    for library, made in {
        "timm": _timm,
        "torchvision": _torchvision,
        "ultralytics": _ultralytics,
    }.items():
        if library in which:
            yield from made()
    from coverage_foreign import foreign

    yield from foreign(which)


def _timm() -> Iterator[Entry]:
    import timm
    from timm.utils.model import reparameterize_model

    with _TIMM.open() as file:
        rows = csv.DictReader((line for line in file if not line.startswith("#")), delimiter="\t")
        for row in rows:
            name, px = row["model"], int(row["image_px"])
            yield Entry(
                f"timm:{name}",
                lambda name=name: timm.create_model(name, pretrained=False),
                px,
                own=reparameterize_model,
            )


def _torchvision() -> Iterator[Entry]:
    from torchvision import models

    for name, px in _CLASSIFIERS:
        kind = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}
        options = {"weights": None, **kind.get(name, {})}
        yield Entry(
            f"torchvision:{name}",
            lambda name=name, options=options: models.get_model(name, **options),
            px,
        )
    bare = {"weights": None, "weights_backbone": None}
    for name in _SEGMENTERS:
        yield Entry(f"torchvision:{name}", lambda name=name: models.get_model(name, **bare), 64)
    # End to end they enlarge an image to 800 pixels, unless told otherwise.
    small = {"min_size": 160, "max_size": 160}
    for name, px in _DETECTORS:
        options = bare if px == 320 else {**bare, **small}
        yield Entry(
            f"torchvision:{name}",
            lambda name=name, options=options: models.get_model(name, **options),
            px,
            parts=_detector_parts,
            batch=2,
            end_to_end=True,
        )


def _detector_parts(model: nn.Module, x: torch.Tensor) -> Any:
    """Compute a detector's features and dense predictions."""
    features = model.backbone(x)
    maps = list(features.values()) if isinstance(features, dict) else [features]
    head = model.rpn.head if hasattr(model, "rpn") else model.head
    return maps, head(maps)


def _ultralytics() -> Iterator[Entry]:
    from ultralytics.nn.tasks import DetectionModel

    for name in _YOLO:
        yield Entry(
            f"ultralytics:{name}",
            lambda name=name: DetectionModel(f"{name}.yaml", verbose=False),
            64,
            own=lambda model: model.fuse(verbose=False),
        )


def calibrate(model: nn.Module, x: Any, run: Callable[..., Any], seed: int = 0) -> None:
    """Give a freshly built model numbers like those of a trained one; leave it in eval mode.

    Parameters that start constant (a gamma of one, a LayerScale of 1e-6, a residual branch that
    begins at zero) are drawn, so that no branch is dead; then each BN takes the statistics of one
    batch, so that the output depends on the input.
    """
    rng = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if getattr(m, "running_var", None) is not None]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                constant = float(parameter.flatten()[0])
                low, high = (-0.2, 0.2) if constant == 0 else (0.3, 1.2)
                draw = torch.rand(parameter.shape, generator=rng, dtype=torch.float64)
                parameter.copy_(low + (high - low) * draw)
        model.eval()
        handles = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
        run(model, x)
        for handle in handles:
            handle.remove()


def _take_statistics(norm: nn.Module, args: tuple[Any, ...]) -> None:
    """Give a norm the statistics of its input, also one that is frozen and takes none itself."""
    means, variances = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    x = args[0].transpose(0, 1).flatten(1)
    means.copy_(x.mean(1))
    variances.copy_(x.var(1, correction=0))
