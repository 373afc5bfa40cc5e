"""diff proves equal what is equal, finds every seeded change, and never says more than it knows."""

from __future__ import annotations

import copy
import functools
import math

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import reparam
from mutable import NETS, Everything
from mutations import MODULES, NODES, mutated, mutated_graph, sites, sites_in_graph, takes_effect
from reparam.diffing import difference
from reparam.diffing.explaining import part_of
from zoo import CASES, randomise


def net():
    torch.manual_seed(0)
    return randomise(Everything())


X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def to_onnx(model, x=X):
    return torch.onnx.export(model, (x,), dynamo=True, verbose=False).model_proto


# ---------------------------------------------------------------------------------------- equal


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.name)
def test_a_block_is_equal_to_its_fused_form(case):
    x = case.inputs().float()
    model = case.module().float()
    found = reparam.diff(model, reparam.fuse(model, x, probe=case.probe), x)
    assert found.outcome == "equal", str(found)
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
    half = copy.deepcopy(model).half()
    assert reparam.diff(model, half, X).outcome == "equal"
    half.head.weight.data[0] *= 2
    assert reparam.diff(model, half, X).outcome == "different"
    assert (
        reparam.diff(copy.deepcopy(model).double(), model.double(), X.double()).outcome == "equal"
    )


# ---------------------------------------------------------------------------------------- different


@functools.cache
def subject(name):
    return randomise(NETS[name]()).eval()


@functools.cache
def graph_of(name):
    torch.manual_seed(0)
    return torch.onnx.export(
        subject(name), (X,), dynamo=True, verbose=False, optimize=False
    ).model_proto


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("fused", [False, True], ids=["as trained", "against the fused net"])
def test_every_kind_of_mutation_is_found_where_it_is(kind, fused):
    # benchmarks/diff_mutations.py tries five hundred of them.
    places = [(name, path) for name in NETS for path in sites(subject(name), kind)]
    for name, path in places[len(places) // 2 :]:
        changed = mutated(subject(name), kind, path, torch.Generator().manual_seed(0))
        if takes_effect(changed, subject(name), X):
            break
    else:
        pytest.fail("no place for it")
    reference = reparam.fuse(subject(name), X) if fused else subject(name)
    found = reparam.diff(changed, reference, X)
    assert found.outcome == "different", str(found)
    assert found.effect > 0
    named = (name for side in found.parts for name in side)
    assert any(name == path or name.startswith(f"{path}.") for name in named), str(found)


# Sizes stand in a file, so that few of these run with another stride.
@pytest.mark.parametrize("kind", [kind for kind in NODES if kind != "stride"])
def test_every_kind_of_mutation_of_a_file_is_found_where_it_is(kind):
    places = [
        (name, node)
        for name in ("everything", "pools")
        for node in sites_in_graph(graph_of(name), kind)
    ]
    for name, node in places[::-1]:
        changed = mutated_graph(graph_of(name), kind, node, torch.Generator().manual_seed(0))
        if takes_effect(changed, graph_of(name), X):
            break
    else:
        pytest.fail("no place for it")
    found = reparam.diff(changed, graph_of(name))
    assert found.outcome == "different", str(found)
    assert node in found.parts[0] + found.parts[1], str(found)
    part = part_of(graph_of(name), found.parts[1])
    assert 0 < len(part.graph.node) < len(graph_of(name).graph.node)
    onnxruntime.InferenceSession(part.SerializeToString())  # a whole graph


def test_the_wrong_axis_of_a_cat_is_found():
    class Cat(nn.Module):
        def __init__(self, axis):
            super().__init__()
            self.axis = axis

        def forward(self, x):
            return torch.cat([x.relu(), x], self.axis).flatten(1)

    found = reparam.diff(Cat(1).eval(), Cat(2).eval(), X)
    assert found.outcome == "different"


def test_a_factor_that_another_makes_good_is_no_difference():
    class Halved(nn.Module):
        def __init__(self, before, after):
            super().__init__()
            self.before, self.after = before, after

        def forward(self, x):
            return F.relu(x * self.before) * self.after

    found = reparam.diff(Halved(2.0, 0.5).eval(), Halved(0.5, 2.0).eval(), X)
    assert found.outcome != "different", str(found)
    assert reparam.diff(Halved(2.0, 0.5).eval(), Halved(0.5, 1.9).eval(), X).outcome == "different"


def test_the_same_gate_in_two_spellings_is_equal():
    class Gelu(nn.Module):
        def forward(self, x):
            return x * 0.5 * (torch.erf(x / math.sqrt(2)) + 1)

    assert reparam.diff(Gelu().eval(), nn.GELU(), X).outcome == "equal"


def test_an_activation_between_reshapes_is_the_same_without_them():
    class Flat(nn.Module):
        def __init__(self, flat):
            super().__init__()
            self.flat, self.up, self.down = flat, nn.Linear(3, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = x.permute(0, 2, 3, 1)
            y = x.reshape(-1, 3) if self.flat else x
            return self.down(F.gelu(self.up(y))).reshape(x.shape)

    flat, whole = Flat(flat=True).eval(), Flat(flat=False).eval()
    whole.load_state_dict(flat.state_dict())
    assert reparam.diff(flat, whole, X).outcome == "equal"


def test_padding_that_leaves_the_first_axes_is_the_same_without_them():
    def padded(*pads):
        class Padded(nn.Module):
            def forward(self, x):
                return F.pad(x, pads, value=1.0)

        return Padded().eval()

    assert reparam.diff(padded(0, 1), padded(0, 1, 0, 0), X).outcome == "equal"


def test_what_only_a_run_can_see_is_read():
    class Python(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = self.conv(x)
            y += 1
            y.relu_()
            return [y] if y.shape[0] == 2 else {"other": y * 2}

    model = Python().eval()
    plain = nn.Sequential(copy.deepcopy(model.conv), nn.ReLU())
    plain[0].bias.data += 1
    assert reparam.diff(model, plain, X).outcome == "equal"


def test_views_that_are_changed_in_place_are_read_by_the_export():
    class Views(nn.Module):
        def forward(self, x):
            y = x * 2
            y[:, 0].add_(1)
            return y

    class Plain(nn.Module):
        def forward(self, x):
            return x * 2

    assert reparam.diff(Views().eval(), Plain().eval(), X).outcome != "equal"


@pytest.mark.parametrize(
    "steps", [{}, None], ids=["composite operators kept", "core operators alone"]
)
def test_programs_are_read_at_any_level(steps):
    program = torch.export.export(net(), (X,))
    lowered = program.run_decompositions(steps)
    assert reparam.diff(net(), lowered, X).outcome == "equal"


# ---------------------------------------------------------------------------------------- not shown


def test_what_cannot_be_read_is_never_called_equal():
    class Sorted(nn.Module):
        def forward(self, x):
            return x.sort(-1).values

    found = reparam.diff(Sorted().eval(), Sorted().eval(), X)
    assert (found.outcome, found.what) == ("not shown", "unread")


def test_a_variance_that_no_scale_belongs_to_is_told():
    model = net()
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).running_var[0] = -1
    assert reparam.diff(model, copy.deepcopy(model), X).outcome == "not shown"


def test_parts_of_a_program_that_run_in_a_mode_are_read_in_their_place():
    class Modes(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                y = self.one(x).relu()
            with torch.no_grad():
                return self.two(y).relu()

    model = Modes().eval()
    program = torch.export.export(model, (X,))
    assert reparam.diff(model, program, X).outcome == "equal"
    other = copy.deepcopy(model)  # the program holds the weights of the module itself
    other.one.weight.data[0, 0] *= 1.01
    assert reparam.diff(other, program, X).outcome == "different"


def test_numbers_that_a_net_computes_itself_are_compared_by_its_own_rounding():
    class Waves(nn.Module):
        def __init__(self, pace=1e4):
            super().__init__()
            self.conv, self.pace = nn.Conv2d(3, 8, 1), pace

        def forward(self, x):
            steps = torch.arange(x.shape[-1], dtype=torch.float32) / self.pace**0.3
            waves = (steps * 40).sin().cumsum(0)
            return (self.conv(x) + waves).relu()

    torch.manual_seed(0)
    model, other = Waves().eval(), Waves(pace=1.001e4).eval()
    other.load_state_dict(model.state_dict())
    assert reparam.diff(model, to_onnx(model), X).outcome == "equal"
    assert reparam.diff(other, model, X).outcome == "different"


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


def test_inputs_that_a_network_does_not_take_are_refused():
    with pytest.raises(reparam.ReparamError):
        reparam.diff(net(), net(), X[:, :2])


@pytest.mark.parametrize("name", ["broken.onnx", "broken.pt2"])
def test_files_that_are_broken_are_refused(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"no network")
    with pytest.raises(reparam.ReparamError):
        reparam.diff(net(), path, X)


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


class Resizing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 4)

    def forward(self, x):
        y = self.conv(x).relu()
        b, c, h, w = y.shape
        y = self.linear(y.view(b, c, h * w).transpose(1, 2)).mean(1)
        return F.interpolate(x, scale_factor=2).mean((2, 3))[:, :1] + y


def test_what_takes_several_sizes_is_compared_at_the_size_that_is_asked_for():
    model, x = Resizing().eval(), torch.randn(2, 3, 16, 16)
    free = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (x,), dynamic_shapes=free)
    graph = torch.onnx.export(
        model, (x,), dynamo=True, verbose=False, dynamic_shapes=free
    ).model_proto
    for shape in ((2, 3, 16, 16), (1, 3, 24, 20)):
        for other in (program, graph):
            found = reparam.diff(model, other, torch.randn(shape))
            assert found.outcome == "equal", str(found)
            assert found.shapes == (shape,)
    assert reparam.diff(program.run_decompositions(), graph).outcome == "equal"


class Rounding(nn.Module):
    """A net that computes in half precision in between, or only looks as if."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.last, self.kind = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), kind

    def forward(self, x):
        y = self.first(x).relu()
        return self.last(y.to(self.kind).float())


@pytest.mark.parametrize("kind", [torch.half, torch.bfloat16])
def test_values_rounded_to_less_than_the_weights_are_stored_in_are_not_called_equal(kind):
    torch.manual_seed(0)
    plain, rounded = Rounding(torch.float).eval(), Rounding(kind).eval()
    rounded.load_state_dict(plain.state_dict())
    for one in (rounded, torch.export.export(rounded, (X,)), to_onnx(rounded)):
        assert reparam.diff(plain, one, X).outcome == "not shown"
    assert reparam.diff(plain, to_onnx(plain), X).outcome == "equal"


def test_a_dropout_in_training_mode_is_not_called_equal():
    helper, kind = onnx.helper, onnx.TensorProto

    def graph(*nodes, **numbers):
        stored = [helper.make_tensor(n, t, [], [v]) for n, (t, v) in numbers.items()]
        ends = [helper.make_tensor_value_info(n, kind.FLOAT, [1, 3, 8, 8]) for n in "xy"]
        made = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], stored)
        opsets = [helper.make_opsetid("", 17)]
        return helper.make_model(made, opset_imports=opsets, ir_version=9)

    plain = graph(helper.make_node("Relu", ["x"], ["y"]))
    nodes = (
        helper.make_node("Dropout", ["x", "rate", "on"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    )
    for on, outcome in ((True, "not shown"), (False, "equal")):
        other = graph(*nodes, rate=(kind.FLOAT, 1e-6), on=(kind.BOOL, on))
        assert reparam.diff(plain, other).outcome == outcome
