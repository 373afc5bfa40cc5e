"""An exponential moving average of a model's weights."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn


class WeightAverage:
    """``average <- d * average + (1 - d) * weights``, over parameters and floating-point buffers.

    The decay is ramped up as ``min(decay, (1 + n) / (10 + n))`` after n updates, so that the
    average of a short run is not held back by the random start. Weights are kept here and no
    model: torch's ``AveragedModel`` runs a deep copy, in which functions that hold modules, as some
    nets have, still run the weights in training.

    Attributes:
        weights: The average, by state-dict key.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self.weights = {
            name: tensor.detach().clone() for name, tensor in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights."""
        share = 1 - min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        averages, currents = [], []
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                averages.append(self.weights[name])
                currents.append(tensor.detach())
            else:
                self.weights[name].copy_(tensor)
        torch._foreach_lerp_(averages, currents, share)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates."""
        return {"average": self.weights, "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        for name, tensor in self.weights.items():
            tensor.copy_(state["average"][name])
        self._updates = int(state["updates"])

    def to(self, device: torch.device) -> None:
        """Move the average to a device."""
        self.weights = {name: tensor.to(device) for name, tensor in self.weights.items()}

    @contextmanager
    def shown(self, model: nn.Module) -> Iterator[None]:
        """Give `model` the averaged weights within the block, and its own back after it."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.weights)
        try:
            yield
        finally:
            model.load_state_dict(own)
