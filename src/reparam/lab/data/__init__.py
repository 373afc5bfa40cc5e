"""Labelled image data: opened by name, held in frozen records, read by loaders that can resume."""

from __future__ import annotations

from reparam.lab.data.augment import Augment
from reparam.lab.data.dataset import EvalLoader, ImageData, eval_loader
from reparam.lab.data.loaders import Sharding, TrainLoader, train_loader
from reparam.lab.data.opening import open_data
from reparam.lab.data.shards import ShardIndex, index_shards
from reparam.lab.data.splits import ArraySplit, ShardSplit, Split, StoredSplit

__all__ = [
    "ArraySplit",
    "Augment",
    "EvalLoader",
    "ImageData",
    "ShardIndex",
    "ShardSplit",
    "Sharding",
    "Split",
    "StoredSplit",
    "TrainLoader",
    "eval_loader",
    "index_shards",
    "open_data",
    "train_loader",
]
