"""Training in the multi-branch form, on Lightning."""

from __future__ import annotations

from reparam.training.finishing import Deployment, finish
from reparam.training.recipe import Ema, Optimizer, Recipe, Schedule, load_recipe, recipe_names
from reparam.training.result import EpochRecord, Hardware, OnProgress, Progress, TrainResult
from reparam.training.running import accuracy, train

__all__ = [
    "Deployment",
    "Ema",
    "EpochRecord",
    "Hardware",
    "OnProgress",
    "Optimizer",
    "Progress",
    "Recipe",
    "Schedule",
    "TrainResult",
    "accuracy",
    "finish",
    "load_recipe",
    "recipe_names",
    "train",
]
