"""What :func:`reparam.verify` and the checks built on it say, and when that shows something."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import reparam
from checking import Snapshot
from reparam.errors import InputError, ReparamError, TrainingModeError, VerificationError
from reparam.verifying import NothingShownWarning
from small_nets import Lambda, conv, norm
from zoo import randomise


def net(last: nn.Module | None = None) -> nn.Sequential:
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return randomise(nn.Sequential(*made, last or nn.Identity())).eval()


def x(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 3, 9, 8))


def other(model: nn.Module) -> nn.Module:
    """The same net with one weight changed by far more than rounding."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.parameters())[0].mul_(1.5)
    return changed


# ----------------------------------------------------------- there has to be a number to compare


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight", "1.running_mean", "3.weight"])
def test_a_net_that_computes_nothing_is_equal_to_none_and_its_layer_is_named(name, bad, tmp_path):
    nets = net(), net()
    for one in nets:
        one.state_dict()[name].flatten()[0] = bad
    for candidate in (nets[1], copy.deepcopy(nets[0])):
        verdict = reparam.verify(nets[0], candidate, x())
        assert not verdict.ok
        with pytest.raises(VerificationError, match=name.replace(".", r"\.")):
            verdict.raise_if_different()
        with pytest.raises(ReparamError, match=name.replace(".", r"\.")):
            reparam.export(candidate, tmp_path / "net.safetensors", x(), reference=nets[0])
    assert list(tmp_path.iterdir()) == []


def test_a_variance_below_zero_is_named():
    one = net()
    one[1].running_var[2] = -1.0
    verdict = reparam.verify(one, copy.deepcopy(one), x())
    assert not verdict.ok
    assert "variance of 1 " in str(verdict)


def test_fusing_what_is_not_finite_compares_the_rest():
    """The layer stays; the edits of the others are still seen to be right."""
    one = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)
    )
    one = randomise(one).eval()
    with torch.no_grad():
        one[2].weight[0, 0, 0, 0] = torch.nan
    fused = reparam.fuse(one, x())
    assert isinstance(fused[1], nn.Identity)
    assert isinstance(fused[3], nn.BatchNorm2d)


@pytest.mark.parametrize("scale", [1e38, 1e-38])
def test_weights_of_any_size_do_not_end_in_a_false_accusation(scale):
    one = net()
    with torch.no_grad():
        one[0].weight.mul_(scale)
    v = x()
    fused, wide = reparam.fuse(one, v).double(), one.double()
    torch.testing.assert_close(fused(v.double()), wide(v.double()), rtol=1e-4, atol=1e-30)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 3e2), (torch.float32, 1e20)])
def test_a_fold_that_overflows_is_left_and_said_so(dtype, scale):
    one = nn.Sequential(*net()[:4], nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        one[0].weight.mul_(scale)
        one[1].weight.mul_(scale)
        one[1].running_var.fill_(1 / scale)
    one = one.to(dtype)
    plan = reparam.plan(one, x().to(dtype))
    assert any("overflows" in r.why and str(dtype)[6:] in r.why for r in plan.refusals)
    fused = plan.apply()
    assert isinstance(fused[1], nn.BatchNorm2d)
    assert isinstance(fused[-1], nn.Identity)


@pytest.mark.parametrize("empty", ["inputs", "outputs"])
def test_a_comparison_of_no_number_is_not_equal(empty, tmp_path):
    one = net() if empty == "inputs" else Lambda(lambda m, v: m.a(v)[:0], conv(3, 4)).eval()
    sample = x(0, 3, 9, 8) if empty == "inputs" else x()
    verdict = reparam.verify(one, copy.deepcopy(one), sample)
    assert not verdict.ok
    assert verdict.agreement is None
    with pytest.raises(ReparamError):
        reparam.export(one, tmp_path / "net.safetensors", sample)
    assert list(tmp_path.iterdir()) == []


def test_infinities_in_the_same_places_are_equal_where_the_weights_are_finite():
    masked = Lambda(lambda m, v: m.a(v).where(torch.arange(8) < 7, -torch.inf), conv(3, 4)).eval()
    assert reparam.verify(masked, copy.deepcopy(masked), x(2, 3, 9, 8)).ok
    assert not reparam.verify(masked, other(masked), x(2, 3, 9, 8)).ok


# ------------------------------------------------------------------ outputs have to vary


SATURATED = {
    "sigmoid": lambda m, v: torch.sigmoid(m.a(v) - 300),
    "hardsigmoid": lambda m, v: nn.functional.hardsigmoid(m.a(v) + 90),
    "clamp": lambda m, v: (m.a(v) + 50).clamp(0, 1),
    "relu": lambda m, v: (m.a(v) - 50).relu(),
    "tanh in a dict": lambda m, v: {"y": torch.tanh(m.a(v) * 1e-3 + 30)},
    "beside what varies": lambda m, v: (v.mean(), torch.sigmoid(m.a(v) - 300)),
}


@pytest.mark.parametrize("case", SATURATED)
def test_what_stands_before_a_saturated_function_is_compared(case):
    one = randomise(Lambda(SATURATED[case], conv(3, 4)).float()).eval()
    assert reparam.verify(one, copy.deepcopy(one), x()).ok
    assert not reparam.verify(one, other(one), x()).ok


@pytest.mark.parametrize("batch", [1, 3])
def test_inputs_on_which_an_output_varies_are_looked_for(batch):
    """As a detector's: blind to normal noise around zero, awake for images."""
    one = Lambda(lambda m, v: m.a(v) * (v.mean() > 0.25), conv(3, 4)).eval()
    zeros = torch.zeros(batch, 3, 9, 8)
    assert reparam.verify(one, copy.deepcopy(one), zeros).ok
    assert not reparam.verify(one, other(one), zeros).ok


def test_a_constant_output_is_called_no_evidence():
    constant = net(nn.Conv2d(4, 2, 1))
    nn.init.zeros_(constant[-1].weight)
    with pytest.warns(NothingShownWarning, match="nothing was shown"):
        reparam.verify(constant, copy.deepcopy(constant), x())


def test_a_tolerance_that_hides_the_signal_is_no_evidence():
    """Rounding of the large constant explains all that the input does."""
    loud = Lambda(lambda m, v: m.a(v) * 1e-9 + 1e3, conv(3, 4)).eval()
    with pytest.warns(NothingShownWarning):
        reparam.verify(loud, other(loud), x())


def test_fusing_behind_a_saturated_output_is_compared(monkeypatch):
    """A fold gone wrong is noticed though the sigmoid returns zeros either way."""
    one = randomise(
        Lambda(lambda m, v: torch.sigmoid(m.b(m.a(v)) - 300), conv(3, 4), norm(4)).float()
    ).eval()
    assert reparam.verify(one, reparam.fuse(one, x()), x()).ok
    from reparam.fusing import edit

    make = edit.make_layer

    def wrong(folded):
        layer = make(folded)
        with torch.no_grad():
            next(layer.parameters()).mul_(1.5)
        return layer

    monkeypatch.setattr(edit, "make_layer", wrong)
    with pytest.raises(VerificationError):
        reparam.fuse(one, x())


# ------------------------------------------------------------ structure, and numbers of any type


Pair = namedtuple("Pair", "first second")  # noqa: PYI024 (the form that old code uses)


@dataclass
class Record:
    first: torch.Tensor
    label: str = "a"


class Odd(dict):
    pass


STRUCTURES = {
    "tensor": lambda y: y,
    "list": lambda y: [y],
    "tuple": lambda y: (y,),
    "dict": lambda y: {"first": y},
    "ordered": lambda y: OrderedDict(first=y),
    "default": lambda y: defaultdict(list, first=y),
    "dict subclass": lambda y: Odd(first=y),
    "named tuple": lambda y: Pair(y, y),
    "record": Record,
    "labelled record": lambda y: Record(y, "b"),
    "other key": lambda y: {"second": y},
    "two": lambda y: (y, y),
    "none beside": lambda y: (y, None),
    "nested": lambda y: ({"a": [y]},),
    "other order": lambda y: {"b": y, "a": y},
    "this order": lambda y: {"a": y, "b": y},
    "integers": lambda y: (y * 100).round().int(),
    "booleans": lambda y: y > 0,
    "reshaped": lambda y: y[None],
    "complex": lambda y: torch.complex(y, y),
}


@pytest.mark.parametrize("case", STRUCTURES)
def test_results_of_another_structure_are_not_equal(case):
    def returning(name):
        return Lambda(lambda m, v: STRUCTURES[name](m.a(v)), torch.nn.Conv2d(3, 4, 3)).eval()

    one = returning(case)
    for name in STRUCTURES:
        candidate = returning(name)
        candidate.load_state_dict(one.state_dict())
        if name == case:
            assert reparam.verify(one, candidate, x()).ok
            continue
        with pytest.raises(InputError, match="structure"):
            reparam.verify(one, candidate, x())


def test_a_function_may_return_a_flat_list():
    one = Lambda(lambda m, v: {"a": m.a(v), "b": (v.sum(),)}, conv(3, 4)).eval()
    assert reparam.verify(one, lambda v: [one(v)["a"], v.sum()], x()).ok


@pytest.mark.parametrize(
    "second",
    [
        lambda y: y > 0,
        lambda y: (y * 10).round().int(),
        lambda y: y.argmax(1),
        lambda y: y.shape[0],
    ],
)
def test_integers_and_booleans_are_compared_for_equality(second):
    one = Lambda(lambda m, v: (m.a(v), second(m.a(v))), conv(3, 4)).eval()
    assert reparam.verify(one, copy.deepcopy(one), x()).ok
    assert reparam.verify(one, reparam.fuse(one, x()), x()).ok
    off = Lambda(lambda m, v: (m.a(v), second(-m.a(v))), conv(3, 4)).eval()
    off.load_state_dict(one.state_dict())
    verdict = reparam.verify(one, off, x())
    if isinstance(second(x(2, 4, 3, 3)), torch.Tensor):
        assert verdict.unequal > 0
        assert not verdict.ok


def test_integers_alone_are_compared():
    one = Lambda(lambda m, v: m.a(v).flatten(1).argmax(1), conv(3, 4)).eval()
    assert reparam.verify(one, copy.deepcopy(one), x(16, 3, 9, 8)).ok
    far = Lambda(lambda m, v: (-m.a(v)).flatten(1).argmax(1), conv(3, 4)).eval()
    far.load_state_dict(one.state_dict())
    assert not reparam.verify(one, far, x(16, 3, 9, 8)).ok


# --------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("part", [nn.BatchNorm2d(4), nn.Dropout(), nn.InstanceNorm2d(4)])
def test_training_mode_is_an_error_and_nothing_is_written(which, part):
    models = [net(copy.deepcopy(part)), net(copy.deepcopy(part))]
    models[which][-1].train()
    before = Snapshot.of(models[which])
    with pytest.raises(TrainingModeError, match="4"):
        reparam.verify(*models, x())
    before.assert_unchanged(models[which])
