"""Labelled image data: opened by name, held in frozen records, read by loaders that can resume anywhere."""

from __future__ import annotations

from reparam.data.augment import Augment
from reparam.data.dataset import ArraySplit, ImageData, Split
from reparam.data.loaders import ArrayTrainLoader, EvalLoader, Sharding, TrainLoader
from reparam.data.opening import open_data

__all__ = [
    "ArraySplit",
    "ArrayTrainLoader",
    "Augment",
    "EvalLoader",
    "ImageData",
    "Sharding",
    "Split",
    "TrainLoader",
    "open_data",
]
