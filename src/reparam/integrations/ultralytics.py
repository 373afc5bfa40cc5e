"""A YOLO of ultralytics with its model fused, and its own ``predict`` and ``val`` on top."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from torch import nn

import reparam
from reparam.errors import InputError

_STRIDES = 4
"""The side of the example image, in strides of the model."""


def fuse(yolo: Any) -> Any:
    """Return a copy of an ``ultralytics.YOLO`` whose model is fused.

    ultralytics folds norms itself before it predicts, which fails where they are gone; the copy
    leaves that out, so that ``predict``, ``val`` and ``track`` run what was folded here.

    Args:
        yolo: A YOLO with a PyTorch model; it is not changed.

    Raises:
        InputError: It is something else, or a YOLO of an exported file.

    Example:
        >>> from ultralytics import YOLO  # doctest: +SKIP
        >>> fuse(YOLO("yolo11n.yaml")).predict("image.jpg")  # doctest: +SKIP

    """
    model = getattr(yolo, "model", None)
    if not isinstance(model, nn.Module) or not hasattr(model, "stride"):
        raise InputError(
            f"a {type(yolo).__name__} holds no PyTorch model of ultralytics; give "
            f"ultralytics.YOLO('name.pt') or YOLO('name.yaml')"
        )
    made = copy.deepcopy(yolo)
    made.predictor = None
    inner = made.model.float().eval()
    first = next(m for m in inner.modules() if isinstance(m, nn.Conv2d))
    side = int(inner.stride.max()) * _STRIDES
    made.model = reparam.fuse(inner, torch.rand(1, first.in_channels, side, side))
    made.model.fuse = MethodType(_as_it_is, made.model)
    return made


def _as_it_is(model: nn.Module, *_: Any, **__: Any) -> nn.Module:
    """What is fused already; in the place of ultralytics' own method."""
    return model
