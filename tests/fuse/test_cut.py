"""A model is cut down to the results that are wanted, and what is fixed is computed once."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import reparam
from checking import Snapshot
from reparam import Why
from reparam.errors import InputError, UnsupportedModelError
from small_nets import Lambda, conv, image, norm
from zoo import randomise


def double(model: nn.Module) -> nn.Module:
    return randomise(model.double()).eval()


def layer(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(conv(), norm(), nn.ReLU(), nn.Conv2d(4, channels, 1))


def names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def equal(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------ outputs


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


class InPlace(nn.Module):
    """What is dropped and what is kept write to each other's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(), conv()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y, z = self.one(x), self.two(x)
        view = y.flatten(2)[:, 1:]
        changed = view.mul_(2.0)  # y is another one, too
        self.relu(y)
        buffer = torch.zeros_like(z)
        buffer.select(1, 0).copy_(z[:, 1])
        z += y
        return y, changed.sum(), buffer, z


@pytest.mark.parametrize("kept", [0, 1, 2, 3, [0, 2], [1, 3]])
def test_what_writes_in_place_to_what_is_kept_is_kept(kept):
    model = double(InPlace())
    cut = reparam.fuse(model, image(), outputs=kept)
    result = model(image())
    equal(cut(image()), result[kept] if isinstance(kept, int) else tuple(result[k] for k in kept))
    assert hasattr(cut, "two") == (kept not in (0, 1))


class Stateful(nn.Module):
    """Keeps a running mean of what it saw, and reads it."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.mul_(0.5).add_(x.mean())
            return x

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.kept, self.gone = conv(), conv(), self.Mean(), self.Mean()
        self.register_buffer("last", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.kept(self.one(x)) + self.last
        self.last.copy_(y[0].mean((1, 2), keepdim=True))
        return y, self.gone(self.two(x))


def test_what_is_kept_from_call_to_call_goes_on():
    model = double(Stateful())
    cut = reparam.fuse(copy.deepcopy(model), image(), outputs=0)
    for seed in range(3):
        equal(cut(image() * seed), model(image() * seed)[0])
    equal(cut.kept.seen, model.kept.seen)
    assert not hasattr(cut, "two")


class Calls(nn.Module):
    """One block is called for what is kept, for what is not, and for both."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = conv(), conv()

        def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
            left = self.left(x)
            return (left if mask is None else left * mask), self.right(x)

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.block, self.maker, self.masked = self.Block(), conv(), masked

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, b = self.block(x)
        mask = self.maker(x)
        c, d = self.block(a, mask) if self.masked else self.block(a * mask)
        e, _ = self.block(b)
        return a, c, d, e


BOTH = {"left", "right"}


@pytest.mark.parametrize(("kept", "left"), [(0, {"left"}), (1, {"left"}), (2, BOTH), (3, BOTH)])
def test_calls_of_one_module_share_what_is_left_of_it(kept, left):
    model = double(Calls(masked=False))
    cut = reparam.fuse(model, image(), outputs=kept)
    equal(cut(image()), model(image())[kept])
    assert {name.split(".")[1] for name in names(cut) if "block" in name} == left


@pytest.mark.parametrize("kept", range(4))
def test_a_module_that_is_called_in_several_ways_stays_whole(kept):
    model = double(Calls(masked=True))
    plan = reparam.plan(model, image(), outputs=kept)
    cut = plan.apply()
    equal(cut(image()), model(image())[kept])
    told = [refusal for refusal in plan.refusals if refusal.reason.kind is Why.NOT_REWRITTEN]
    assert [refusal.where for refusal in told] == (["block"] if kept == 1 else [])


class TwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layer(), layer()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return self.one(x), self.two(x)


def test_code_that_goes_another_way_for_other_inputs_is_told_and_raises_there():
    model = double(TwoWays())
    even = image()[..., :6]
    plan = reparam.plan(model, even, outputs=0)
    assert Why.ONE_WAY in [refusal.reason.kind for refusal in plan.refusals]
    cut = plan.apply()
    equal(cut(even[..., :4]), model(even[..., :4])[0])
    with pytest.raises(InputError, match="planned for"):
        cut(even[..., :5])


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layer(), layer()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.from_numpy(x.detach().numpy() * 2)
        return self.one(y), self.two(x)


def test_what_cannot_be_traced_is_refused():
    with pytest.raises(UnsupportedModelError, match="traced"):
        reparam.fuse(double(Untraceable()), image(), outputs=0)
    with pytest.raises(InputError, match="example_inputs"):
        reparam.fuse(double(Untraceable()), torch.zeros(1, 7, 5, 5).double(), outputs=0)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = Untraceable(), layer()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b = self.inner(x)
        return {"a": a, "b": b, "c": self.other(x)}


@pytest.mark.parametrize("kept", ["a", "b", "c"])
def test_a_module_that_cannot_be_traced_stays_or_goes_whole(kept):
    model = double(Holder())
    cut = reparam.fuse(model, image(), outputs=kept)
    equal(cut(image()), model(image())[kept])
    assert hasattr(cut, "inner") == (kept != "c")
    assert hasattr(cut, "other") == (kept == "c")


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


# ------------------------------------------------------------------------ fixed


class Film(nn.Module):
    """A convolution whose scale and shift an embedding decides."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        self.conv, self.norm, self.film = conv(), norm(), nn.Linear(features, 8)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
        return torch.relu(self.norm(self.conv(x)) * (1 + scale) + shift)


class FilmNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 6), nn.SiLU(inplace=True))
        self.blocks = nn.ModuleList([Film(), Film()])

    def forward(self, x: Tensor, task: Tensor, scale: float = 1.0) -> Tensor:
        embedding = self.embed(task)
        for block in self.blocks:
            x = block(x, embedding)
        return x * scale


@pytest.mark.parametrize("by_name", [True, False])
def test_film_of_a_fixed_task_folds_into_its_convolutions(by_name):
    model, task = double(FilmNet()), torch.tensor([3])
    before = Snapshot.of(model)
    example = {"x": image()} if by_name else image()
    cut = reparam.fuse(model, example, fixed={"task": task})
    before.assert_unchanged(model)
    equal(cut(image()), model(image(), task))
    equal(cut(image(), scale=1.0), model(image(), task, 1.0))
    assert {n.rpartition(".")[0] for n in names(cut)} == {"blocks.0.conv", "blocks.1.conv"}
    assert not list(cut.buffers())
    assert list(inspect.signature(cut.forward).parameters) == ["x", "scale"]
    for given in (cut, pickle.loads(pickle.dumps(cut))):  # noqa: S301
        with pytest.raises(InputError, match="task was fixed"):
            given(image(), task=task)


class Text(nn.Module):
    """Scores of image features against a text, as open-vocabulary detectors have them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.project = nn.Sequential(conv(), norm(), nn.ReLU()), nn.Linear(6, 4)
        self.norms, self.scale = nn.ModuleList([norm(), norm()]), nn.Parameter(torch.tensor(1.5))

    def head(self, x: Tensor, text: Tensor, which: int) -> Tensor:
        words = F.normalize(self.project(text), dim=-1)
        return torch.einsum("bchw,kc->bkhw", self.norms[which](x), words) * self.scale.exp()

    def forward(self, x: Tensor, text: Tensor, *, mask: Tensor | None = None) -> dict[str, Tensor]:
        y = self.body(x)
        found = {"near": self.head(y, text, 0), "far": self.head(F.max_pool2d(y, 2), text, 1)}
        return found if mask is None else {k: v * mask for k, v in found.items()}


def test_text_that_never_changes_is_embedded_once():
    model, text = double(Text()), torch.randn(3, 6).double()
    plan = reparam.plan(model, image(), fixed={"text": text})
    cut = plan.apply()
    equal(cut(image()), model(image(), text))
    assert not hasattr(cut, "project")
    assert [note for note in plan.notes if "text" in note]
    both = reparam.fuse(model, image(), fixed={"text": text.numpy()}, outputs="far")
    equal(both(image()), model(image(), text)["far"])
    mask = torch.randn(3, 1, 1).double()
    masked = reparam.fuse(model, image(), fixed={"text": text, "mask": mask})
    equal(masked(image()), model(image(), text, mask=mask))
    free = reparam.fuse(model, {"x": image(), "mask": mask}, fixed={"text": text})
    equal(free(image(), mask=mask * 2), model(image(), text, mask=mask * 2))


class LoRA(nn.Module):
    """A convolution with low-rank changes, mixed by weights that are passed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), norm()
        self.down = nn.Parameter(torch.randn(3, 2, 36))
        self.up = nn.Parameter(torch.randn(3, 4, 2))

    def forward(self, x: Tensor, mix: Tensor, alpha: float = 1.0) -> Tensor:
        change = torch.einsum("k,kor,kri->oi", mix, self.up, self.down).view(4, 4, 3, 3)
        weight = self.conv.weight + alpha * change
        return self.norm(F.conv2d(x, weight, self.conv.bias, padding=1))


def test_low_rank_changes_that_are_fixed_become_one_convolution():
    model, mix = double(LoRA()), torch.randn(3).double()
    cut = reparam.fuse(model, image(), fixed={"mix": mix, "alpha": 0.5})
    equal(cut(image()), model(image(), mix, 0.5))
    assert {type(m) for m in cut.children()} == {nn.Conv2d, nn.Identity}
    assert sum(map(Tensor.numel, cut.state_dict().values())) == 4 * 4 * 9 + 4


class Twice(nn.Module):
    """One block is called with the same embedding twice, or with two."""

    def __init__(self) -> None:
        super().__init__()
        self.film, self.other = Film(), nn.Linear(6, 6)

    def forward(self, x: Tensor, one: Tensor, two: Tensor) -> Tensor:
        return self.film(self.film(x, one), self.other(two))


@pytest.mark.parametrize("fixed", [("one",), ("two",), ("one", "two")])
def test_one_block_with_two_embeddings(fixed):
    model = double(Twice())
    values = {name: torch.randn(1, 6).double() for name in ("one", "two")}
    free = {name: value for name, value in values.items() if name not in fixed}
    cut = reparam.fuse(model, {"x": image(), **free}, fixed={name: values[name] for name in fixed})
    equal(cut(image(), **free), model(image(), **values))
    assert hasattr(cut, "other") == ("two" not in fixed)


class OneForAll(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.film = Film()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.film(self.film(x, embedding), embedding)


def test_one_block_that_is_called_twice_with_one_embedding_folds():
    model, embedding = double(OneForAll()), torch.randn(1, 6).double()
    cut = reparam.fuse(model, image(), fixed={"embedding": embedding})
    equal(cut(image()), model(image(), embedding))
    assert {n.rpartition(".")[0] for n in names(cut)} == {"film.conv"}


class Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = layer(), layer()

    def forward(self, x: Tensor, flags: dict[str, Any], *more: Tensor, **named: Any) -> Tensor:
        y = self.two(x) if flags["deep"] else self.one(x)
        for value in (*more, *flags["add"], *named.values()):
            y = y + value
        return y


def test_containers_and_options_are_fixed():
    model, add = double(Options()), torch.randn(4, 1, 1).double()
    flags = {"deep": True, "add": [add, add * 2]}
    cut = reparam.fuse(model, image(), fixed={"flags": flags, "late": add * 3})
    equal(cut(image()), model(image(), flags, late=add * 3))
    assert hasattr(cut, "two")
    assert "add" not in str(inspect.signature(cut.forward))


class Random(nn.Module):
    """A module that nobody can look into and that draws."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(torch.rand(x.shape).numpy()) * float(x.sum() * 0)


class Hidden(nn.Module):
    def __init__(self, *, draws: bool) -> None:
        super().__init__()
        self.encoder, self.draws, self.conv = nn.Linear(6, 4), draws, conv()

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.from_numpy(x.detach().numpy().copy()))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return self.conv(x) * self.encoder(text)[:, :, None, None]


def test_an_encoder_that_cannot_be_traced_is_run_once():
    model = double(Hidden(draws=False))
    model.encoder = double(Hidden.Encoder())
    text = torch.randn(1, 6).double()
    cut = reparam.fuse(model, image(), fixed={"text": text})
    equal(cut(image()), model(image(), text))
    assert not hasattr(cut, "encoder")
    assert not list(cut.buffers())


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        memory += self.conv(x).mean()
        return x * memory


@pytest.mark.parametrize(
    ("model", "fixed", "error", "told"),
    [
        (FilmNet(), {"taks": torch.tensor([1])}, InputError, "task"),
        (FilmNet(), {}, InputError, "dict"),
        (FilmNet(), {3: 1}, InputError, "3"),
        (FilmNet(), "task", InputError, "task"),
        (FilmNet(), {"task": torch.tensor([1]), "x": image(), "scale": 2.0}, InputError, "every"),
        (FilmNet(), {"task": torch.tensor([9])}, InputError, "range"),
        (Options(), {"more": (image(),)}, InputError, "more"),
        (Writes(), {"memory": torch.ones(1).double()}, UnsupportedModelError, "memory"),
    ],
)
def test_what_cannot_be_fixed_is_an_error(model, fixed, error, told):
    with pytest.raises(error, match=told):
        reparam.plan(double(model), image(), fixed=fixed)


@pytest.mark.parametrize("by_name", [True, False])
def test_an_example_of_the_original_serves(by_name):
    task, other = torch.tensor([1]), torch.tensor([0])
    model = double(FilmNet())
    example = {"x": image(), "task": task} if by_name else (image(), task)
    wanted = model(image(), task)
    equal(reparam.fuse(model, example, fixed={"task": task.clone()})(image()), wanted)
    contrary = {"x": image(), "task": other} if by_name else (image(), other, 1.0)
    with pytest.raises(InputError, match="task"):
        reparam.fuse(model, contrary, fixed={"task": task})


def test_a_fixed_value_is_the_callers_no_more():
    model, text = double(Text()), torch.randn(3, 6).double()
    wanted = model(image(), text)
    cut = reparam.fuse(model, image(), fixed={"text": text})
    text.zero_()
    equal(cut(image()), wanted)
