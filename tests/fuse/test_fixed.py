"""What is fixed is computed once, and what it makes constant folds."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparam
from checking import Snapshot
from cutting import double, equal, layer, names
from reparam.errors import InputError, UnsupportedModelError
from small_nets import conv, image, norm


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


class Entries(dict):
    """A result whose entries are its attributes as well, as those of transformers are."""

    def __init__(self, **entries: object) -> None:
        super().__init__(entries)
        vars(self).update(entries)


class Detector(nn.Module):
    """Looks for what a text asks for; its results lie in one another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.norm = nn.Embedding(5, 4), conv(), norm()

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Entries:
        mask = mask.to(device=x.device, dtype=torch.bool)
        texts = self.embed(words)
        if (missing := texts.shape[1] - mask.shape[1]) > 0:
            mask = F.pad(mask, (0, missing))
        text = (texts * mask[:, :, None]).mean(1)
        seen = self.norm(self.conv(x))
        scores = torch.einsum("bchw,bc->bhw", seen, text)
        return Entries(scores=scores, text=Entries(pooled=text, whole=texts), seen=seen)


@pytest.mark.parametrize("outputs", [None, "scores", ["scores", "text.pooled"]])
def test_a_text_that_is_fixed_in_a_detector_with_nested_results(outputs):
    model, x = double(Detector()), image()
    texts = {"words": torch.tensor([[1, 3, 2], [0, 4, 4]]), "mask": torch.ones(2, 3)}
    texts["mask"][1, 2] = 0
    cut = reparam.fuse(model, {"x": x}, fixed=texts, outputs=outputs)
    assert names(cut) == {"conv.weight", "conv.bias"} if outputs else {"conv.weight"} <= names(cut)
    found, expected = cut(x), model(x, **texts)
    if outputs is None:
        assert type(found) is type(found.text) is Entries
        assert found.text is found["text"]
        equal(found.text.pooled, expected.text.pooled)
        equal(found.seen, expected.seen)
        equal(found.scores, expected.scores)
    elif outputs == "scores":
        equal(found, expected.scores)
    else:
        equal(found["text.pooled"], expected.text.pooled)
        equal(found["scores"], expected.scores)
