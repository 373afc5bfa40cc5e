"""The named networks: sizes as published, options, and errors that say what there is."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import reparam.models
from reparam.errors import InputError
from reparam.models import BRANCHES, SPECS, BranchSpec, MobileOne, RepVGG, create, names

# Parameters (M) and multiply-adds (G) of the deploy form at 224 pixels, as published in the two
# papers; of D2se, which is younger than its paper, as mmpretrain's list of models has them.
PUBLISHED = {
    "repvgg_a0": (8.30, 1.4),
    "repvgg_a1": (12.78, 2.4),
    "repvgg_a2": (25.49, 5.1),
    "repvgg_b0": (14.33, 3.1),
    "repvgg_b1": (51.82, 11.8),
    "repvgg_b1g2": (41.36, 8.8),
    "repvgg_b1g4": (36.12, 7.3),
    "repvgg_b2": (80.31, 18.4),
    "repvgg_b2g4": (55.77, 11.3),
    "repvgg_b3": (110.96, 26.2),
    "repvgg_b3g4": (75.62, 16.1),
    "repvgg_d2se": (120.39, 32.8),
    "mobileone_s0": (2.1, 0.275),
    "mobileone_s1": (4.8, 0.825),
    "mobileone_s2": (7.8, 1.299),
    "mobileone_s3": (10.1, 1.896),
    "mobileone_s4": (14.8, 2.978),
}


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return create(name, **options).eval()


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def multiply_adds(net: nn.Module, size: int = 224) -> int:
    total = 0

    def add(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    net(torch.empty(1, 3, size, size, device="meta"))
    return total


@pytest.mark.parametrize("name", PUBLISHED)
def test_deploy_form_has_the_published_size(name):
    net = on_meta(name, form="deploy")
    millions, billions = PUBLISHED[name]
    # RepVGG gives two decimals; MobileOne one, so that half of the last digit is more than 0.5 %.
    allowed = 0.05 if name.startswith("mobileone") else 0.005 * millions
    assert parameters(net) / 1e6 == pytest.approx(millions, abs=allowed)
    assert multiply_adds(net) / 1e9 == pytest.approx(billions, abs=0.05, rel=0.005)


@pytest.mark.parametrize("name", ["repvgg_b2g2", "repvgg_b3g2"])
def test_unpublished_members_lie_between_their_neighbours(name):
    lower, upper = (on_meta(n, form="deploy") for n in (f"{name[:-1]}4", name[:-2]))
    assert parameters(lower) < parameters(on_meta(name, form="deploy")) < parameters(upper)


@pytest.mark.parametrize("name", names())
def test_deploy_form_is_one_convolution_a_block(name):
    net = on_meta(name, form="deploy")
    blocks = sum(len(stage) for stage in SPECS[name].stages())
    outside_attention = [
        module
        for path, module in net.named_modules()
        if isinstance(module, nn.Conv2d) and "attention" not in path
    ]
    assert len(outside_attention) == blocks
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert parameters(net) < parameters(on_meta(name))


def test_a0_has_22_convolutions():
    convs = [m for m in on_meta("repvgg_a0", form="deploy").modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 22


def test_all_members_are_there_by_name_and_as_functions():
    assert len(names()) == len(set(names())) == 19
    for name in names():
        assert name in reparam.models.__all__
        with torch.device("meta"):
            net = getattr(reparam.models, name)(num_classes=7, in_channels=4)
        assert type(net) is (MobileOne if name.startswith("mobileone") else RepVGG)
        assert net.spec == SPECS[name]
        assert (net.stem.branches.kxk0.conv.in_channels, net.head.out_features) == (4, 7)


def test_the_spelling_of_the_papers_is_understood():
    assert on_meta("RepVGG-B1g4").spec == SPECS["repvgg_b1g4"]
    assert on_meta("MobileOne-S0").spec == SPECS["mobileone_s0"]


def test_options_change_the_spec():
    net = on_meta("repvgg_a0", stem_stride=1, strides=(1, 2, 2, 2), branches="qarepvgg")
    assert net.spec.branches == BRANCHES["qarepvgg"]
    assert net.features(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 1280, 4, 4)
    own = BranchSpec(kernels=2)
    assert on_meta("repvgg_a0", branches=own).spec.branches == own


def test_without_classes_there_are_features():
    net = on_meta("repvgg_a0", num_classes=0)
    assert net(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1280)


def test_deepcopy_and_pickle_keep_the_function():
    net = create(
        "mobileone_s0", num_classes=3, widths=(8,) * 4, depths=(1,) * 4, stem_width=8
    ).eval()
    x = torch.randn(1, 3, 32, 32)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301 - our own bytes
        assert torch.equal(twin(x), net(x))
        assert twin.spec == net.spec


def test_weights_begin_as_torch_initialises_layers():
    """As in the authors' code: no scheme of its own, so gammas are 1 and shifts 0."""
    net = create("repvgg_a0", num_classes=10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    kernel = net.stages[3][0].branches.kxk0.conv.weight
    bound = (1 / (192 * 9)) ** 0.5
    assert kernel.abs().max() <= bound
    assert kernel.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("repvg_a0", {}, r"did you mean repvgg_a0"),
        ("resnet", {}, r"names\(\) lists all 19"),
        ("repvgg_a0", {"form": "fused"}, "'train' or 'deploy'"),
        ("repvgg_a0", {"stride": 1}, r"no option 'stride' \(did you mean .*strides"),
        ("mobileone_s0", {"groups": 2}, "no option 'groups'"),
        ("repvgg_a0", {"branches": "both"}, "no choice of branches 'both'"),
        ("repvgg_a0", {"branches": "1x1", "form": "deploy"}, "leave one of the two out"),
        ("repvgg_a0", {"num_classes": -1}, "num_classes is -1"),
        ("repvgg_a0", {"in_channels": 0}, "in_channels"),
    ],
)
def test_what_does_not_exist_is_named(name, options, message):
    with pytest.raises(InputError, match=message):
        on_meta(name, **options)
