"""Nets that nearly are the same, or hide what they do: never "equal" without a proof."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reparam

CONV = nn.Conv2d(4, 4, 3, padding=1)
X = torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(0))
WHOLE = torch.arange(-5, 5).reshape(2, 5)


class Net(nn.Module):
    """A function of values, and of a convolution of its own."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function, self.conv = function, copy.deepcopy(CONV)
        for name, part in parts.items():
            self.register_buffer(name, part)

    def forward(self, *given):
        return self.function(self, *given)


def changed_between(added):
    def run(_, x):
        factor = torch.ones(4, 1, 1)
        y = x * factor
        factor.add_(added)
        return y * factor

    return Net(run)


def bordered(mode):
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)
    conv.load_state_dict(CONV.state_dict())
    return conv


def with_eps(eps):
    norm = nn.BatchNorm2d(4, eps=eps)
    norm.running_var.copy_(torch.tensor([1.0, 1e-12, 2.0, 3.0]))
    return norm


def changed(module, name, change):
    other = copy.deepcopy(module)
    change(other.get_parameter(name).data)
    return other


PLAIN = Net(lambda s, x: s.conv(x))
NOT_EQUAL = {
    "half precision in between": (PLAIN, Net(lambda s, x: s.conv(x).half().float())),
    "a cast to whole numbers": (PLAIN, Net(lambda s, x: s.conv(x) + (x * 1e-3).int())),
    "whole numbers that overflow": (
        Net(lambda _, x: x.to(torch.int8).add(0) * 2 * 0.5),
        Net(lambda _, x: x.to(torch.int8) * 1.0),
    ),
    "another eps": (with_eps(1e-5), with_eps(1e-6)),
    "a norm of the batch": (
        Net(lambda _, x: F.batch_norm(x, torch.zeros(4), torch.ones(4), training=True)),
        Net(lambda _, x: F.batch_norm(x, torch.zeros(4), torch.ones(4))),
    ),
    "numbers that are none": (
        changed(CONV, "weight", lambda w: w.view(-1)[:1].fill_(torch.nan)),
        changed(CONV, "weight", lambda w: w.view(-1)[:1].fill_(torch.nan)),
    ),
    "infinite numbers": (CONV, changed(CONV, "weight", lambda w: w.view(-1)[:1].fill_(torch.inf))),
    "all numbers, by little": (CONV, changed(CONV, "weight", lambda w: w.mul_(1 + 3e-6))),
    "random numbers": (PLAIN, Net(lambda s, x: s.conv(x) + 1e-4 * torch.rand(4, 1, 1))),
    "dropout": (PLAIN, Net(lambda s, x: F.dropout(s.conv(x), 0.1, True))),
    "a branch on a value": (PLAIN, Net(lambda s, x: s.conv(x) if x.sum() > -1e4 else x)),
    "a number taken out": (PLAIN, Net(lambda s, x: s.conv(x) + 1e-4 * x.flatten()[0].item())),
    "numpy": (PLAIN, Net(lambda s, x: s.conv(x) + torch.tensor(1e-4 * x.numpy().max()))),
    "numbers changed after they were read": (changed_between(1e-4), changed_between(0.0)),
    "another result": (
        Net(lambda s, x: (s.conv(x), x.relu())), Net(lambda s, x: (x.relu(), s.conv(x))),
    ),
    "a result that is no tensor": (Net(lambda _, x: [x, 1.0]), Net(lambda _, x: [x, 2.0])),
    "no result": (Net(lambda *_: None), Net(lambda *_: None)),
    "mirrored and repeated borders": (
        bordered("reflect"), bordered("circular"),
    ),
    "windows beyond the end": (
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    ),
    "corners": (
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    ),
    "gelu": (nn.GELU(), nn.GELU("tanh")),
    "softplus": (nn.Softplus(), nn.Softplus(threshold=5)),
    "a slope": (nn.LeakyReLU(0.01), nn.LeakyReLU(0.01001)),
    "a clip that never clips": (Net(lambda _, x: x.clamp(-1e6, 1e6)), nn.Identity()),
    "axes of one size": (
        Net(lambda _, x: x[..., :7].transpose(2, 3)), Net(lambda _, x: x[..., :7]),
    ),
    "part of a value changed": (PLAIN, Net(lambda s, x: _doubled(s.conv(x)))),
    "rounding division": (
        Net(lambda _, x: torch.div(x, 2, rounding_mode="floor")), Net(lambda _, x: x / 2),
    ),
}  # fmt: skip


def _doubled(y):
    y[:, :2].mul_(1 + 1e-3)
    return y


@pytest.mark.parametrize("case", NOT_EQUAL)
def test_what_is_not_the_same_is_never_called_equal(case):
    first, second = (net.eval() for net in NOT_EQUAL[case])
    x = X.clone()
    assert reparam.diff(first, second, x).outcome != "equal"
    assert reparam.diff(second, first, x).outcome != "equal"
    assert x.equal(X)


def test_whole_numbers_are_compared_as_they_are():
    twice, sum_ = Net(lambda _, x: x * 2), Net(lambda _, x: x + x + 1)
    assert reparam.diff(twice, sum_, WHOLE).outcome != "equal"


EQUAL = {
    "numbers changed after they were read": (
        changed_between(1.0), Net(lambda _, x: 2 * x),
    ),
    "an end that no window crosses": (
        nn.MaxPool2d((1, 2), ceil_mode=True), nn.MaxPool2d((1, 2)),
    ),
    "inputs in another order": (
        Net(lambda s, x: {"a": s.conv(x) + x}), Net(lambda s, x: [x + s.conv(x)]),
    ),
    "an input that is changed": (
        Net(lambda s, x: s.conv(x.mul_(2))), Net(lambda s, x: s.conv(2 * x)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EQUAL)
def test_what_is_the_same_is_equal(case):
    first, second = (net.eval() for net in EQUAL[case])
    x = X.clone()
    found = reparam.diff(first, second, x)
    assert found.outcome == "equal", str(found)
    assert x.equal(X)


def graph(nodes, functions=(), domains=()):
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(name, kind, [1, 4]) for name in "xy"]
    made = onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid(name, version) for name, version in (("", 18), *domains)]
    model = onnx.helper.make_model(made, opset_imports=opsets, functions=functions)
    model.ir_version = 9
    return model


def test_a_function_of_a_file_is_what_it_says_and_not_its_name():
    own = onnx.helper.make_function(
        "own", "Relu", ["a"], ["b"],
        [onnx.helper.make_node("Constant", [], ["slope"], value_float=1e-5),
         onnx.helper.make_node("PRelu", ["a", "slope"], ["b"])],
        [onnx.helper.make_opsetid("", 18)],
    )  # fmt: skip
    node = onnx.helper.make_node("Relu", ["x"], ["y"], domain="own")
    hidden = graph([node], [own], [("own", 1)])
    plain = graph([onnx.helper.make_node("Relu", ["x"], ["y"])])
    leaky = graph([onnx.helper.make_node("LeakyRelu", ["x"], ["y"], alpha=1e-5)])
    assert reparam.diff(hidden, plain).outcome != "equal"
    assert reparam.diff(leaky, plain).outcome == "different"
    assert reparam.diff(hidden, copy.deepcopy(hidden)).outcome == "equal"


def test_a_size_that_one_file_leaves_open_is_taken_from_the_other():
    fixed = graph([onnx.helper.make_node("Relu", ["x"], ["y"])])
    free = copy.deepcopy(fixed)
    for dim in free.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "n"
    for pair in ((free, fixed), (fixed, free)):
        found = reparam.diff(*pair)
        assert (found.outcome, found.shapes) == ("equal", ((1, 4),))


def _chosen(net, x):
    y = net.conv(x)
    return torch.where(y > 0.1, y.sign() + y.floor(), torch.maximum(y, x.cos()))


def _looked_up(net, x):
    grid = F.affine_grid(net.turn.expand(len(x), -1, -1), [*x.shape], align_corners=False)
    return F.grid_sample(net.conv(x), grid, align_corners=False).masked_fill(x <= 0, 0.5)


def _turned(net, x):
    return torch.rot90(net.conv(F.pixel_unshuffle(F.pixel_shuffle(x, 2)[:, :, :14], 2)), 3, (2, 3))


def _stacked(net, x):
    return torch.stack([net.conv(x), x, 2 * x]).mean(0) + torch.stack([x, net.conv(x)], 1).sum(1)


TURN = torch.tensor([[[0.9, 0.2, 0.0], [-0.1, 1.1, 0.1]]])


@pytest.mark.parametrize("function", [_chosen, _looked_up, _turned, _stacked])
def test_operations_that_choose_look_elsewhere_or_are_stacked(function) -> None:
    net = Net(function, turn=TURN).eval()
    spelt = {
        _chosen: lambda n, x: torch.where(
            n.conv(x).gt(0.1), n.conv(x).floor() + n.conv(x).sign(), x.cos().maximum(n.conv(x))
        ),
        _stacked: lambda n, x: (3 * x + n.conv(x)) / 3 + x + n.conv(x),
    }.get(function, function)
    other = Net(spelt, turn=TURN).eval()
    assert reparam.diff(net, other, X).outcome == "equal"
    assert reparam.diff(net, torch.export.export(net, (X,)), X).outcome == "equal"
    other.conv.weight.data[1, 2, 0, 1] += 0.01
    assert reparam.diff(net, other, X).outcome == "different"


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.gt, torch.lt), (torch.maximum, torch.minimum),
        (lambda x, y: x >= y, lambda x, y: y > x), (lambda x, _: x.sign(), lambda x, _: x.round()),
    ],
)  # fmt: skip
def test_other_choices_are_no_equal_ones(left, right) -> None:
    nets = [Net(lambda n, x, f=f: f(n.conv(x), x).to(x.dtype)).eval() for f in (left, right)]
    assert reparam.diff(*nets, X).outcome != "equal"
