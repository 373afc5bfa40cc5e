"""A model is traced once: blocks as they are called, and what they return."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from checking import assert_same_function
from counting import count
from small_nets import TOLERANCE, Lambda, TwoBranches, check, conv, image, norm
from zoo import randomise

Forward = Callable[[Any, Any], Any]

# ------------------------------------------------------------------------------- arguments


class Optional(TwoBranches):
    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        out = self.both(x)
        return out.relu() if skip is None else (out + skip).relu()


class Flagged(TwoBranches):
    def forward(self, x: torch.Tensor, *, act: bool = False) -> torch.Tensor:
        out = self.both(x)
        return out.relu() if act else out.tanh()


class Keywords(TwoBranches):
    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        return self.both(x).relu() * options.get("scale", 1) + options["shift"]


class Structured(TwoBranches):
    def forward(self, parts: dict[str, Any]) -> torch.Tensor:
        return self.both(parts["x"]).relu() + parts["more"][1]


class WithModule(TwoBranches):
    def forward(self, x: torch.Tensor, act: nn.Module) -> torch.Tensor:
        return act(self.both(x))


CALLS: dict[str, tuple[Forward, Callable[[], nn.Module]]] = {
    "a tensor for None": (lambda m, x: m.a(x, x), Optional),
    "a tensor for None, by name": (lambda m, x: m.a(x, skip=2 * x), Optional),
    "None": (lambda m, x: m.a(x), Optional),
    "True for False": (lambda m, x: m.a(x, act=True), Flagged),
    "False": (lambda m, x: m.a(x, act=False), Flagged),
    "keywords": (lambda m, x: m.a(x, scale=3, shift=x), Keywords),
    "a container": (lambda m, x: m.a({"x": x, "more": [None, x]}), Structured),
    "a module": (lambda m, x: m.a(x, m.b), WithModule),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("example", [True, False])
def test_a_block_is_planned_as_its_caller_calls_it(name: str, *, example: bool) -> None:
    forward, block = CALLS[name]
    net = Lambda(forward, block(), nn.SiLU())
    check(net, convs=1, norms=0, example=example)


@pytest.mark.parametrize("example", [True, False])
def test_blocks_of_one_kind_are_called_in_different_ways(*, example: bool) -> None:
    net = Lambda(lambda m, x: m.c(m.b(m.a(x), skip=x), act=True), Optional(), Optional(), Flagged())
    check(net, convs=3, norms=0, example=example)


@pytest.mark.parametrize("example", [True, False])
def test_one_block_called_in_two_ways_is_right_in_both(*, example: bool) -> None:
    check(Lambda(lambda m, x: m.a(m.a(x), skip=x), Optional()), example=example)
    check(Lambda(lambda m, x: m.a(m.a(x), act=True), Flagged()), example=example)


def test_a_fused_block_says_that_it_is_called_in_another_way() -> None:
    fused = reparam.fuse(randomise(Optional().double()), image())
    with pytest.raises(reparam.ReparamError, match="skip") as raised:
        fused(image(), image())
    assert "\n" not in str(raised.value)
    fused = reparam.fuse(randomise(Optional().double()), (image(), image()))
    with pytest.raises(reparam.ReparamError, match="skip"):
        fused(image())
    fused = reparam.fuse(randomise(Flagged().double()), image())
    with pytest.raises(reparam.ReparamError, match="act"):
        fused(image(), act=True)


@pytest.mark.parametrize("given", [(image(),), {"pixel_values": image()}], ids=["position", "name"])
def test_a_model_with_defaults_for_all_arguments(given: Any) -> None:
    class Model(TwoBranches):
        def forward(
            self,
            pixel_values: torch.Tensor | None = None,
            *,
            return_dict: bool | None = None,
            **_options: Any,
        ) -> Any:
            if pixel_values is None:
                msg = "You have to specify pixel_values"
                raise ValueError(msg)
            out = self.both(pixel_values)
            return out if return_dict is None else {"out": out}

    model = randomise(Model().double())
    for example in (given, None):
        fused = reparam.fuse(model, example)
        assert count(fused, image())[1].norms == 0
        assert_same_function(model, fused, image(), tolerance=TOLERANCE)


def _relu_between(m: Any, x: torch.Tensor, option: Any) -> torch.Tensor:
    out = m.a(x)
    if option is not None and option is not False:
        out = out.relu()
    return m.b(out)


@pytest.mark.parametrize("default", [None, False])
@pytest.mark.parametrize("example", [True, False])
def test_an_option_of_the_model_that_changes_what_folds(default: Any, *, example: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = conv(), norm(), conv(), norm()

        def forward(self, x: torch.Tensor, option: Any = default) -> torch.Tensor:
            return self.d(self.c(_relu_between(self, x, option)))

    model = randomise(Model().double())
    fused = reparam.fuse(model, image() if example else None)
    given = image(1, 4, 1, 1) if default is None else True  # only whether it is given matters
    assert count(fused, image())[1].norms == 1
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)
    torch.testing.assert_close(fused(image(), given), model(image(), given), rtol=1e-11, atol=1e-11)


# ------------------------------------------------------------------------------- the results


class Output(OrderedDict[str, Any]):
    """A dict whose entries are attributes as well, as in transformers."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


@dataclass
class Record(OrderedDict[str, Any]):
    """A dataclass that is a dict, too."""

    first: torch.Tensor
    second: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None:
                self[entry.name] = value


class Keyed(dict[str, Any]):
    """A dict that cannot be built without what its author wants."""

    def __init__(self, first: torch.Tensor) -> None:
        super().__init__(first=first)
        self.kept = first


class Returns(TwoBranches):
    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(self.both(x).relu())


RETURNS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "dict": (lambda x: {"x": x, "size": x.shape}, lambda out: out["x"] + out["size"][1]),
    "attribute": (lambda x: Output(x=x), lambda out: out.x),
    "item": (lambda x: Output(x=x), lambda out: out["x"]),
    "dataclass": (lambda x: Record(first=x, second=2 * x), lambda out: out.first + out["second"]),
    "own": (lambda x: {"a": [Keyed(x)]}, lambda out: out["a"][0]["first"] + out["a"][0].kept),
    "default": (lambda x: defaultdict(list, x=x), lambda out: out["x"]),
    "values": (lambda x: {"a": x, "b": -x}, lambda out: sum(v * 2 for v in out.values())),
    "list": (lambda x: [x, [x, None]], lambda out: out[1][0] + out[0]),
}


@pytest.mark.parametrize("name", RETURNS)
@pytest.mark.parametrize("traced", [True, False])
def test_a_parent_takes_apart_what_its_child_returns(name: str, *, traced: bool) -> None:
    make, take = RETURNS[name]

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.c(m.b(take(m.a(x))))

    child = Returns(make)
    if not traced:
        child.make = lambda x: make(torch.from_numpy(x.numpy()) if x.device.type == "cpu" else x)
    net = Lambda(forward, child, conv(), norm())
    check(net, norms=0 if traced else None)


def test_the_model_returns_what_it_returned() -> None:
    for make in (lambda x: Output(x=x), lambda x: Record(first=x)):
        model = randomise(Returns(make).double())
        fused = reparam.fuse(model, image())
        found, expected = fused(image()), model(image())
        assert type(found) is type(expected)
        assert list(found) == list(expected)
        assert count(fused, image())[1].convs == 1
        torch.testing.assert_close(next(iter(found.values())), next(iter(expected.values())))
