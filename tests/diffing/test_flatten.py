"""A norm before a flattened value is, in normal form, part of the linear layer that reads it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import reparam
from zoo import randomise

SPELLINGS = {
    "flatten": lambda y: y.flatten(1),
    "reshape": lambda y: y.reshape(y.shape[0], -1),
    "view": lambda y: y.contiguous().view(y.shape[0], -1),
    "in two steps": lambda y: y.flatten(2).flatten(1),
    "channels last": lambda y: y.permute(0, 2, 3, 1).reshape(y.shape[0], -1),
    "tokens": lambda y: y.flatten(2).transpose(1, 2).flatten(1),
}


class Flattened(nn.Module):
    def __init__(self, spelling, before):
        super().__init__()
        self.before, self.spelling = before, spelling
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4 * 4, 3)

    def forward(self, x):
        return self.head(SPELLINGS[self.spelling](self.norm(self.before(x))))


class Folded(nn.Module):
    """The same with the norm in the linear layer."""

    def __init__(self, net):
        super().__init__()
        self.net = copy.deepcopy(net)
        norm, head = net.norm, self.net.head
        factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).double()
        shift = norm.bias.double() - norm.running_mean.double() * factor
        channels = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 2, 2)
        of = SPELLINGS[net.spelling](channels).flatten().long()
        with torch.no_grad():
            head.bias.copy_(head.bias.double() + head.weight.double() @ shift[of])
            head.weight.copy_(head.weight.double() * factor[of])
        self.net.norm = nn.Identity()
        self.eval()

    def forward(self, x):
        return self.net(x)


BEFORE = {
    "convolution": lambda: nn.Conv2d(3, 4, 3, bias=False),
    "activation": lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.SiLU()),
}


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_norm_before_a_flattened_value_is_part_of_the_linear_layer(spelling, before):
    net = randomise(Flattened(spelling, BEFORE[before]())).float()
    x = torch.randn(2, 3, 4, 4)
    others = [reparam.fuse(net, x), Folded(net)]
    others += [torch.onnx.export(m, (x,), dynamo=True, verbose=False).model_proto
               for m in (net, others[1])]  # fmt: skip
    for other in others:
        found = reparam.diff(net, other, x)
        assert found.outcome == "equal", str(found)


@pytest.mark.parametrize("part", ["norm.bias", "norm.weight", "head.weight"])
@pytest.mark.parametrize("spelling", ["flatten", "channels last"])
def test_and_one_number_of_either_is_found_there(spelling, part):
    net = randomise(Flattened(spelling, nn.Conv2d(3, 4, 3))).float()
    other = copy.deepcopy(net)
    other.get_parameter(part).data.view(-1)[2] *= 1 + 1e-3
    for first in (net, Folded(net)):
        found = reparam.diff(first, other, torch.randn(1, 3, 4, 4))
        assert found.outcome == "different", str(found)
        assert part.partition(".")[0] in found.where[1]
