"""A model is cut down to the results that are wanted."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import reparam
from checking import Snapshot
from cutting import double, equal, layer, names
from reparam.errors import InputError
from small_nets import Lambda, conv, image, norm


@dataclass
class Boxes:
    scores: Tensor
    raw: list[Tensor]


Pair = namedtuple("Pair", ["first", "second"])  # noqa: PYI024 (what old code returns)


class Heads(nn.Module):
    """A net with three heads on one body, whose results come as ``make`` says."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.body, self.make = layer(), make
        self.heads = nn.ModuleList([layer(2), layer(3), layer(5)])

    def forward(self, x: Tensor) -> Any:
        y = self.body(x)
        return self.make(*(head(y) for head in self.heads))


class Same(OrderedDict):
    """A dict of a class of its own, with attributes, as transformers returns them."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


RESULTS = {
    "a position": (lambda a, b, c: (a, b, c), 1, lambda r: r[1], {1}),
    "the last": (lambda a, b, c: [a, b, c], -1, lambda r: r[2], {2}),
    "positions": (lambda a, b, c: (a, b, c), [2, 0], lambda r: (r[2], r[0]), {0, 2}),
    "a nested position": (lambda a, b, c: ((a, [b]), c), "0.1.0", lambda r: r[0][1][0], {1}),
    "a part with parts": (lambda a, b, c: ((a, [b]), c), 0, lambda r: r[0], {0, 1}),
    "a name": (lambda a, b, c: {"a": a, "b": b, "c": c}, "b", lambda r: r["b"], {1}),
    "names": (
        lambda a, b, c: {"a": a, "b": b, "c": c},
        ["c", "a"],
        lambda r: {"c": r["c"], "a": r["a"]},
        {0, 2},
    ),
    "one name in a list": (lambda a, b, c: {"a": a, "b": [b, c]}, ["a"], lambda r: {"a": r["a"]}, {0}),  # noqa: E501
    "a name with a dot": (lambda a, b, c: {"a.0": a, "b": [b, c]}, "a.0", lambda r: r["a.0"], {0}),
    "a name and a position": (
        lambda a, b, c: {"a": a, "b": [b, c]},
        ["a", "b.1"],
        lambda r: {"a": r["a"], "b.1": r["b"][1]},
        {0, 2},
    ),
    "a dataclass": (lambda a, b, c: Boxes(a, [b, c]), "raw.0", lambda r: r.raw[0], {1}),
    "a named tuple": (lambda a, b, c: Pair(a, [b, c]), "second", lambda r: r.second, {1, 2}),
    "a dict of its own class": (lambda a, b, c: Same(a=a, b=b, c=c), "c", lambda r: r["c"], {2}),
    "a position in such a dict": (lambda a, b, c: Same(a=a, b=b, c=c), 0, lambda r: r["a"], {0}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("way", "example"), [*((way, True) for way in RESULTS), ("names", False), ("a position", False)]
)
def test_only_what_was_asked_for_is_left(way, example):
    make, outputs, pick, heads = RESULTS[way]
    model = double(Heads(make))
    before = Snapshot.of(model)
    plan = reparam.plan(model, image() if example else None, outputs=outputs)
    cut = plan.apply()
    before.assert_unchanged(model)
    equal(cut(image()), pick(model(image())))
    assert {int(n.split(".")[1]) for n in names(cut) if n.startswith("heads")} == heads
    assert isinstance(cut, Heads)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in cut.modules())
    assert sum(map(Tensor.numel, cut.parameters())) < sum(map(Tensor.numel, model.parameters()))
    for index in heads:  # a module keeps its place
        assert isinstance(cut.heads[index], nn.Sequential)
    del cut.make  # a lambda, which the new forward does not read
    again = pickle.loads(pickle.dumps(cut))  # noqa: S301
    equal(copy.deepcopy(again)(image(1, 4, 7, 6)), cut(image(1, 4, 7, 6)))
    assert not {t.data_ptr() for t in cut.parameters()} & {t.data_ptr() for t in model.parameters()}


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        ("d", "a, b"), (3, "a, b"), (["a", "x"], "'x'"), ("a.0", "'a.0'"), ([], "list"),
        (True, "True"), ({"a"}, "set"), (1.5, "1.5"), ("", "''"),
    ],
)  # fmt: skip
def test_what_no_result_is_called_is_an_error(outputs, told):
    model = double(Heads(lambda a, b, c: {"a": a, "b": b, "c": c}))
    with pytest.raises(InputError, match=told):
        reparam.plan(model, image(), outputs=outputs)


def test_a_tensor_has_no_parts():
    with pytest.raises(InputError, match="tensor"):
        reparam.fuse(double(layer()), image(), outputs=0)


class Dual(nn.Module):
    """Auxiliary and main layers, called level by level, with a sum over both at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.ModuleList([layer() for _ in range(2)])
        self.main = nn.ModuleList([layer() for _ in range(2)])
        self.shared, self.level = layer(), nn.Parameter(torch.randn(2))
        self.aux_scale = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, levels: list[Tensor]) -> tuple[Tensor, dict[str, Any]]:
        aux, main = [], []
        for k, x in enumerate(levels):
            aux.append(self.shared(self.aux[k](x) * self.aux_scale))
            main.append(self.shared(self.main[k](x)) * self.level[k])
        return torch.cat([m.flatten(1) for m in main], 1), {"aux": aux, "main": main}


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.down = layer(), nn.Sequential(nn.MaxPool2d(2), layer())
        self.reversible, self.head = nn.Sequential(layer(), layer()), Dual()

    def forward(self, x: Tensor) -> Any:
        one = self.body(x)
        two = self.down(one)
        extra = self.reversible(one)  # for the auxiliary layers alone
        boxes, raw = self.head([one, two])
        return boxes, {**raw, "extra": extra}


def test_an_auxiliary_head_inside_of_a_module_is_left_out():
    model = double(Detector())
    plan = reparam.plan(model, image(), outputs=0)
    cut = plan.apply()
    equal(cut(image()), model(image())[0])
    left = names(cut)
    assert not any("aux" in name or "reversible" in name for name in left)
    assert not hasattr(cut, "reversible")
    assert any("head.main.1" in name for name in left)
    assert any("head.shared" in name for name in left)
    assert isinstance(cut.head, Dual)
    assert any("head.aux" in note and "reversible" in note for note in plan.notes)
    equal(cut(image(3, 4, 6, 8)), model(image(3, 4, 6, 8))[0])


class Grid(nn.Module):
    """A detector's head with auxiliary layers, of whose outputs it takes the sizes of its grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stride, self.grid, self.shape = torch.tensor([8.0, 16.0]).double(), None, None
        self.aux, self.main = (
            nn.ModuleList(nn.Sequential(conv(), norm(), nn.SiLU(), conv(4, 5, 1)) for _ in range(2))
            for _ in range(2)
        )

    def forward(self, levels: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
        aux = [
            torch.cat([layer(x), layer(x)], 1) for layer, x in zip(self.aux, levels, strict=True)
        ]
        main = [layer(x) for layer, x in zip(self.main, levels, strict=True)]
        if self.shape != levels[0].shape:
            self.grid, self.shape = self.points(aux), levels[0].shape
        found = [torch.cat([y.flatten(2) for y in made], 2) * self.grid for made in (aux, main)]
        return found, [aux, main]

    def points(self, made: list[Tensor]) -> Tensor:
        parts = []
        for k, stride in enumerate(self.stride):
            _, _, height, width = made[k].shape
            x = torch.arange(end=width, dtype=made[k].dtype, device=made[k].device) + 0.5
            y = torch.arange(made[k].size(2), dtype=made[k].dtype) + 0.5
            ones = torch.full((height * width,), stride, dtype=made[k].dtype)
            parts.append((y[:, None] + x).flatten() * ones)
        return torch.cat(parts)


class GridNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.down, self.head = layer(), nn.Sequential(nn.MaxPool2d(2), layer()), Grid()

    def forward(self, x: Tensor) -> Any:
        one = self.body(x)
        return self.head([one, self.down(one)])


@pytest.mark.parametrize("warm", [False, True])
def test_an_auxiliary_head_is_left_out_where_its_sizes_are_read(warm):
    model = double(GridNet())
    if warm:  # the grid is kept between calls
        model(image())
    cut = reparam.fuse(model, image(), outputs="0.1")
    assert not hasattr(cut.head, "aux")
    equal(cut(image()), model(image())[0][1])
    if not warm:
        equal(cut(image(1, 4, 6, 5)), model(image(1, 4, 6, 5))[0][1])
        return
    with pytest.raises(InputError, match="planned for"):
        cut(image(1, 4, 6, 5))


def test_tensors_are_made_of_traced_numbers():
    def forward(self: Any, x: Tensor) -> Any:
        y = self.b(self.a(x))
        return [torch.full((y.shape[2],), value) for value in self.scale], y

    model = double(Lambda(forward, conv(), norm()))
    model.register_buffer("scale", torch.tensor([2.0, 3.0]))
    fused = reparam.fuse(model, image())
    assert isinstance(fused.b, nn.Identity)
    equal(fused(image()), model(image()))


def test_where_and_outputs_go_together():
    model = double(Detector())
    cut = reparam.fuse(model, image(), outputs=0, where="head.main")
    assert isinstance(cut.body[1], nn.BatchNorm2d)
    assert isinstance(cut.head.main[0][1], nn.Identity)
    equal(cut(image()), model(image())[0])


def test_a_hook_keeps_what_it_sees():
    model = double(Detector())
    seen = []
    model.head.register_forward_hook(lambda *call: seen.append(call[2]))
    cut = reparam.fuse(model, image(), outputs=0)
    equal(cut(image()), model(image())[0])
    equal(seen[-2], seen[-1])
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="hook"):
        reparam.fuse(model, image(), outputs=0)


def graph_module(model: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(model)


def test_graph_modules_are_cut():
    model = double(Heads(lambda a, b, c: {"a": a, "b": (b, c)}))
    traced = graph_module(model)
    cut = reparam.fuse(traced, image(), outputs="b.1")
    assert isinstance(cut, fx.GraphModule)
    equal(cut(image()), model(image())["b"][1])
    assert {name.split(".")[1] for name in names(cut) if "heads" in name} == {"2"}
    equal(pickle.loads(pickle.dumps(cut))(image()), cut(image()))  # noqa: S301


def test_a_perturbed_head_is_found():
    model = double(Detector())
    cut = reparam.fuse(model, image(), outputs=0)
    with torch.no_grad():
        cut.head.main[1][3].weight[0] *= 1 + 1e-6
    assert not reparam.verify(Lambda(lambda _, x: model(x)[0]), cut, image()).ok


class Projects(nn.Module):
    """Puts something else into what a part has returned."""

    class Part(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind
            self.conv, self.norm, self.more = conv(4, 4, 3), norm(4), conv(4, 4, 3)

        def forward(self, x):
            pooled = self.norm(self.conv(x))
            return self.kind(pooled=pooled, last=self.more(pooled.relu()))

    def __init__(self, kind):
        super().__init__()
        self.part, self.head = self.Part(kind), conv(4, 2, 1)

    def forward(self, x):
        out = self.part(x)
        out["pooled"] = self.head(out["pooled"].relu())
        return out


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_a_result_of_a_part_that_is_changed_later(kind):
    model = double(Projects(kind))
    wanted = model(image())
    fused = reparam.fuse(model, image())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    for name, value in fused(image()).items():
        equal(value, wanted[name])
    cut = reparam.fuse(model, image(), outputs="pooled")
    equal(cut(image()), wanted["pooled"])
    assert not hasattr(cut.part, "more")
