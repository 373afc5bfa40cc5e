"""One training run from the command line: what was asked for, checked, run, finished and told."""

from __future__ import annotations

from reparam.cli.training.request import TrainRequest
from reparam.cli.training.running import Finished, run
from reparam.cli.training.summary import as_dict, tell

__all__ = ["Finished", "TrainRequest", "as_dict", "run", "tell"]
