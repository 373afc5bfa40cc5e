"""Values with a border around them: whatever way it is written, diff compares inside and border."""

from __future__ import annotations

import copy
import io
import warnings

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reparam
from zoo import CASES, randomise
from zoo.everyday import ReflectBranches

CASE = {case.name: case for case in CASES}
WRITTEN = ["dbb-border-stride2", "ecbsr-written-border"]


def to_onnx(model, x, *, dynamo):
    if dynamo:
        return torch.onnx.export(model, (x,), dynamo=True, verbose=False).model_proto
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, about itself
        torch.onnx.export(model, (x,), file, dynamo=False, opset_version=18)
    return onnx.load_from_string(file.getvalue())


def branches(mode, rank=2):
    model = randomise(ReflectBranches(4, mode, rank)).eval()
    return model, torch.randn(2, 4, *[7, 8, 9][:rank])


def off_by(model, factor):
    """The same net with one number of the first bias changed."""
    changed = copy.deepcopy(model)
    bias = next(p for name, p in changed.named_parameters() if name.endswith("bias"))
    bias.data[1] *= 1 + factor
    return changed


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("name", WRITTEN)
def test_written_borders_are_read_from_files(name, dynamo):
    model, x = CASE[name].module().float(), CASE[name].inputs().float()
    graph = to_onnx(model, x, dynamo=dynamo)
    found = reparam.diff(model, graph, x)
    assert found.outcome == "equal", str(found)
    changed = reparam.diff(off_by(model, 1e-3), graph, x)
    assert changed.outcome == "different", str(changed)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_branches_over_a_padding_mode_are_equal_to_their_fused_form(mode, rank):
    model, x = branches(mode, rank)
    fused = reparam.fuse(model, x)
    assert reparam.diff(model, fused, x).outcome == "equal"
    assert reparam.diff(model, off_by(fused, 1e-3), x).outcome == "different"


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_are_told_from_one_another(mode):
    model, x = branches(mode)
    other, _ = branches("reflect" if mode != "reflect" else "replicate")
    other.load_state_dict(model.state_dict())
    assert reparam.diff(model, other, x).outcome == "different"


def test_circular_padding_in_parts_is_circular_padding():
    model, x = branches("circular")
    assert reparam.diff(model, to_onnx(model, x, dynamo=False), x).outcome == "equal"


class Bordered(nn.Module):
    """A convolution, a border of numbers around its output, and another convolution."""

    def __init__(self, border, side=-1):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3)
        self.border, self.side = border, side

    def forward(self, x):
        y = F.pad(self.one(x), [1] * 4, value=self.border)
        y = y.clone()
        y[:, :, :, self.side :] = 2 * self.border
        return self.two(y)


X = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("other", [Bordered(0.5 + 1e-5), Bordered(0.5, side=-2)])
def test_another_border_is_found(other):
    assert reparam.diff(Bordered(0.5).eval(), Bordered(0.5).eval(), X).outcome == "equal"
    assert reparam.diff(Bordered(0.5).eval(), other.eval(), X).outcome == "different"


def test_a_bias_that_is_seen_through_padding_is_compared_at_the_border():
    class Through(nn.Module):
        def __init__(self, bias):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3, padding=1)
            self.one.bias.data[2] += bias

        def forward(self, x):
            return self.two(self.one(x))

    class Whole(nn.Module):
        """The same with the bias written as a map of the positions."""

        def __init__(self):
            super().__init__()
            two = Through(0.0)
            self.conv = nn.Conv2d(3, 5, 3, padding=1, bias=False).double()
            self.conv.weight.data = torch.einsum(
                "omhw,mi->oihw", two.two.weight.double(), two.one.weight.double()[:, :, 0, 0]
            )
            ones = two.one.bias.double().view(1, 4, 1, 1).expand(1, 4, *X.shape[2:])
            self.field = two.two.double()(ones).detach()

        def forward(self, x):
            return self.conv(x) + self.field

    x = X.double()
    assert reparam.diff(Through(0.0).double().eval(), Whole().eval(), x).outcome == "equal"
    found = reparam.diff(Through(1e-4).double().eval(), Whole().eval(), x)
    assert found.outcome == "different", str(found)
