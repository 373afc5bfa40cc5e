"""RepOptimizer: the plain net's trajectory is that of the constant-scale multi-branch net."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

from reparam.branching.rep_optimizer import (
    BranchScales,
    RepOptimizer,
    ScaledBranches,
    default_scales,
    initialize_,
    pack_scales,
    read_scales,
    scaled_branches,
    search_scales,
    unpack_scales,
)
from reparam.errors import InputError

STEPS = 8
F64 = torch.float64


class HandWrittenBlock(nn.Module):
    """A constant-scale block written out by hand: the reference, which shares no code."""

    def __init__(self, conv: nn.Conv2d, scales: BranchScales) -> None:
        super().__init__()
        o, i = conv.weight.shape[:2]
        self.kernel = nn.Parameter(torch.randn(o, i, 3, 3, dtype=F64) * 0.2)
        self.pointwise = nn.Parameter(torch.randn(o, i, 1, 1, dtype=F64) * 0.2)
        self.stride, self.groups = conv.stride, conv.groups
        self.t = scales.kernel.view(1, -1, 1, 1)
        self.s = scales.pointwise.view(1, -1, 1, 1) if scales.pointwise is not None else None
        self.c: Tensor | None = None
        if scales.identity is not None:
            value = scales.identity.clone().view(1, -1, 1, 1)
            self.c = nn.Parameter(value) if scales.train_identity else value

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.kernel, None, self.stride, 1, 1, self.groups) * self.t
        if self.s is not None:
            y = y + F.conv2d(x, self.pointwise, None, self.stride, 0, 1, self.groups) * self.s
        return y if self.c is None else y + x * self.c

    def equivalent(self) -> Tensor:
        """Read the kernel off the block's impulse responses."""
        channels = self.kernel.shape[1] * self.groups
        impulse = torch.zeros(channels, channels, 3, 3, dtype=F64)
        impulse[range(channels), range(channels), 1, 1] = 1
        pointwise, t = F.pad(self.pointwise, [1, 1, 1, 1]), self.t.view(-1, 1, 1, 1)
        total = self.kernel * t
        if self.s is not None:
            total = total + pointwise * self.s.view(-1, 1, 1, 1)
        if self.c is not None:
            width = self.kernel.shape[1]
            unit = torch.zeros_like(self.kernel)
            unit[range(channels), [o % width for o in range(channels)], 1, 1] = 1
            total = total + unit * self.c.view(-1, 1, 1, 1)
        return total.detach()


def plain_net() -> nn.Sequential:
    def block(i: int, o: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(i, o, 3, stride, 1, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(o), nn.ReLU()]

    layers = [*block(3, 6, 2), *block(6, 6), *block(6, 6, groups=2), *block(6, 6, groups=6)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)).double()


def random_scales(net: nn.Sequential, *, train_identity: bool = True) -> dict[str, BranchScales]:
    scales = {}
    for name, conv in net.named_children():
        if isinstance(conv, nn.Conv2d):
            o = conv.out_channels
            sign = torch.where(torch.rand(o) < 0.3, -1.0, 1.0).double()
            identity = torch.randn(o, dtype=F64) if conv.in_channels == o else None
            scales[name] = BranchScales(
                sign * (0.3 + torch.rand(o, dtype=F64)),
                0.3 + torch.rand(o, dtype=F64),
                identity,
                train_identity=train_identity,
            )
    return scales


def multi_branch(net: nn.Sequential, scales: dict[str, BranchScales]) -> nn.Sequential:
    """Make the hand-written multi-branch net, and set the plain net to the same function."""
    wide = copy.deepcopy(net)
    for name, value in scales.items():
        wide[int(name)] = block = HandWrittenBlock(net[int(name)], value)
        net[int(name)].weight.data.copy_(block.equivalent())
    return wide


def train(net: nn.Module, optimizer: Optimizer, after: Callable[[], None]) -> None:
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS + 2)
    data = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        x = torch.randn(8, 3, 8, 8, generator=data, dtype=F64)
        y = torch.randint(4, (8,), generator=data)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        decay.step()
        after()


def trajectories(
    make: Callable[[list[nn.Parameter]], Optimizer], *, train_identity: bool = True
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Kernels after every step: of the plain net, and of the multi-branch net."""
    torch.manual_seed(0)
    plain = plain_net()
    scales = random_scales(plain, train_identity=train_identity)
    wide = multi_branch(plain, scales)
    left: list[list[Tensor]] = []
    right: list[list[Tensor]] = []
    optimizer = RepOptimizer(make(list(plain.parameters())), plain, scales)
    train(
        plain,
        optimizer,
        lambda: left.append([plain[int(n)].weight.detach().clone() for n in scales]),
    )
    train(
        wide,
        make(list(wide.parameters())),
        lambda: right.append([wide[int(n)].equivalent() for n in scales]),
    )
    return left, right


def worst(left: list[list[Tensor]], right: list[list[Tensor]]) -> float:
    return max(
        (a - b).abs().max().item()
        for step_left, step_right in zip(left, right, strict=True)
        for a, b in zip(step_left, step_right, strict=True)
    )


SGDS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "decay": {"weight_decay": 0.05},
    "momentum-decay": {"momentum": 0.9, "weight_decay": 0.05},
    "nesterov-decay": {"momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
    "dampening": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05},
    "maximize": {"momentum": 0.9, "weight_decay": 0.05, "maximize": True},
    "foreach": {"momentum": 0.9, "weight_decay": 0.05, "foreach": True},
}


@pytest.mark.parametrize("train_identity", [True, False], ids=["identity", "constant-identity"])
@pytest.mark.parametrize("options", SGDS.values(), ids=SGDS)
def test_sgd_walks_the_branches_trajectory(options: dict[str, float], train_identity) -> None:
    left, right = trajectories(
        lambda parameters: SGD(parameters, lr=0.1, **options), train_identity=train_identity
    )
    assert worst(left, right) <= 1e-12


def test_the_trajectory_is_not_that_of_the_plain_optimizer() -> None:
    torch.manual_seed(0)
    plain = plain_net()
    wide = multi_branch(plain, random_scales(plain))
    left: list[list[Tensor]] = []
    right: list[list[Tensor]] = []
    train(plain, SGD(plain.parameters(), lr=0.1), lambda: left.append([plain[3].weight.clone()]))
    train(wide, SGD(wide.parameters(), lr=0.1), lambda: right.append([wide[3].equivalent()]))
    assert worst(left, right) > 1e-2


@pytest.mark.parametrize(
    "make",
    [
        lambda p: AdamW(p, lr=1e-2, weight_decay=0.1, eps=0.0),
        lambda p: AdamW(p, lr=1e-2, weight_decay=0.1, eps=0.0, amsgrad=True),
        lambda p: AdamW(p, lr=1e-2, weight_decay=0.1, eps=0.0, foreach=True),
        lambda p: Adam(p, lr=1e-2, eps=0.0),
        lambda p: NAdam(p, lr=1e-2, eps=0.0),
    ],
    ids=["adamw", "amsgrad", "foreach", "adam", "nadam"],
)
@pytest.mark.parametrize("train_identity", [True, False], ids=["identity", "constant-identity"])
def test_adaptive_steps_are_the_branches_where_eps_vanishes(
    make: Callable[[list[nn.Parameter]], Optimizer], train_identity
) -> None:
    left, right = trajectories(make, train_identity=train_identity)
    assert worst(left, right) <= 1e-11


def test_adamw_with_eps_is_exact_off_the_centre_and_near_on_it() -> None:
    """One step from the same state: the outer taps belong to one branch and are exact."""
    eps = 1e-3
    left, right = trajectories(lambda p: AdamW(p, lr=1e-2, weight_decay=0.1, eps=eps))
    for a, b in zip(left[0], right[0], strict=True):
        outer = torch.ones(3, 3, dtype=torch.bool)
        outer[1, 1] = False
        torch.testing.assert_close(a[..., outer], b[..., outer], rtol=0, atol=1e-14)
        assert (a - b).abs().max() > 1e-6
    left, right = trajectories(lambda p: AdamW(p, lr=1e-2, weight_decay=0.1, eps=1e-8))
    assert worst(left, right) <= 1e-5


def test_weight_decay_that_differs_between_branches_has_no_counterpart() -> None:
    """The condition that the docstring states is needed: with other decays the paths part."""
    torch.manual_seed(0)
    plain = plain_net()
    scales = random_scales(plain)
    wide = multi_branch(plain, scales)
    left: list[list[Tensor]] = []
    right: list[list[Tensor]] = []
    optimizer = RepOptimizer(SGD(plain.parameters(), lr=0.1, weight_decay=0.05), plain, scales)
    train(plain, optimizer, lambda: left.append([plain[3].weight.clone()]))
    identity = [p for n, p in wide.named_parameters() if n.endswith(".c")]
    others = [p for n, p in wide.named_parameters() if not n.endswith(".c")]
    groups = [{"params": identity, "weight_decay": 0.0}, {"params": others}]
    train(
        wide,
        SGD(groups, lr=0.1, weight_decay=0.05),
        lambda: right.append([wide[3].equivalent()]),
    )
    assert worst(left, right) > 1e-4


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 8), (8, 3)])
def test_channels_that_do_not_divide_each_other_are_initialised(inputs: int, outputs: int) -> None:
    net = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1)).double()
    scales = {"0": BranchScales(*(torch.rand(outputs, dtype=F64) + 0.5 for _ in range(2)), None)}
    wide = scaled_branches(net, scales, generator=torch.Generator().manual_seed(1))
    initialize_(net, scales, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, inputs, 7, 7, dtype=F64)
    torch.testing.assert_close(net(x), wide(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_initialisation_and_the_csla_net_agree(dims: int, groups: int) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    torch.manual_seed(3)
    net = nn.Sequential(conv(4, 4, 5, padding=4, dilation=2, groups=groups)).double()
    scales = {
        "0": BranchScales(*(torch.rand(4, dtype=F64) + 0.5 for _ in range(3))),
    }
    wide = scaled_branches(net, scales, generator=torch.Generator().manual_seed(1))
    initialize_(net, scales, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 4, *(11,) * dims, dtype=F64)
    torch.testing.assert_close(net(x), wide(x), rtol=0, atol=1e-13)


def test_the_multipliers_are_those_of_the_paper() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    t, s = torch.tensor([2.0, 3.0]), torch.tensor([0.5, -0.25])
    scales = BranchScales(t, s, torch.ones(2))
    squares, magnitudes = scales.squares(conv), scales.magnitudes(conv)
    assert squares[0, 0].tolist() == [[4, 4, 4], [4, 4 + 0.25 + 1, 4], [4, 4, 4]]
    assert squares[0, 1, 1, 1].item() == 4 + 0.25
    assert squares[1, 1, 1, 1].item() == 9 + 0.0625 + 1
    assert magnitudes[1, 0, 1, 1].item() == 3.25
    assert magnitudes[1, 1, 1, 1].item() == 4.25


def test_clipping_by_the_branches_norm_matches_the_multi_branch_net() -> None:
    torch.manual_seed(0)
    plain = plain_net()
    scales = random_scales(plain)
    wide = multi_branch(plain, scales)
    optimizer = RepOptimizer(SGD(plain.parameters(), lr=0.1), plain, scales)
    x = torch.randn(4, 3, 8, 8, dtype=F64)
    plain(x).square().sum().backward()
    wide(x).square().sum().backward()
    expected = nn.utils.get_total_norm([p.grad for p in wide.parameters() if p.grad is not None])
    torch.testing.assert_close(optimizer.branch_gradient_norm(), expected, rtol=1e-12, atol=0)


def make_pair() -> tuple[nn.Sequential, RepOptimizer]:
    torch.manual_seed(1)
    net = plain_net()
    scales = random_scales(net, train_identity=False)
    base = AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    return net, RepOptimizer(base, net, scales)


def backward(net: nn.Module) -> Tensor:
    net.zero_grad()
    loss = net(torch.ones(2, 3, 8, 8, dtype=F64)).square().sum()
    loss.backward()
    return loss.detach()


def test_a_step_leaves_the_gradients_as_they_were() -> None:
    net, optimizer = make_pair()
    backward(net)
    before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    optimizer.step()
    after = [p.grad for p in net.parameters() if p.grad is not None]
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


def test_a_closure_is_called_once_and_before_the_step() -> None:
    first, with_closure = make_pair()
    second, without = make_pair()
    calls = []

    def closure() -> float:
        calls.append(1)
        return float(backward(first))

    loss = with_closure.step(closure)
    assert loss == float(backward(second))
    without.step()
    assert len(calls) == 1
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_training_resumes_exactly(way: str) -> None:
    net, optimizer = make_pair()
    for _ in range(2):
        backward(net)
        optimizer.step()
    if way == "state_dict":
        saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
        other, again = make_pair()
        other.load_state_dict(saved[0])
        again.load_state_dict(saved[1])
    elif way == "pickle":
        other, again = pickle.loads(pickle.dumps((net, optimizer)))  # noqa: S301 (our own)
    else:
        other, again = copy.deepcopy((net, optimizer))
    assert again.state is again.base.state
    assert again.param_groups is again.base.param_groups
    for model, steps in ((net, optimizer), (other, again)):
        for _ in range(2):
            backward(model)
            steps.step()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_groups_and_schedules_are_shared_with_the_base() -> None:
    net, optimizer = make_pair()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
    backward(net)
    optimizer.step()
    scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == pytest.approx(5e-3)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert len(optimizer.base.param_groups) == len(optimizer.param_groups) == 2


def test_a_kernel_without_gradient_is_left_alone() -> None:
    net, optimizer = make_pair()
    net[0].requires_grad_(False)
    kept = net[0].weight.clone()
    backward(net)
    optimizer.step()
    assert torch.equal(net[0].weight, kept)


def test_default_scales_follow_the_depth_in_the_stage() -> None:
    scales = default_scales(plain_net())
    values = [scale.kernel[0].item() for scale in scales.values()]
    assert values == pytest.approx([1.0, 2**0.5, 1.0, (2 / 3) ** 0.5])
    assert [scale.identity is not None for scale in scales.values()] == [False, True, True, True]


def test_the_search_trains_the_scales_and_leaves_the_model() -> None:
    torch.manual_seed(0)
    net = plain_net()
    before = copy.deepcopy(net.state_dict())

    def fit(model: nn.Module) -> None:
        assert sum(isinstance(m, ScaledBranches) for m in model.modules()) == 4
        train(model, SGD(model.parameters(), lr=0.1, momentum=0.9), lambda: None)

    scales = search_scales(net, fit, generator=torch.Generator().manual_seed(0))
    start = default_scales(net)
    assert list(scales) == list(start)
    for name, value in scales.items():
        assert (value.kernel - start[name].kernel).abs().max() > 1e-4
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[key])
    RepOptimizer(SGD(net.parameters(), lr=0.1), net, scales)


def test_constant_scales_are_not_parameters() -> None:
    net = plain_net()
    scales = random_scales(net)
    names = {name.split(".", 1)[1] for name, _ in scaled_branches(net, scales).named_parameters()}
    assert "identity_scale" in names
    assert not {"kernel_scale", "pointwise_scale"} & names


@pytest.mark.parametrize("train_identity", [True, False])
def test_scales_survive_packing(train_identity) -> None:
    scales = random_scales(plain_net(), train_identity=train_identity)
    again = unpack_scales(pack_scales(scales))
    assert list(again) == list(scales)
    for name, value in scales.items():
        assert torch.equal(again[name].kernel, value.kernel)
        assert (again[name].identity is None) == (value.identity is None)
        if value.identity is not None:
            assert again[name].train_identity == train_identity


def test_scales_are_read_back_from_the_csla_net() -> None:
    net = plain_net()
    scales = random_scales(net, train_identity=False)
    again = read_scales(scaled_branches(net, scales))
    for name, value in scales.items():
        assert torch.equal(again[name].kernel, value.kernel)
        if value.identity is not None:
            assert not again[name].train_identity


def _scale(channels: int = 6) -> BranchScales:
    return BranchScales(torch.ones(channels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: RepOptimizer(SGD(n.parameters(), 0.1), n, {}), "no scales"),
        (lambda n: RepOptimizer(SGD(n.parameters(), 0.1), n, {"x": _scale()}), "no such module"),
        (lambda n: RepOptimizer(SGD(n.parameters(), 0.1), n, {"1": _scale()}), "BatchNorm2d"),
        (lambda n: RepOptimizer(SGD(n.parameters(), 0.1), n, {"0": _scale(5)}), "output channels"),
        (lambda n: RepOptimizer(SGD(n[1].parameters(), 0.1), n, {"0": _scale()}), "same model"),
        (lambda n: RepOptimizer(RMSprop(n.parameters()), n, {"0": _scale()}), "rule="),
        (
            lambda n: RepOptimizer(Adam(n.parameters(), weight_decay=0.1), n, {"0": _scale()}),
            "decoupled",
        ),
        (lambda _: BranchScales(torch.ones(2, 2)), "one floating point number"),
        (lambda _: BranchScales(torch.ones(2), torch.ones(3)), "same number"),
        (lambda _: BranchScales(torch.tensor([0.0, 1.0])), "zero"),
        (lambda _: BranchScales(torch.tensor([float("nan"), 1.0])), "finite"),
        (
            lambda n: initialize_(n, {"0": BranchScales(torch.ones(6), None, torch.ones(6))}),
            "no identity",
        ),
        (lambda n: default_scales(n[1]), "no plain convolution"),
        (read_scales, "no ScaledBranches"),
        (lambda _: unpack_scales({"a:b": torch.ones(1)}), "after a colon"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(
    call: Callable[[nn.Sequential], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        call(plain_net())


@pytest.mark.parametrize(
    "conv", [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 2, padding=1), nn.Conv2d(4, 4, 1)]
)
def test_kernels_without_a_centre_are_refused(conv: nn.Conv2d) -> None:
    with pytest.raises(InputError, match="1x1"):
        initialize_(nn.Sequential(conv), {"0": _scale(4)})
