"""Forwards of which one trace tells less than the truth: what a fold of it would get wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reparam
from checking import assert_same_function
from counting import count
from small_nets import TOLERANCE, Lambda, check, conv, image, norm
from zoo import randomise


def test_a_branch_on_the_type_of_the_input() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch.Tensor):
            return m.b(m.a(x)) * 2
        return m.b(m.a(x))

    check(Lambda(forward, conv(), norm()))


@pytest.mark.parametrize("example", [True, False])
def test_a_branch_on_the_shape(*, example: bool) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.c(m.a(x)) if x.shape[-1] > 9 else m.c(m.b(x))

    check(Lambda(forward, conv(), conv(), norm()), example=example)


@pytest.mark.parametrize("example", [True, False])
def test_a_branch_on_the_numbers(*, example: bool) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.c(m.a(x)) if x.sum() > 0 else m.c(m.b(x))

    model = Lambda(forward, conv(), conv(), norm())
    check(model, image().abs(), -image().abs(), example=example)


def test_a_branch_on_the_numbers_of_a_parameter() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.c(m.a(x)) if m.a.weight.sum() > 0 else m.c(m.b(x))

    check(Lambda(forward, conv(), conv(), norm()))


@pytest.mark.parametrize("example", [True, False])
def test_a_number_that_only_some_traces_know(*, example: bool) -> None:
    """``k + 1`` is an operation where ``k`` is unknown, and none where the caller's 3 is seen."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(), conv(k=1)

        def forward(self, x: torch.Tensor, k: int) -> torch.Tensor:
            left, right = self.a(x), self.b(x)
            factor = k + 1
            return torch.relu(left + right) * factor

    check(Lambda(lambda m, x: m.a(x, 3), Block()), convs=1, example=example)


@pytest.mark.parametrize("example", [True, False])
def test_random_numbers_stay_random(*, example: bool) -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return m.b(m.a(x)) + torch.rand(4, 1, 1, dtype=torch.float64)

    model = randomise(Lambda(forward, conv(), norm()).double())
    fused = reparam.fuse(model, image() if example else None)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = model(image())
        torch.manual_seed(seed)
        torch.testing.assert_close(fused(image()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("example", [True, False])
def test_dropout_that_is_always_on_stays_on(*, example: bool) -> None:
    """``F.dropout`` drops by default, in eval mode too."""
    model = randomise(Lambda(lambda m, x: m.b(F.dropout(m.a(x), 0.5)), conv(), norm()).double())
    fused = reparam.fuse(model, image() if example else None)
    torch.manual_seed(1)
    expected = model(image())
    torch.manual_seed(1)
    torch.testing.assert_close(fused(image()), expected, rtol=1e-12, atol=1e-12)


def test_a_norm_that_always_uses_batch_statistics_stays() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = m.a(x)
        return F.batch_norm(out, None, None, m.b.weight, m.b.bias, training=True)

    check(Lambda(forward, conv(), norm()), norms=1)


def test_an_attribute_that_counts_calls() -> None:
    """A forward with a side effect: whatever is done, the original is not called into change."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.calls = conv(), norm(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.norm(self.conv(x))

    model = randomise(Counting().double())
    fused = reparam.fuse(model, image())
    assert model.calls == 0
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)


def test_a_cache_filled_in_forward_gets_no_proxy() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), norm()
            self.bias = nn.Parameter(torch.zeros(4, 1, 1))
            self.cache: dict[str, object] = {}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if "bias" not in self.cache:
                self.cache["bias"] = self.bias * 2
            return self.norm(self.conv(x)) + self.cache["bias"]

    model = randomise(Cached().double())
    fused = reparam.fuse(model)
    assert model.cache == {}
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)
    assert (
        all(isinstance(v, torch.Tensor) for v in fused.cache.values())
        if hasattr(fused, "cache")
        else True
    )


def test_optional_arguments_left_alone_and_given() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(), norm(), conv()

        def forward(
            self, x: torch.Tensor, mask: torch.Tensor | None = None, *, again: bool = False
        ) -> torch.Tensor:
            out = self.b(self.a(x))
            if mask is not None:
                out = out * mask
            return self.c(out) if again else out

    model = randomise(Optional().double())
    fused = reparam.fuse(model, image())
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)
    assert count(fused, image())[1].norms == 0
    mask = image(1, 1, 9, 8)
    torch.testing.assert_close(fused(image(), mask), model(image(), mask), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        fused(image(), again=True), model(image(), again=True), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("given", [{}, {"k": 2}, {"k": 3}], ids=str)
def test_an_argument_with_a_default_given_by_name(given: dict[str, int]) -> None:
    """A rewritten forward takes its arguments by the names, and with the values, it had before."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(), conv(k=1)

        def forward(self, x: torch.Tensor, k: int = 2) -> torch.Tensor:
            return torch.relu(self.a(x) + self.b(x)) * k

    inner = randomise(Block().double())
    check(Lambda(lambda m, x: m.a(x, **given), inner))
    fused = reparam.fuse(inner, image())
    if given.get("k", 2) != 2:
        # An argument that no example passes is traced at its default, and the result says so.
        with pytest.raises(reparam.ReparamError, match="k = 2"):
            fused(image(), **given)
        fused = reparam.fuse(inner, (image(), 3))
    torch.testing.assert_close(
        fused(image(), **given), inner(image(), **given), rtol=1e-11, atol=1e-11
    )


def test_several_inputs_and_a_dict_of_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(), conv(k=1), norm()

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, object]:
            both = self.a(x) + self.b(y)
            return {"both": self.c(both), "pair": (x, [y])}

    model = randomise(Two().double())
    fused = reparam.fuse(model, (image(), -image()))
    assert_same_function(model, fused, image(), -image(), tolerance=TOLERANCE)
