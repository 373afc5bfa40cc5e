"""A part of a model is folded and the rest stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import reparam
from checking import Snapshot
from reparam import Why
from reparam.errors import InputError, TrainingModeError
from small_nets import conv, image, norm
from zoo import randomise


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = conv(), norm()

    def forward(self, x):
        return torch.relu(self.norm(self.one(x)) + x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(), Block())
        self.neck = nn.Sequential(conv(), norm(), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x):
        return self.head(self.neck(self.body(x)))


def net() -> Net:
    return randomise(Net().double()).eval()


def norms(model: nn.Module) -> set[str]:
    return {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


BODY_0 = {"body.0.norm"}
BODY = BODY_0 | {"body.1.norm"}
ALL = BODY | {"neck.1"}
WAYS = {
    "a module": ("body", BODY),
    "one of two": ("body.0", BODY_0),
    "a pattern": ("body.*", BODY),
    "patterns of leaves": (["*.one", "*.norm"], BODY),
    "a layer without its norm": ("neck.0", set()),
    "names": (["body.0", "neck"], BODY_0 | {"neck.1"}),
    "a class": (Block, BODY),
    "a function": (lambda name, _: name == "neck", {"neck.1"}),
    "a function that leaves a part": (lambda name, _: not name.startswith("neck"), BODY),
    "a function that leaves a class": (lambda _, module: not isinstance(module, Block), {"neck.1"}),
    "a function or a name": ([lambda name, _: name != "body", "body.0"], BODY_0 | {"neck.1"}),
    "everything": ("*", ALL),
}


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_only_what_was_chosen_folds(way, example):
    model, (where, folded) = net(), WAYS[way]
    before = Snapshot.of(model)
    plan = reparam.plan(model, image() if example else None, where=where)
    fused = plan.apply()
    before.assert_unchanged(model)
    assert norms(model) - norms(fused) == folded
    left = [r for r in plan.refusals if r.reason.kind is Why.NOT_CHOSEN]
    assert {refusal.where for refusal in left} >= ALL - folded
    torch.testing.assert_close(fused(image()), model(image()), rtol=1e-10, atol=1e-12)
    for name, value in model.state_dict().items():
        if not any(name.startswith(each.rpartition(".")[0]) for each in folded):
            torch.testing.assert_close(fused.state_dict()[name], value, rtol=0, atol=0)


def test_a_frozen_part_folds_while_the_rest_goes_on_training():
    model = net().train()
    model.body.eval().requires_grad_(False)
    twin = copy.deepcopy(model)
    fused = reparam.fuse(model, image(), where="body")
    assert norms(fused) == {"neck.1"}
    assert fused.training
    assert fused.neck[1].training
    assert fused.neck[3].training
    assert not any(module.training for module in fused.body.modules())
    assert not any(p.requires_grad for p in fused.body.parameters())
    assert all(p.requires_grad for p in fused.head.parameters())
    for each in (fused, twin):
        each.neck[3].eval()  # dropout draws
    torch.testing.assert_close(fused(image()), twin(image()), rtol=1e-10, atol=1e-12)
    for name in ("running_mean", "running_var"):
        found, wanted = getattr(fused.neck[1], name), getattr(twin.neck[1], name)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_what_is_chosen_has_to_be_in_eval_mode():
    model = net()
    model.body[0].norm.train()
    with pytest.raises(TrainingModeError, match=r"body\.0\.norm"):
        reparam.plan(model, where="body")
    assert reparam.plan(model, where="neck").regions


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("bodi", "near it: body"),
        ("stem.*", "stem"),
        (nn.Conv3d, "nothing"),
        (lambda *_: False, "nothing"),
        ([], "list"),
        (3, "3"),
        (["body", 3], "3"),
    ],
)
def test_what_fits_nothing_is_an_error(where, told):
    with pytest.raises(InputError, match=told):
        reparam.plan(net(), where=where)


@pytest.mark.parametrize(
    ("computed", "weight"),
    [(nn.utils.weight_norm, "weight_v"), (nn.utils.spectral_norm, "weight_orig")],
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_weights_that_a_hook_computes_stay_where_nothing_was_chosen(computed, weight):
    model = net()
    model.neck[0] = computed(model.neck[0])
    model(image())
    fused = reparam.fuse(model.eval(), image(), where="body")
    assert [k for k in fused.state_dict() if "neck.0" in k] == [
        k for k in model.state_dict() if "neck.0" in k
    ]
    torch.testing.assert_close(fused(image()), model(image()), rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        for each in (model, fused):
            each.neck[0].get_parameter(weight).mul_(-2)
    torch.testing.assert_close(fused(image()), model(image()), rtol=1e-10, atol=1e-12)
    assert norms(reparam.fuse(model, image(), where="neck")) == BODY


def test_a_module_is_known_by_each_of_its_names():
    model = net()
    model.again = model.body
    for name in ("again", "body", "again.*"):
        assert norms(reparam.fuse(model, where=name)) == {"neck.1"}


def test_a_perturbed_part_is_found():
    model = net()
    fused = reparam.fuse(model, image(), where="body")
    with torch.no_grad():
        fused.body[0].one.weight[0, 0, 1, 1] += 1e-3
    assert not reparam.verify(model, fused, image()).ok


def test_a_module_of_the_model_can_be_given_itself() -> None:
    model = nn.Sequential(nn.Sequential(conv(), norm()), nn.Sequential(conv(), norm())).eval()
    fused = reparam.fuse(model, image().float(), where=model[1])
    assert isinstance(fused[0][1], nn.BatchNorm2d)
    assert not isinstance(fused[1], nn.Sequential) or isinstance(fused[1][1], nn.Identity)
    with pytest.raises(InputError):
        reparam.plan(model, where=nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize("where", [lambda *_: 1 / 0, lambda _: True], ids=range(2))
def test_a_function_that_raises_is_told_what_it_was_called_with(where: object) -> None:
    with pytest.raises(InputError, match="name"):
        reparam.plan(nn.Sequential(conv(), norm()).eval(), where=where)
