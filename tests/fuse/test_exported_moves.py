"""Exported programs are read by the rules for modules: whatever moves channels or positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reparam
from counting import count
from small_nets import Lambda, image
from zoo import randomise

MOVES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "tile": lambda x: torch.tile(x, (2, 1, 1)),
    "interleave": lambda x: x.repeat_interleave(2, 1),
    "shuffle": lambda x: F.channel_shuffle(torch.cat([x, x], 1), 2),
    "roll": lambda x: torch.cat([torch.roll(x, 1, 2), torch.flip(x, (3,))], 1),
}


@pytest.mark.parametrize("step", MOVES.values(), ids=MOVES)
def test_a_norm_before_it_goes_into_the_layer_behind(
    step: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    model = Lambda(lambda s, x: s.b(step(s.a(x.relu()))), nn.BatchNorm2d(4), nn.Conv2d(8, 4, 1))
    model, x = randomise(model.double()), image()
    fused = reparam.fuse(torch.export.export(model, (x,))).module()
    assert count(fused, x)[1].norms == 0
    torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-11)
