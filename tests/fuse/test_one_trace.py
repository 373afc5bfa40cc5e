"""A model is traced once: blocks as they are called, code that looks at values."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reparam
from checking import Snapshot, assert_same_function
from counting import count
from small_nets import TOLERANCE, Lambda, check, conv, image, norm
from zoo import randomise

Forward = Callable[[Any, Any], Any]


class TwoBranches(nn.Module):
    """Two kernels, which one layer replaces, and what the caller may ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n = conv(), conv(k=1), norm()

    def both(self, x: torch.Tensor) -> torch.Tensor:
        return self.n(self.a(x) + self.b(x))


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


# ------------------------------------------------------------------------------- looking at values


def _asserts(m: Any, x: torch.Tensor) -> torch.Tensor:
    assert x.shape[1] == 4, "four channels"
    assert x.dim() == 4
    return m.both(x).relu()


def _raises(m: Any, x: torch.Tensor) -> torch.Tensor:
    if x.shape[1] != 4:
        msg = f"needed 4 channels, got {x.shape[1]}"
        raise ValueError(msg)
    return m.both(x).relu()


def _raises_for_numbers(m: Any, x: torch.Tensor) -> torch.Tensor:
    if not x.isfinite().all():
        msg = "not finite"
        raise ValueError(msg)
    return m.both(x).relu()


def _by_rank(m: Any, x: torch.Tensor) -> torch.Tensor:
    if x.dim() == 3 or x.ndim == 2 or len(x.shape) != 4:
        x = x.unsqueeze(0)
    return m.both(x).relu()


def _by_kind(m: Any, x: torch.Tensor) -> torch.Tensor:
    if not isinstance(x, torch.Tensor) or x.dtype == torch.int64 or x.device.type == "mps":
        return x
    if x.requires_grad and m.training:
        return x
    return m.both(x).relu()


def _unpacks(m: Any, x: torch.Tensor) -> torch.Tensor:
    b, c = x.shape[:2]
    *_, h, w = x.size()
    return m.both(x).relu().view(b, c, h * w)


def _cache(m: Any, x: torch.Tensor) -> torch.Tensor:
    grid = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
    return m.both(x).relu() + grid * torch.as_tensor(2.0)


def _as_tensor(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.both(torch.as_tensor(x)).relu()


def _made_here(m: Any, x: torch.Tensor) -> torch.Tensor:
    return nn.ReLU()(nn.AvgPool2d(1)(m.both(x)))


def _tries(m: Any, x: torch.Tensor) -> torch.Tensor:
    try:
        out = m.both(x)
    except RuntimeError:
        out = x
    return out.relu()


def _own_parameter(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.both(x)
    return out.relu() * m.n.weight.view(1, out.shape[1], 1, 1)


def _buffer_through_a_layer(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.both(x).relu() + F.linear(m.n.running_mean, torch.diag(x.mean((0, 2, 3)))).sum()


def _plain_tensors(m: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(0.5) * m.both(x) + torch.as_tensor(1.0)


LOOKS = [
    _asserts, _raises, _raises_for_numbers, _by_rank, _by_kind, _unpacks, _cache, _as_tensor,
    _made_here, _tries,
]  # fmt: skip


class Looking(TwoBranches):
    def __init__(self, how: Forward) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(self, x)


@pytest.mark.parametrize("how", LOOKS)
def test_code_that_looks_at_an_input_folds(how: Forward) -> None:
    check(Looking(how), convs=1, norms=0)
    check(Lambda(lambda m, x: m.a(x), Looking(how)), convs=1, norms=0)


@pytest.mark.parametrize("how", [_own_parameter, _buffer_through_a_layer, _plain_tensors])
@pytest.mark.parametrize("example", [True, False])
def test_operations_on_parameters_are_no_obstacle(how: Forward, *, example: bool) -> None:
    check(Looking(how), example=example)


def test_what_is_checked_is_checked_still() -> None:
    fused = reparam.fuse(randomise(Looking(_raises).double()), image())
    with pytest.raises((ValueError, RuntimeError)):
        fused(image(1, 5, 4, 4))


@pytest.mark.parametrize("example", [True, False])
def test_an_optional_layer_on_an_argument_that_is_not_given(*, example: bool) -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.l = conv(), norm(), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, pos: torch.Tensor | None = None) -> torch.Tensor:
            out = self.b(self.a(x))
            return out + self.l(pos) if pos is not None else out

    check(Embedded(), convs=1, norms=0, example=example)

    class Needed(Embedded):
        def forward(self, x: torch.Tensor, pos: torch.Tensor | None = None) -> torch.Tensor:
            return self.b(self.a(x)) + self.l(pos)

    model = randomise(Needed().double())
    x = (image(), image(2, 4, 9, 8))
    fused = reparam.fuse(model, x if example else None)
    assert_same_function(model, fused, *x, tolerance=TOLERANCE)


# ------------------------------------------------------------------------------- other sizes


def _pads_like_tensorflow(m: Any, x: torch.Tensor) -> torch.Tensor:
    height, width = x.shape[-2:]
    down = 3 - 2 if height % 2 == 0 else max(3 - height % 2, 0)
    right = max(3 - 2, 0) if width % 2 == 0 else max(3 - (width % 2), 0)
    x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    return m.b(m.a(x)).relu()


def _rounds_up(m: Any, x: torch.Tensor) -> torch.Tensor:
    more = (math.ceil(x.shape[-1] / 4) - 1) * 4 + 3 - x.shape[-1]
    return m.b(m.a(F.pad(x, (0, more))))


def _as_numbers(m: Any, x: torch.Tensor) -> torch.Tensor:
    size = (int(x.shape[-2] * 2), int(x.shape[-1] * 2))
    return m.b(m.a(F.interpolate(x, size=size)))


OTHER_SIZES = [_pads_like_tensorflow, _rounds_up, _as_numbers]


@pytest.mark.parametrize("how", OTHER_SIZES)
def test_a_pair_behind_arithmetic_on_sizes_folds(how: Forward) -> None:
    sizes = [image(2, 4, h, w) for h, w in [(9, 8), (8, 8), (12, 11), (7, 5)]]
    check(Lambda(how, conv(padding=0), norm()), *sizes, convs=1, norms=0)


def _another_layer(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.b(m.a(x)) if x.shape[-1] > 9 else m.b(m.c(x))


def _another_reader(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.a(x)
    return m.b(out) + out if x.shape[-1] > 9 else m.b(out)


def _between(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.a(x)
    if x.shape[-1] > 9:
        out = out.relu()
    return m.b(out)


def _by_index(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.b([m.a, m.c][int(x.shape[-1] > 9)](x))


def _as_often_as_the_size_says(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.a(x)
    for _ in range(x.shape[-1] // 10):
        out = out.relu()
    return m.b(out)


def _by_the_numbers(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.a(x)
    return m.b(out) if x.mean() > 0 else m.b(out.relu())


def _in_two_steps(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = m.a(x)
    if x.shape[-1] > 9 and x.shape[-2] > 9:
        out = out.relu()
    return m.b(out)


DEPENDS = [
    _another_layer, _another_reader, _between, _by_index, _as_often_as_the_size_says,
    _by_the_numbers, _in_two_steps,
]  # fmt: skip


@pytest.mark.parametrize("how", DEPENDS)
@pytest.mark.parametrize("first", [0, 1, 2])
def test_what_another_size_does_otherwise_stays_right(how: Forward, first: int) -> None:
    images = [image(2, 4, 8, 8), image(2, 4, 12, 12).abs(), -image(2, 4, 21, 22).abs()]
    order = [*images[first:], *images[:first]]
    check(Lambda(how, conv(), norm(), conv()), *order)
    check(Lambda(lambda m, x: m.a(x), Lambda(how, conv(), norm(), conv())), *order)


@pytest.mark.parametrize("first", [0, 1])
def test_a_block_that_goes_another_way_is_not_rewritten_for_one(first: int) -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        both = m.a(x) + m.b(x)
        return both.relu() if x.shape[-1] > 9 else both.tanh()

    images = [image(2, 4, 8, 8), image(2, 4, 12, 12)]
    check(Lambda(forward, conv(), conv(k=1)), *images[first:], *images[:first])


# ------------------------------------------------------------------------------- odd models


def test_attributes_that_cannot_be_copied() -> None:
    model = randomise(Lambda(lambda m, x: m.b(m.a(x)), conv(), norm()).double())
    model.names = {"x": 1}.keys()
    fused = reparam.fuse(model, image())
    assert list(fused.names) == ["x"]
    assert count(fused, image())[1].norms == 0
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)


class WritesItsWeight(nn.Module):
    """As SPAN's blocks, which merge their branches at every call, in eval mode too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.e, self.n, self.how = conv(), conv(), conv(), norm(), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.a.weight + self.b.weight
        if self.how == "data":
            self.e.weight.data = weight
        elif self.how == "copy":
            self.e.weight.data.copy_(weight)
        elif self.how == "in place":
            with torch.no_grad():
                self.e.weight.copy_(weight)
        else:
            self.e.weight = nn.Parameter(weight)
        return self.n(self.e(x))


@pytest.mark.parametrize("how", ["data", "copy", "in place", "parameter"])
@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_a_forward_that_writes_its_weights_is_left_alone(
    how: str, *, example: bool, inside: bool
) -> None:
    block = WritesItsWeight(how)
    model = Lambda(lambda m, x: m.c(m.b(m.a(x).relu())), block, conv(), norm()) if inside else block
    model = randomise(model.double())
    before = Snapshot.of(model)
    plan = reparam.plan(model, image() if example else None)
    fused = plan.apply()
    before.assert_unchanged(model)
    assert plan.refusals
    assert_same_function(model, fused, image(), tolerance=TOLERANCE)


@pytest.mark.parametrize("example", [True, False])
def test_no_refusal_has_a_line_break(*, example: bool) -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return m.b(m.a(torch.from_numpy(x.numpy())))

    plan = reparam.plan(
        Lambda(forward, conv(), norm()).double().eval(), image() if example else None
    )
    assert plan.refusals
    assert not any("\n" in r.why for r in plan.refusals)


def chosen_by(default: object) -> nn.Module:
    """A net of which an option decides what norm follows, and another scales."""

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first, self.second = conv(), norm(), norm()
            self.tail, self.last = conv(), norm()

        def forward(self, x, option=default, scale=2.0):
            y = self.conv(x)
            y = self.first(y) if option == default else self.second(y)
            return self.last(self.tail(torch.relu(y))) * scale

    return randomise(Chosen().double()).eval()


@pytest.mark.parametrize(
    ("default", "other"), [("a", "b"), ("", "b"), (1, 2), (0.5, 1.5), (True, False)], ids=repr
)
@pytest.mark.parametrize("example", [True, False], ids=["with an example", "without"])
def test_an_option_of_the_model_is_not_folded_across(
    default: object, other: object, *, example: bool
) -> None:
    model, x = chosen_by(default), image()
    fused = reparam.fuse(model, x if example else None)
    for option in (default, other):
        for scale in (2.0, -3.0):
            found, expected = fused(x, option, scale), model(x, option, scale)
            torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert count(fused, x)[1].norms == 1  # the last one folds, whatever the option


class Activated(nn.Module):
    """Two branches and what several blocks share: an activation, as YOLO's are, and a weight."""

    def __init__(self, act: nn.Module, scale: nn.Parameter) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.point = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.act, self.scale = act, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.wide(x) + self.point(x)) * self.scale.sum()


@pytest.mark.parametrize("act", [nn.SiLU(), nn.Sequential(nn.SiLU(), nn.Sigmoid())])
def test_blocks_that_share_a_module_are_all_rewritten(act) -> None:
    scale = nn.Parameter(torch.rand(4))
    net = randomise(nn.Sequential(*(Activated(act, scale) for _ in range(3))).double()).eval()
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    plan = reparam.plan(net, x)
    assert [region.where for region in plan.regions] == ["0", "1", "2"]
    fused = plan.apply()
    torch.testing.assert_close(fused(x), net(x), rtol=1e-12, atol=1e-12)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert len({block.act for block in fused}) == len({block.scale for block in fused}) == 1
