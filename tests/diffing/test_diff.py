"""diff proves equal what is equal, finds every seeded change, and never says more than it knows."""

from __future__ import annotations

import copy
import math

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reparam
from reparam.diffing import difference
from zoo import CASES, randomise


class Net(nn.Module):
    """A bit of everything: branches, groups, pooling, gates, a cat, layouts, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.narrow = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.same = nn.BatchNorm2d(8)
        self.act = nn.ReLU6()
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.pool = nn.AvgPool2d(2, padding=0)
        self.gate = nn.Conv2d(8, 8, 1)
        self.tail = nn.Conv2d(16, 12, 1)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        x = self.act(self.wide(x) + self.narrow(x) + self.same(x))
        y = F.silu(self.grouped(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        z = F.relu(self.tail(torch.cat([self.pool(x), self.pool(y)], 1)))
        return self.head(self.norm(z.flatten(2).transpose(1, 2)).mean(1))


def net():
    torch.manual_seed(0)
    return randomise(Net())


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def to_onnx(model, x=X):
    return torch.onnx.export(model, (x,), dynamo=True, verbose=False).model_proto


# ---------------------------------------------------------------------------------------- equal


# Folded by what normal form does not know: a border that is written out, a crop of a padded value.
BEYOND = ("dbb", "ecbsr", "reflect", "circular", "acnet")


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.name)
def test_a_block_is_equal_to_its_fused_form(case):
    x = case.inputs().float()
    model = case.module().float()
    found = reparam.diff(model, reparam.fuse(model, x, probe=case.probe), x)
    assert found.outcome != "different", str(found)
    assert found.outcome == "equal" or case.name.startswith(BEYOND), str(found)
    assert found.worst < 1


def test_module_program_file_and_fused_forms_are_equal(tmp_path):
    model = net()
    fused = reparam.fuse(model, X)
    program = torch.export.export(model, (X,))
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    graph = to_onnx(model)
    for other in (fused, program, path, graph, to_onnx(fused), reparam.fuse(graph)):
        found = reparam.diff(model, other, X)
        assert found.outcome == "equal", str(found)
        assert found.numbers > 1000


def test_a_file_says_itself_what_its_inputs_are(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(to_onnx(net()), path)
    assert reparam.diff(net(), path).outcome == "equal"


def test_double_half_and_single_are_compared_by_the_coarser_rounding():
    model = net()
    assert reparam.diff(model, copy.deepcopy(model).half(), X).what in (None, "reading", "unread")
    assert (
        reparam.diff(copy.deepcopy(model).double(), model.double(), X.double()).outcome == "equal"
    )


# ---------------------------------------------------------------------------------------- different


def weight(model):
    model.wide[0].weight.data[3, 2, 1, 0] *= 1 + 1e-4


def swapped_channels(model):
    model.tail.weight.data = model.tail.weight.data[:, torch.randperm(16)]


def stride(model):
    model.stem[0].stride, model.pool = (1, 1), nn.AvgPool2d(4)


def padding_side(model):
    conv = model.stem[0]
    conv.padding = (0, 0)
    model.stem = nn.Sequential(nn.ZeroPad2d((2, 0, 1, 1)), *model.stem)


def dilation(model):
    model.grouped.dilation, model.grouped.padding = (1, 1), (1, 1)


def group_order(model):
    model.grouped.weight.data = model.grouped.weight.data.roll(4, 0)


def missing_bias(model):
    model.gate.bias = None


def eps(model):
    model.narrow[1].eps *= 100


def layer_norm_eps(model):
    model.norm.eps *= 100


def dropped_relu(model):
    model.stem[2] = nn.Identity()


def another_limit(model):
    model.act = nn.ReLU()


def counted_padding(model):
    model.pool = nn.AvgPool2d(3, 2, 1, count_include_pad=False)


def transposed(model):
    model.stem[0].weight.data = model.stem[0].weight.data.transpose(2, 3).contiguous()


def half_precision(model):
    model.tail.weight.data = model.tail.weight.data.half().float()


def shift(model):
    model.same.bias.data[5] += 1e-3


def variance(model):
    model.wide[1].running_var.data[0] *= 1 + 1e-3


def head(model):
    model.head.bias.data[1] += 1e-4


MUTATIONS = {
    weight: "wide",
    swapped_channels: "tail",
    stride: "stem",
    padding_side: "stem",
    dilation: "grouped",
    group_order: "grouped",
    missing_bias: "gate",
    eps: "narrow",
    layer_norm_eps: "norm",
    dropped_relu: "stem",
    another_limit: "act",
    counted_padding: "pool",
    transposed: "stem",
    half_precision: "tail",
    shift: "same",
    variance: "wide",
    head: "head",
}


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
@pytest.mark.parametrize("fused", [False, True], ids=["as trained", "against the fused net"])
def test_every_seeded_change_is_found_where_it_is(mutate, fused):
    changed = net()
    mutate(changed)
    original = net()
    reference = reparam.fuse(original, X) if fused else original
    found = reparam.diff(changed, reference, X)
    assert found.outcome == "different", str(found)
    assert found.effect > 0
    assert MUTATIONS[mutate] in str(found.where), str(found)


def test_the_wrong_axis_of_a_cat_is_found():
    class Cat(nn.Module):
        def __init__(self, axis):
            super().__init__()
            self.axis = axis

        def forward(self, x):
            return torch.cat([x.relu(), x], self.axis).flatten(1)

    found = reparam.diff(Cat(1).eval(), Cat(2).eval(), X)
    assert found.outcome == "different"


def test_a_change_in_a_file_is_found_by_name():
    graph = to_onnx(net())
    other = copy.deepcopy(graph)
    conv = next(node for node in other.graph.node if node.op_type == "Conv" and len(node.input) > 2)
    stored = next(entry for entry in other.graph.initializer if entry.name == conv.input[2])
    numbers = onnx.numpy_helper.to_array(stored).copy()
    numbers[0] += 1e-3
    stored.CopyFrom(onnx.numpy_helper.from_array(numbers, stored.name))
    found = reparam.diff(graph, other)
    assert (found.outcome, found.what) == ("different", "bias")
    assert conv.name in str(found.where)


# ---------------------------------------------------------------------------------------- not shown


def test_what_cannot_be_read_is_never_called_equal():
    class Sorted(nn.Module):
        def forward(self, x):
            return x.sort(-1).values

    found = reparam.diff(Sorted().eval(), Sorted().eval(), X)
    assert (found.outcome, found.what) == ("not shown", "unread")


def test_a_difference_that_no_input_shows_is_not_called_one():
    class Dead(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            return F.relu(x.abs() * self.factor)

    found = reparam.diff(Dead(-1.0).eval(), Dead(-2.0).eval(), X)
    assert found.outcome == "not shown"


def test_nan_is_equal_to_nothing():
    model = net()
    model.tail.weight.data[0, 0] = math.nan
    assert reparam.diff(model, copy.deepcopy(model), X).outcome == "not shown"


# ---------------------------------------------------------------------------------------- misuse


def test_training_mode_is_refused():
    with pytest.raises(reparam.TrainingModeError):
        reparam.diff(net().train(), net(), X)


@pytest.mark.parametrize("other", [None, 3, "missing.onnx", "net.txt"])
def test_what_is_no_network_is_refused(other):
    with pytest.raises(reparam.ReparamError):
        reparam.diff(net(), other, X)


def test_two_modules_need_the_shape_of_the_inputs():
    with pytest.raises(reparam.ReparamError):
        reparam.diff(net(), net())


def test_nothing_of_the_caller_is_changed():
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reparam.diff(model, reparam.fuse(model, X), X)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("what", difference.PARTINGS)
def test_every_way_to_part_can_be_said(what):
    detail = {"left": 1.0, "right": 2.0, "index": (0,), "why": "", "side": "first", "off": 0.1}
    assert str(difference.Difference("not shown", what=what, detail=detail, where=("a", "b")))
