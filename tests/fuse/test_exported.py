"""Programs of torch.export, written as programs again."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

import reparam
from counting import arithmetic
from reparam.errors import InputError
from zoo._common import randomise

FORMS = ("as exported", "core ATen")


def exported(model: nn.Module, inputs: Any, form: str = FORMS[0], **how: Any) -> ExportedProgram:
    program = torch.export.export(model, inputs, **how)
    return program if form == FORMS[0] else program.run_decompositions()


class Net(nn.Module):
    """Branches, a counter that the forward changes, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.b = nn.Conv2d(4, 6, 1, bias=False)
        self.n = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2)
        self.m = nn.BatchNorm2d(4)
        self.head, self.last = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        self.calls.add_(1)
        y = self.n(self.a(x) + self.b(x)).relu() * scale
        y = self.m(self.up(y))
        return {"map": y, "logits": self.last(self.head(y.mean((2, 3))))}


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Net().double())


def image(batch: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(batch, 4, size, size + 2, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
def test_names_shapes_and_changed_buffers_are_kept(form: str) -> None:
    dynamic = {"x": {0: Dim("n", min=2), 2: Dim.AUTO, 3: Dim.AUTO}}
    program = exported(net(), (image(),), form, dynamic_shapes=dynamic)
    before = {name: value.clone() for name, value in program.state_dict.items()}
    fused = reparam.fuse(program)
    assert set(fused.state_dict) == {
        "a.weight", "a.bias", "up.weight", "up.bias", "head.weight", "head.bias", "calls",
    }  # fmt: skip
    assert str(fused.range_constraints) == str(program.range_constraints)
    stores = {value.untyped_storage().data_ptr() for value in program.state_dict.values()}
    for name, value in fused.state_dict.items():
        assert value.untyped_storage().data_ptr() not in stores, name
    for name, value in program.state_dict.items():  # the original is only read
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    content = io.BytesIO()
    torch.export.save(fused, content)
    content.seek(0)
    for each in (fused, torch.export.load(content)):
        old, new = net(), each.module()
        for x in (image(), image(3, 12)):
            expected, found = old(x), new(x)
            assert list(found) == list(expected)
            for key in expected:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-11, atol=1e-11)
        assert float(new.get_buffer("calls")) == 2.0
    assert not reparam.plan(fused).regions


def test_a_perturbed_kernel_is_noticed() -> None:
    program, x = exported(net(), (image(),)), image()
    fused = reparam.fuse(program)
    assert reparam.verify(program.module(), fused.module(), x).ok
    with torch.no_grad():
        fused.state_dict["a.weight"][0, 0, 0, 0] += 1e-3
    with pytest.raises(AssertionError):
        torch.testing.assert_close(fused.module()(x)["map"], net()(x)["map"])
    assert not reparam.verify(program.module(), fused.module(), x).ok


def test_a_plan_says_where_and_why_and_folds_what_is_chosen() -> None:
    program = exported(net(), (image(),))
    assert {region.where for region in reparam.plan(program).regions} >= {"up", "head"}
    chosen = reparam.plan(program, where=["up", "m"])
    assert [region.where for region in chosen.regions] == ["up"]
    with pytest.raises(InputError):
        reparam.plan(program, where="nowhere")


class Tied(nn.Module):
    """One convolution before two norms, and one weight read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(4, 4, 3, padding=1)
        self.n, self.m, self.k = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.d, self.e = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.e.weight = self.d.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.m(self.c(self.n(self.c(x)).relu()))
        return self.k(self.d(x).relu()) + F.relu(self.e(x))


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_several_layers_read_are_left(form: str) -> None:
    torch.manual_seed(0)
    model, x = randomise(Tied().double()), image()
    fused = reparam.fuse(exported(model, (x,), form))
    assert arithmetic(fused.module(), x) == arithmetic(reparam.fuse(model, x), x)
    torch.testing.assert_close(fused.module()(x), model(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(fused.state_dict["c.weight"], model.c.weight)


class Overwrites(nn.Module):
    """The input of a branch is changed in place between the branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.n = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 2
        y = self.a(x)
        x.unsqueeze(0).relu_()
        return self.n(y + self.b(x))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_changed_in_place_is_no_common_source(form: str) -> None:
    torch.manual_seed(0)
    model, x = randomise(Overwrites().double()), image()
    fused = reparam.fuse(exported(model, (x,), form))
    torch.testing.assert_close(fused.module()(x), model(x), rtol=1e-11, atol=1e-11)


def test_batch_statistics_are_refused() -> None:
    program = exported(net().train(), (image(),))
    plan = reparam.plan(program)  # branches without norms are the same function in training
    assert reparam.Why.NORM_IN_TRAINING in {refusal.reason.kind for refusal in plan.refusals}
    assert not any("BN" in region.what for region in plan.regions)


class Inner(nn.Module):
    """A module whose own call is to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.c, self.m = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.m(self.c(self.n(x).relu())), y + 1


class Outer(nn.Module):
    """Layers that fold into what a kept call reads and returns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.an = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner = Inner()
        self.b, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.inner(self.a(x), self.an(self.a(x)))
        return self.bn(self.b(first)) * second


@pytest.mark.parametrize("form", FORMS)
def test_calls_that_were_kept_are_kept(form: str) -> None:
    torch.manual_seed(0)
    model, x = randomise(Outer().double()), image()
    program = exported(model, (x,), form, preserve_module_call_signature=("inner",))
    fused = reparam.fuse(program)
    assert len(fused.graph.nodes) < len(program.graph.nodes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own, for the program as exported, too
        parts = torch.export.unflatten(fused)
    calls: list[Any] = []
    parts.inner.register_forward_hook(lambda _module, given, result: calls.append((given, result)))
    torch.testing.assert_close(parts(x), model(x), rtol=1e-11, atol=1e-11)
    ((given, result),) = calls
    assert len(given) == 2
    assert len(result) == 2
