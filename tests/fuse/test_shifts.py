"""Scales that go past what is added behind them: ``W (s x + b)`` is ``(W s) (x + b / s)``.

A layer that pads with zeros cannot take the shift, which is not seen alike at the borders; it takes
the scale, and what is added is divided by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import reparam
from checking import assert_same_function
from counting import count
from small_nets import TOLERANCE, Lambda, check, conv, image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCALE, SHIFT = torch.tensor([0.3, -0.5, 1.2, 2.0]), torch.tensor([0.7, 1.5, -1.2, 0.0])
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def net(forward: Callable[..., object], *parts: nn.Module, dims: int = 2) -> Lambda:
    made = Lambda(forward, *(parts or (conv(),)))
    made.register_buffer("s", SCALE.double().view(4, *(1,) * dims))
    made.register_buffer("t", SHIFT.double().view(4, *(1,) * dims))
    return made


def passes(model: nn.Module, x: torch.Tensor | None = None) -> dict[str, int]:
    """What is run beside the layers."""
    return dict(count(model, image() if x is None else x)[1].others)


SPELT = {
    "operators": lambda n, x: n.a(x * n.s + n.t),
    "the other way round": lambda n, x: n.a(n.t + n.s * x),
    "methods": lambda n, x: n.a(x.mul(n.s).add(n.t)),
    "divided and subtracted": lambda n, x: n.a(x / n.s - n.t),
    "one number each": lambda n, x: n.a(x * 2 - 1),
    "as pixels are": lambda n, x: n.a(x / 255 - n.t),
    "functions": lambda n, x: n.a(torch.add(torch.mul(x, n.s), n.t, alpha=2)),
}


@pytest.mark.parametrize("forward", SPELT.values(), ids=SPELT)
@pytest.mark.parametrize("how", [{}, {"stride": 2}, {"groups": 2}, {"k": 5, "bias": True}], ids=str)
def test_a_padded_layer_takes_a_scale_from_before_what_is_added(
    forward: Callable[..., object], how: dict[str, int]
) -> None:
    fused = check(net(forward, conv(**how)), convs=1)
    assert passes(fused) == {"add": 1}


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_in_any_number_of_dimensions(dims: int) -> None:
    x = image(2, 4, *(7, 6, 5)[:dims])
    made = net(SPELT["operators"], CONVS[dims - 1](4, 3, 3, padding=1), dims=dims)
    assert passes(check(made, x), x) == {"add": 1}


def test_an_unpadded_layer_takes_both() -> None:
    assert passes(check(net(SPELT["operators"], conv(padding=0)), convs=1)) == {}


def test_every_layer_behind_takes_the_scale() -> None:
    def forward(n: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        y = x * n.s + n.t
        return [n.a(y), n.b(y)]

    assert passes(check(net(forward, conv(), conv(4, 3, 5)))) == {"add": 1}


class Normalised(nn.Module):
    """Normalises its input in a module of its own, as many models do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Parameter(SCALE.view(4, 1, 1)),
            nn.Parameter(SHIFT.view(4, 1, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale + self.shift


def test_a_module_that_normalises_keeps_its_place_and_can_be_stored(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = nn.Sequential(Normalised(), conv(), nn.ReLU(), Normalised(), conv(k=5))
    fused = check(model, convs=2)
    assert passes(fused) == {"add": 2, "relu": 1}
    assert type(fused[0]).__mro__[1] is Normalised
    save_file(fused.state_dict(), tmp_path / "fused.safetensors")
    again = reparam.load_fused(model, tmp_path / "fused.safetensors")
    assert_same_function(fused, again, image(), tolerance=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_added_has_the_type_of_the_model(dtype: torch.dtype) -> None:
    model = net(lambda n, x: n.a(x * 0.5 + n.t), conv()).to(dtype).eval()
    fused = reparam.fuse(model, image().to(dtype))
    assert {t.dtype for t in fused.state_dict().values()} == {dtype}
    wide = [m.double() for m in (model, fused)]
    assert_same_function(*wide, image(), tolerance=TOLERANCE)  # a half is exact in every type
    assert passes(wide[1]) == {"add": 1}


STAYS = {
    "read between": lambda n, x: (n.a((y := x * n.s) + n.t), y.relu()),
    "read behind": lambda n, x: (n.a(y := x * n.s + n.t), y.relu()),
    "a factor of zero": lambda n, x: n.a(x * n.t + n.s),
    "numbers that grow too large": lambda n, x: n.a(x * 1e-5 + n.t),
    "a value is added": lambda n, x: n.a(x * n.s + x.relu()),
    "a shift for each place": lambda n, x: n.a(x * n.s + torch.ones(8, dtype=x.dtype)),
    "its input changes": lambda n, x: n.a(x.mul_(n.s).add_(n.t)),
}


@pytest.mark.parametrize("forward", STAYS.values(), ids=STAYS)
def test_a_scale_stays_where_what_is_added_cannot_change(forward: Callable[..., object]) -> None:
    made = net(forward)
    before = passes(made.double().eval())
    assert passes(check(made, image())) == before


def test_a_sum_that_is_hooked_or_outside_of_the_part_stays() -> None:
    for how in ({}, {"where": "1"}):
        model = nn.Sequential(Normalised(), conv()).double().eval()
        if not how:
            model[0].register_forward_hook(lambda *_: None)
        fused = reparam.fuse(model, image(), **how)
        assert passes(fused) == {"mul": 1, "add": 1}
        assert_same_function(model, fused, image(), tolerance=TOLERANCE)


def test_an_exported_program_says_why_it_keeps_the_scale() -> None:
    model = net(SPELT["operators"]).double().eval()
    program = torch.export.export(model, (image(),))
    plan = reparam.plan(program)
    assert not plan.regions
    assert torch.equal(plan.apply().module()(image()), model(image()))


def test_a_shift_that_is_not_divided_is_noticed() -> None:
    fused = check(net(SPELT["operators"]))
    [name] = [n for n, b in fused.named_buffers() if b.shape == (4, 1, 1)]
    fused.get_buffer(name)[0] *= 1 + 1e-9
    with pytest.raises(AssertionError):
        assert_same_function(check(net(SPELT["operators"])), fused, image(), tolerance=TOLERANCE)
