"""Training in the multi-branch form, on Lightning."""

from __future__ import annotations

from reparam._support.optional import require

# Named with the command that brings it, before the modules below import it.
require("lightning.pytorch", extra="train", purpose="Training")

# ruff: noqa: E402 - the imports come behind the question whether they can be made
from reparam.lab.training.finishing import Deployment, finish
from reparam.lab.training.recipe import (
    Ema,
    Optimizer,
    Recipe,
    Schedule,
    SmallFirst,
    load_recipe,
    recipe_names,
)
from reparam.lab.training.result import (
    EpochRecord,
    Hardware,
    OnlineRun,
    OnProgress,
    Progress,
    TrainResult,
)
from reparam.lab.training.running import accuracy, train

__all__ = [
    "Deployment",
    "Ema",
    "EpochRecord",
    "Hardware",
    "OnProgress",
    "OnlineRun",
    "Optimizer",
    "Progress",
    "Recipe",
    "Schedule",
    "SmallFirst",
    "TrainResult",
    "accuracy",
    "finish",
    "load_recipe",
    "recipe_names",
    "train",
]
