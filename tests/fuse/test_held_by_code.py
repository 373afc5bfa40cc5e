"""Modules that others wrap, compile, or hold in code: they fold, and a copy has nothing of them."""

from __future__ import annotations

import collections
import functools
import types
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn

import reparam
from reparam.errors import VerificationError
from small_nets import Pair
from stepping import randomised

X = torch.randn(2, 6, 9, 8, dtype=torch.float64)


SCRIPTED = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


class Outer(nn.Module):
    """A pair that is wrapped, and a norm behind it."""

    def __init__(self, pair: nn.Module) -> None:
        super().__init__()
        self.pair, self.norm = pair, nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.pair(x))


def _compiled_in_place(pair: nn.Module) -> nn.Module:
    pair.compile(backend="eager")
    return pair


def _compiled_forward(pair: nn.Module) -> nn.Module:
    pair.forward = torch.compile(pair.forward, backend="eager")
    return pair


def _closure(pair: nn.Module) -> nn.Module:
    before, pair.act = pair.forward, nn.PReLU(6)
    pair.forward = lambda x, act=pair.act: pair.norm(act(before(x)))
    return pair


def _decorated(pair: nn.Module) -> nn.Module:
    before = pair.forward

    @functools.wraps(before)
    def forward(*args: object) -> object:
        return before(*args)

    pair.forward = forward
    return pair


def _method(pair: nn.Module) -> nn.Module:
    pair.forward = types.MethodType(lambda self, x: 2 * self.norm(self.conv(x)), pair)
    return pair


def _partial(pair: nn.Module) -> nn.Module:
    pair.forward = functools.partial(Pair.forward, pair)
    return pair


def _partial_closure(pair: nn.Module) -> nn.Module:
    pair.forward = functools.partial(lambda factor, x: factor * pair.norm(pair.conv(x)), 2.0)
    return pair


def _in_a_namespace(pair: nn.Module) -> nn.Module:
    pair.parts = types.SimpleNamespace(run=lambda x: pair.norm(pair.conv(x)))
    pair.forward = lambda x: 2 * pair.parts.run(x)
    return pair


def _in_a_table(pair: nn.Module) -> nn.Module:
    pair.table = collections.defaultdict(list)
    pair.table["run"].append(lambda x: pair.norm(pair.conv(x)))
    pair.forward = lambda x: 2 * pair.table["run"][0](x)
    return pair


def _by_reference(pair: nn.Module) -> nn.Module:
    reference = weakref.ref(pair)
    pair.forward = lambda x: reference().norm(reference().conv(x))
    return pair


def _called_by_an_object(pair: nn.Module) -> nn.Module:
    class Runs:
        def __init__(self, parts: list[nn.Module]) -> None:
            self.parts = parts

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return functools.reduce(lambda value, part: part(value), self.parts, x)

    pair.forward = Runs([pair.conv, pair.norm])
    return pair


WAYS: dict[str, tuple[Callable[[nn.Module], nn.Module], int]] = {
    "compiled": (lambda pair: torch.compile(pair, backend="eager"), 0),
    "compiled-in-place": (_compiled_in_place, 0),
    "compiled-forward": (_compiled_forward, 0),
    "data-parallel": (nn.DataParallel, 0),
    "closure": (_closure, 2),  # norm(act(norm(conv))), and the outer norm behind the first
    "decorated": (_decorated, 0),
    "method": (_method, 0),
    "partial": (_partial, 0),
    "partial-closure": (_partial_closure, 0),
    "namespace": (_in_a_namespace, 0),
    "table": (_in_a_table, 0),
    "reference": (_by_reference, 0),
    "object": (_called_by_an_object, 0),
}


@pytest.mark.parametrize("example", [None, X], ids=["read alone", "with an example"])
@pytest.mark.parametrize("name", WAYS)
def test_what_holds_a_module_holds_the_copys(name: str, example: torch.Tensor | None) -> None:
    wrap, _ = WAYS[name]
    model = Outer(wrap(randomised(Pair(), 1))).double()
    randomised(model.norm, 2)
    model.eval()
    expected = model(X)
    fused = reparam.fuse(model, example)
    torch.testing.assert_close(fused(X), expected, rtol=1e-9, atol=1e-9)
    left = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) <= WAYS[name][1]
    assert fused.state_dict().keys() >= {"pair.conv.weight"} or name in {
        "compiled",
        "data-parallel",
    }
    for parameter in model.parameters():
        parameter.data.add_(1)  # the original, and nothing else
    torch.testing.assert_close(fused(X), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")  # it goes on
def test_a_perturbed_kernel_behind_a_wrapper_is_found() -> None:
    model = Outer(torch.compile(randomised(Pair()), backend="eager")).double().eval()
    fused = reparam.fuse(model, X)
    layer = next(m for m in fused.modules() if isinstance(m, nn.Conv2d))
    layer.weight.data[0, 0, 0, 0] += 1e-3
    with pytest.raises(VerificationError):
        reparam.verify(model, fused, X).raise_if_different()


@pytest.mark.parametrize(
    "name",
    [
        "closure",
        "decorated",
        "method",
        "partial",
        "partial-closure",
        "object",
        "namespace",
        "table",
        "reference",
    ],
)
def test_other_copies_own_what_their_code_holds(name: str) -> None:
    model = Outer(WAYS[name][0](randomised(Pair()))).double().train()
    for copied in (reparam.branch(model, "repvgg"), reparam.online(model)):
        state = {key: value.clone() for key, value in model.state_dict().items()}
        copied(X).sum().backward()
        for parameter in copied.parameters():
            parameter.data.add_(1)
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@SCRIPTED
@pytest.mark.parametrize("how", [torch.jit.script, lambda m: torch.jit.trace(m, X)])
def test_torchscript_inside_stays_and_the_rest_folds(how: Callable[[nn.Module], nn.Module]) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.script, self.pair = how(randomised(Pair()).eval()), randomised(Pair(), 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pair(self.script(x))

    model = Around().eval()
    for example in (None, X):
        fused = reparam.fuse(model, example)
        torch.testing.assert_close(fused(X), model(X), rtol=1e-9, atol=1e-9)
        assert isinstance(fused.pair.norm, nn.Identity)


@SCRIPTED
def test_a_scripted_function_is_an_attribute_like_others() -> None:
    @torch.jit.script
    def swish(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)

    class Acting(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.outer = swish, Pair()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.outer(self.act(super().forward(x)))

    model = randomised(Acting()).eval()
    fused = reparam.fuse(model, X)
    torch.testing.assert_close(fused(X), model(X), rtol=1e-9, atol=1e-9)
    assert isinstance(fused.outer.norm, nn.Identity)


class Sized(nn.Module):
    """A transposed convolution that is told its output's size, in numbers that are computed."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.up = getattr(nn, f"ConvTranspose{dims}d")(6, 6, 3, stride=2, padding=1)
        self.norm = getattr(nn, f"BatchNorm{dims}d")(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.up(x, output_size=[2 * n for n in x.shape[2:]]))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("given", [False, True])
def test_numbers_are_no_tensors_to_scale(dims: int, *, given: bool) -> None:
    model = randomised(Sized(dims)).eval()
    x = torch.randn(2, 6, *(5, 4, 3)[:dims], dtype=torch.float64)
    plan = reparam.plan(model, x if given else None)
    torch.testing.assert_close(plan.apply()(x), model(x), rtol=1e-9, atol=1e-9)
    other = torch.cat([x, x, x], -1)
    torch.testing.assert_close(plan.apply()(other), model(other), rtol=1e-9, atol=1e-9)


class Counting(nn.Module):
    """Sizes go into the values: as factors, as summands, as what is divided by."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Pair(), Pair()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        y = self.first(x) / (2 * height * 3) + (width + 1) * 2
        return self.second(y - 4 * x.dim()) * (height / width)


@pytest.mark.parametrize("example", [None, X], ids=["read alone", "with an example"])
def test_sizes_in_values(example: torch.Tensor | None) -> None:
    model = randomised(Counting()).eval()
    fused = reparam.fuse(model, example)
    for x in (X, X[:1, :, :5, :7].contiguous()):
        torch.testing.assert_close(fused(x), model(x), rtol=1e-9, atol=1e-9)


class Listed(nn.Module):
    """Functions that take their weights from one list, and norms in another."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(6, 6, 1, 1)) for _ in range(2)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(6) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for weight, norm in zip(self.weights, self.norms, strict=True):
            x = norm(nn.functional.conv2d(x, weight))
        return x


def test_no_folded_norm_is_left_in_a_list() -> None:
    model = randomised(Listed()).eval()
    fused = reparam.fuse(model)
    torch.testing.assert_close(fused(X), model(X), rtol=1e-9, atol=1e-9)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]


class Numbers(nn.Module):
    """A convolution of numbers that stand in the code: no weight says what type it has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.rand(6, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blurred = nn.functional.conv2d(x, torch.ones(6, 1, 3, 3).to(x) / 9, groups=6)
        return 2 * (blurred + self.shift)


def test_layers_of_numbers_in_code() -> None:
    model = Numbers().double().eval()
    for example in (None, X):
        fused = reparam.fuse(model, example)
        torch.testing.assert_close(fused(X), model(X), rtol=1e-9, atol=1e-9)


class Standardised(nn.Module):
    """Weight standardisation: a function computes with the weight of a layer that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.called = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.parts = [self.called]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.read.weight - self.read.weight.mean((1, 2, 3), keepdim=True)
        return self.parts[0](nn.functional.conv2d(x, weight, padding=1))


def test_branching_leaves_weights_that_code_reads_and_reaches_what_a_list_holds() -> None:
    model = Standardised().double().eval()
    wide = reparam.branch(model, "repvgg")
    assert type(wide.read) is nn.Conv2d
    assert wide.parts[0] is wide.called
    assert "called.branches.conv3x3.conv.weight" in wide.state_dict()
    torch.testing.assert_close(wide(X), model(X), rtol=1e-9, atol=1e-9)
    (refused,) = reparam.branching.plan_branching(model).refusals
    assert refused.where == "read"
