"""Other projects' names: literally, for whole networks, and against timm's own models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.checkpoints import load_checkpoint
from reparam.checkpoints.layouts import LAYOUTS
from reparam.models import BRANCHES, BranchSpec, MobileOneSpec, NetSpec, RepVGGSpec, build
from zoo import randomise

if TYPE_CHECKING:
    from pathlib import Path

# Small enough for seconds, and with widths and squeezes that timm can have: multiples of 8.
NETS = {
    "repvgg": RepVGGSpec(depths=(2, 2), widths=(8, 16), stem_width=8, groups=2),
    "repvgg-se": RepVGGSpec(depths=(1, 2), widths=(8, 16), stem_width=8, reduction=4),
    "mobileone": MobileOneSpec(
        depths=(2, 1),
        widths=(8, 8),
        stem_width=8,
        attentive=(1, 1),
        reduction=1,
        branches=BranchSpec(kernels=2),
    ),
}

# What names look like in each project's files, written down from files and not from the tables
# under test: name there, name here.
NAMES = {
    "official RepVGG": {
        "stage0.rbr_dense.conv.weight": "stem.branches.kxk0.conv.weight",
        "stage0.rbr_1x1.bn.running_var": "stem.branches.pointwise.bn.running_var",
        "stage1.1.rbr_identity.bias": "stages.0.1.branches.identity.bias",
        "stage3.13.rbr_reparam.weight": "stages.2.13.branches.weight",
        "stage4.0.se.down.bias": "stages.3.0.attention.reduce.bias",
        "stage4.0.se.up.weight": "stages.3.0.attention.expand.weight",
        "linear.weight": "head.weight",
    },
    "official MobileOne": {
        "stage0.rbr_conv.0.conv.weight": "stem.branches.kxk0.conv.weight",
        "stage1.3.rbr_conv.3.bn.running_mean": "stages.0.3.branches.kxk3.bn.running_mean",
        "stage1.0.rbr_scale.conv.weight": "stages.0.0.branches.pointwise.conv.weight",
        "stage2.2.rbr_skip.running_var": "stages.1.2.branches.identity.running_var",
        "stage2.2.reparam_conv.bias": "stages.1.2.branches.bias",
        "stage4.1.se.reduce.weight": "stages.3.1.attention.reduce.weight",
        "stage4.1.se.expand.bias": "stages.3.1.attention.expand.bias",
        "linear.bias": "head.bias",
    },
    "timm": {
        "stem.conv_kxk.conv.weight": "stem.branches.kxk0.conv.weight",
        "stages.0.1.conv_1x1.bn.weight": "stages.0.1.branches.pointwise.bn.weight",
        "stages.2.13.identity.running_mean": "stages.2.13.branches.identity.running_mean",
        "stages.1.0.conv_kxk.3.bn.weight": "stages.1.0.branches.kxk3.bn.weight",
        "stages.1.0.conv_scale.conv.weight": "stages.1.0.branches.pointwise.conv.weight",
        "stages.3.0.reparam_conv.bias": "stages.3.0.branches.bias",
        "stages.3.0.attn.fc1.weight": "stages.3.0.attention.reduce.weight",
        "stages.3.0.attn.fc2.bias": "stages.3.0.attention.expand.bias",
        "head.fc.weight": "head.weight",
    },
    "mmpretrain": {
        "backbone.stem.branch_3x3.conv.weight": "stem.branches.kxk0.conv.weight",
        "backbone.stage_1.1.branch_1x1.norm.bias": "stages.0.1.branches.pointwise.bn.bias",
        "backbone.stage_4.0.branch_norm.weight": "stages.3.0.branches.identity.weight",
        "backbone.stage_2.5.branch_reparam.weight": "stages.1.5.branches.weight",
        "backbone.stage_2.5.se_layer.conv1.conv.bias": "stages.1.5.attention.reduce.bias",
        "backbone.stage0.branch_conv_list.0.norm.weight": "stem.branches.kxk0.bn.weight",
        "backbone.stage1.2.branch_scale.conv.weight": "stages.0.2.branches.pointwise.conv.weight",
        "backbone.stage3.9.se.conv2.conv.weight": "stages.2.9.attention.expand.weight",
        "head.fc.bias": "head.bias",
    },
}
CASES = [
    (project, theirs, ours) for project, names in NAMES.items() for theirs, ours in names.items()
]

# The same again as renaming rules from here to there, applied in order, for whole networks.
OFFICIAL = [(r"^stem\.", "stage0."), (r"^head\.", "linear.")]
RENAMING = {
    ("repvgg", "official RepVGG"): [
        *OFFICIAL,
        (r"branches\.kxk0", "rbr_dense"),
        (r"branches\.pointwise", "rbr_1x1"),
        (r"branches\.identity", "rbr_identity"),
        (r"branches\b", "rbr_reparam"),
        (r"attention\.reduce", "se.down"),
        (r"attention\.expand", "se.up"),
    ],
    ("mobileone", "official MobileOne"): [
        *OFFICIAL,
        (r"branches\.kxk(\d)", r"rbr_conv.\1"),
        (r"branches\.pointwise", "rbr_scale"),
        (r"branches\.identity", "rbr_skip"),
        (r"branches\b", "reparam_conv"),
        (r"attention\.(reduce|expand)", r"se.\1"),
    ],
    ("repvgg", "mmpretrain"): [
        (r"^stem\.", "backbone.stem."),
        (r"^stage(\d)", r"backbone.stage_\1"),
        (r"^head", "head.fc"),
        (r"\.bn\.", ".norm."),
        (r"branches\.kxk0", "branch_3x3"),
        (r"branches\.pointwise", "branch_1x1"),
        (r"branches\.identity", "branch_norm"),
        (r"branches\b", "branch_reparam"),
        (r"attention\.reduce", "se_layer.conv1.conv"),
        (r"attention\.expand", "se_layer.conv2.conv"),
    ],
    ("mobileone", "mmpretrain"): [
        (r"^stem\.", "stage0."),
        (r"^stage", "backbone.stage"),
        (r"^head", "head.fc"),
        (r"\.bn\.", ".norm."),
        (r"branches\.kxk(\d)", r"branch_conv_list.\1"),
        (r"branches\.pointwise", "branch_scale"),
        (r"branches\.identity", "branch_norm"),
        (r"branches\b", "branch_reparam"),
        (r"attention\.reduce", "se.conv1.conv"),
        (r"attention\.expand", "se.conv2.conv"),
    ],
}


def renamed(state: dict[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """A state dict of ours under another project's names."""

    def there(name: str) -> str:
        name = re.sub(r"^stages\.(\d)", lambda found: f"stage{int(found[1]) + 1}", name)
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return {there(name): tensor for name, tensor in state.items()}


def trained(net: nn.Module, seed: int = 0) -> nn.Module:
    """A net with drawn numbers; its epsilons are the default ones, which no checkpoint records."""
    randomise(net.double(), seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
    return net


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, dtype=torch.float64)


def fresh(spec: NetSpec) -> nn.Module:
    return trained(build(spec, num_classes=5), seed=1)


@pytest.mark.parametrize(("project", "theirs", "ours"), CASES, ids=[case[1] for case in CASES])
def test_names_are_translated(project, theirs, ours):
    layout = next(layout for layout in LAYOUTS if layout.name == project)
    assert layout.translate(theirs) == ours


@pytest.mark.parametrize(
    "name",
    ["fc.weight", "stage0.conv.weight", "stages.0.conv1.weight", "layer1.0.bn1.weight", "stem"],
)
def test_other_names_are_not(name):
    assert [layout.translate(name) for layout in LAYOUTS] == [None] * len(LAYOUTS)


FILES = [(net, *key) for net in NETS for key in RENAMING if net.startswith(key[0])]


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize(("net", "family", "project"), FILES)
def test_whole_files_are_read(net, family, project, form, tmp_path):
    spec = NETS[net] if form == "train" else NETS[net].deploy()
    reference, loaded = trained(build(spec, num_classes=5)), fresh(spec)
    torch.save(renamed(reference.state_dict(), RENAMING[family, project]), tmp_path / "net.pth")
    report = load_checkpoint(loaded, tmp_path / "net.pth")
    assert (report.layout, report.form, report.complete) == (project, form, True)
    assert set(report.loaded) == set(loaded.state_dict())
    x = images()
    torch.testing.assert_close(loaded(x), reference(x), rtol=0, atol=0)


def timm_net(name: str) -> nn.Module:
    """The network of a spec, from timm's own blocks."""
    byobnet = pytest.importorskip("timm.models.byobnet")
    spec = NETS[name]
    if name == "mobileone":
        stages = byobnet._mobileone_bcfg(
            d=spec.depths, wf=(8 / 64, 8 / 128), se_blocks=spec.attentive, num_conv_branches=2
        )
        config = byobnet.ByoModelCfg(blocks=stages, stem_type="one", stem_chs=spec.stem_width)
    else:
        stages = byobnet._rep_vgg_bcfg(d=spec.depths, wf=(8 / 64, 16 / 128), groups=spec.groups)
        config = byobnet.ByoModelCfg(
            blocks=stages,
            stem_type="rep",
            stem_chs=spec.stem_width,
            attn_layer="se" if spec.reduction else None,
            attn_kwargs={"rd_ratio": 1 / 4, "rd_divisor": 1},
        )
    return byobnet.ByobNet(config, num_classes=5)


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", NETS)
def test_timm_is_read_from_its_own_models(name, suffix, form, tmp_path):
    spec, reference = NETS[name], trained(timm_net(name))
    if form == "deploy":
        spec, reference = spec.deploy(), deployed_by_timm(reference)
    file = save(reference.state_dict(), tmp_path / f"net{suffix}")
    loaded = fresh(spec)
    report = load_checkpoint(loaded, file)
    assert (report.layout, report.form, report.complete) == ("timm", form, True)
    x = images()
    torch.testing.assert_close(loaded(x), reference(x), rtol=0, atol=1e-12)


def deployed_by_timm(net: nn.Module) -> nn.Module:
    return pytest.importorskip("timm.utils.model").reparameterize_model(net)


def save(state: dict[str, Tensor], file: Path) -> Path:
    if file.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(state, file)
    else:
        torch.save(state, file)
    return file


@pytest.mark.parametrize("choice", BRANCHES)
def test_what_fuse_writes_is_read_into_the_deploy_form_and_back(choice, tmp_path):
    spec = RepVGGSpec(
        depths=(2,), widths=(8,), stem_width=8, reduction=4, branches=BRANCHES[choice]
    )
    net = randomise(build(spec, num_classes=5).double())
    fused = reparam.fuse(net)
    torch.save(fused.state_dict(), tmp_path / "fused.pth")
    deploy, x = fresh(spec.deploy()), images()
    assert load_checkpoint(deploy, tmp_path / "fused.pth").complete
    torch.testing.assert_close(deploy(x), fused(x), rtol=0, atol=0)

    other = reparam.fuse(fresh(spec))
    torch.save(deploy.state_dict(), tmp_path / "deploy.pth")
    assert load_checkpoint(other, tmp_path / "deploy.pth").complete
    torch.testing.assert_close(other(x), net(x), rtol=0, atol=1e-12)
