"""The table: how each block is built, on what it is tried, and the fewest operators it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ._common import conv_bn, randomise
from .diverse import AsymmetricBlock, DiverseBranchBlock
from .everyday import (
    AveragedHeads,
    ConvNeXtBlock,
    ForwardNorm,
    FrozenNorm,
    FunctionalNorm,
    NormBehindCat,
    ReflectBranches,
    SharedStem,
    TokenLinear,
    TransposedBranch,
)
from .large_kernel import DilatedReparamBlock, LargeKernelBlock
from .mobile import (
    FastVitBlock,
    FastVitPatchEmbed,
    MobileOneBlock,
    PPLCNetV2Block,
    RepGhostModule,
    RepMixer,
    RepViTBlock,
)
from .repvgg import QARepVGGBlock, RepVGGBlock, YoloRepConv
from .superres import EdgeOrientedBlock
from .weight_space import (
    OrepaBlock,
    StandardisedConv,
    spectral_conv_bn,
    weight_normed_conv_bn,
)

__all__ = ["CASES", "ZooCase"]


@dataclass(frozen=True)
class ZooCase:
    """One block of the zoo and what must become of it.

    ``convs`` and ``linears`` are the calls left in one forward, ``norms`` the BNs left, ``others``
    the names of the arithmetic operators that may remain (views are free). ``affine`` blocks must
    give an operator; ``probe`` ones only when they may be probed. ``pending`` names what the block
    still waits for: its tests are expected to fail, and to be switched on once they pass.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    convs: int = 1
    linears: int = 0
    norms: int = 0
    others: frozenset[str] = frozenset()
    affine: bool = True
    probe: bool = False
    fixed: bool = False
    pending: str = ""

    def module(self, seed: int = 0) -> nn.Module:
        """Build the block with random numbers, in float64 and eval mode."""
        torch.manual_seed(seed)
        return randomise(self.build().double(), seed)

    def inputs(self, seed: int = 0) -> torch.Tensor:
        """Draw the example input."""
        return _draw(self.shape, seed)

    def other_inputs(self, seed: int = 1) -> torch.Tensor:
        """Draw an input of another batch, and of another size where the block allows one."""
        batch, channels, *size = self.shape
        if self.fixed or not size:
            return _draw((batch + 2, *self.shape[1:]), seed)
        grown = [extent + 3 + i for i, extent in enumerate(size)]
        return _draw((batch + 2, channels, *grown), seed)


def _draw(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


_X = (2, 8, 9, 11)
_RELU, _GELU, _SILU = frozenset({"relu"}), frozenset({"gelu"}), frozenset({"silu"})
_ADD = frozenset({"add"})


def _case(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...] = _X, **kw) -> ZooCase:  # type: ignore[no-untyped-def]
    return ZooCase(name, build, shape, **kw)


def _repvgg() -> list[ZooCase]:
    return [
        _case("repvgg", partial(RepVGGBlock, 8, 8)),
        _case("repvgg-stride2", partial(RepVGGBlock, 8, 12, stride=2)),
        _case("repvgg-grouped", partial(RepVGGBlock, 8, 8, groups=4)),
        _case("repvgg-dilated", partial(RepVGGBlock, 8, 8, dilation=2)),
        _case("repvgg-5x5", partial(RepVGGBlock, 8, 8, kernel=5)),
        _case("repvgg-depthwise", partial(RepVGGBlock, 8, 8, groups=8)),
        _case("repvgg-1d", partial(RepVGGBlock, 6, 6, rank=1), (2, 6, 13)),
        _case("repvgg-3d", partial(RepVGGBlock, 4, 4, rank=3), (2, 4, 5, 6, 7)),
        _case(
            "repvgg-relu",
            partial(RepVGGBlock, 8, 8, activation=nn.ReLU),
            others=_RELU,
            affine=False,
        ),
        _case("qarepvgg-bare-identity", partial(QARepVGGBlock, 8, 8, variant="bare_identity")),
        _case("qarepvgg-bare-branches", partial(QARepVGGBlock, 8, 8, variant="bare_branches")),
        _case("qarepvgg-post-norm", partial(QARepVGGBlock, 8, 8)),
        _case("qarepvgg-post-norm-stride2", partial(QARepVGGBlock, 8, 12, stride=2)),
        _case("qarepvgg-post-norm-grouped", partial(QARepVGGBlock, 8, 8, groups=2)),
        _case("yolo-repconv", partial(YoloRepConv, 8, 8), others=_SILU, affine=False),
        _case(
            "yolo-repconv-stride2",
            partial(YoloRepConv, 8, 12, stride=2, activation=nn.Identity),
        ),
    ]


def _diverse() -> list[ZooCase]:
    cases = [
        _case("acnet", partial(AsymmetricBlock, 8, 12)),
        _case("acnet-stride2", partial(AsymmetricBlock, 8, 12, stride=2)),
        _case("acnet-5x5-grouped", partial(AsymmetricBlock, 8, 8, kernel=5, groups=2)),
        _case("acnet-dilated", partial(AsymmetricBlock, 8, 8, dilation=2)),
        _case("acnet-cropped", partial(AsymmetricBlock, 8, 8, padding=0)),
    ]
    for between in ("scale", "pad_then_norm", "border"):
        probe = between == "border"
        pending = ""
        for suffix, cout, options in (
            ("", 8, {}),
            ("-stride2", 12, {"stride": 2}),
            ("-grouped", 8, {"groups": 4}),
            ("-5x5", 8, {"kernel": 5}),
        ):
            build = partial(DiverseBranchBlock, 8, cout, between=between, **options)
            cases.append(_case(f"dbb-{between}{suffix}", build, probe=probe, pending=pending))
    return cases


def _mobile() -> list[ZooCase]:
    return [
        _case("mobileone-depthwise", partial(MobileOneBlock, 8, 8, groups=8)),
        _case("mobileone-depthwise-stride2", partial(MobileOneBlock, 8, 8, groups=8, stride=2)),
        _case("mobileone-depthwise-dilated", partial(MobileOneBlock, 8, 8, groups=8, dilation=2)),
        _case("mobileone-pointwise", partial(MobileOneBlock, 8, 12, kernel=1)),
        _case("mobileone-pointwise-skip", partial(MobileOneBlock, 8, 8, kernel=1)),
        _case("repmixer", partial(RepMixer, 8)),
        _case("repvit", partial(RepViTBlock, 8), convs=3, others=_GELU | _ADD, affine=False),
        _case("fastvit", partial(FastVitBlock, 8), convs=4, others=_GELU | _ADD, affine=False),
        _case(
            "fastvit-patch-embed",
            partial(FastVitPatchEmbed, 8, 16),
            convs=2,
            others=_GELU,
            affine=False,
        ),
        _case("repghost", partial(RepGhostModule, 8, 8), convs=2, others=_RELU, affine=False),
        _case("pplcnetv2", partial(PPLCNetV2Block, 8, 12), convs=2, others=_RELU, affine=False),
    ]


def _large() -> list[ZooCase]:
    return [
        _case("replk", partial(LargeKernelBlock, 4), (2, 4, 15, 17)),
        _case("replk-stride2", partial(LargeKernelBlock, 4, stride=2), (2, 4, 15, 17)),
        _case("unireplk", partial(DilatedReparamBlock, 4), (2, 4, 15, 17)),
        _case(
            "unireplk-dilated-only",
            partial(DilatedReparamBlock, 4, large=7, branches=((3, 2), (3, 3), (7, 1))),
            (2, 4, 15, 17),
        ),
    ]


def _superres() -> list[ZooCase]:
    return [
        _case("ecbsr", partial(EdgeOrientedBlock, 8, 8)),
        _case("ecbsr-no-bias", partial(EdgeOrientedBlock, 8, 8, border="no_bias")),
        _case("ecbsr-no-identity", partial(EdgeOrientedBlock, 3, 8), (2, 3, 9, 11)),
        _case(
            "ecbsr-prelu",
            partial(EdgeOrientedBlock, 8, 8, activation=partial(nn.PReLU, 8)),
            others=frozenset({"_prelu_kernel"}),
            affine=False,
        ),
        _case(
            "ecbsr-written-border",
            partial(EdgeOrientedBlock, 8, 8, border="written"),
            probe=True,
        ),
    ]


def _weight_space() -> list[ZooCase]:
    standardised = partial(StandardisedConv, 8, 8, 3, padding=1)
    return [
        _case("orepa", partial(OrepaBlock, 8, 12)),
        _case("orepa-stride2", partial(OrepaBlock, 8, 12, stride=2)),
        _case("orepa-grouped", partial(OrepaBlock, 8, 8, groups=2)),
        _case("standardised-conv", standardised),
        _case("standardised-conv-bn", lambda: nn.Sequential(standardised(), nn.BatchNorm2d(8))),
        _case("weight-norm-bn", partial(weight_normed_conv_bn, 8, 12)),
        _case("spectral-norm-bn", partial(spectral_conv_bn, 8, 12)),
    ]


def _everyday() -> list[ZooCase]:
    token = {"convs": 0, "linears": 1}
    convnext_others = frozenset({"native_layer_norm", "gelu", "add"})
    convnext = {"linears": 2, "others": convnext_others, "affine": False}
    return [
        _case("convnext", partial(ConvNeXtBlock, 8), **convnext),
        _case(
            "convnext-scale-after-permute",
            partial(ConvNeXtBlock, 8, scale_after_permute=True),
            **convnext,
        ),
        _case(
            "linear-bn", lambda: nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9)), (4, 6), **token
        ),
        _case(
            "token-linear-bn",
            partial(TokenLinear, 6, 9),
            (2, 5, 6),
            **token,
            fixed=True,
            affine=False,
        ),
        _case("averaged-heads", partial(AveragedHeads, 6, 4), (3, 6), **token),
        _case("functional-bn", partial(FunctionalNorm, 8, 12)),
        _case("frozen-bn", lambda: nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), FrozenNorm(12))),
        _case(
            "bn-behind-cat",
            partial(NormBehindCat, 9),
            (2, 9, 9, 11),
            convs=3,
            others=frozenset({"cat"}),
            affine=False,
        ),
        _case("bn-forward-1x1", partial(ForwardNorm, 8, 12)),
        _case("bn-forward-3x3", partial(ForwardNorm, 8, 12, 3)),
        _case("shared-stem", partial(SharedStem, 8), convs=3, affine=False),
        _case(
            "conv-bn-same",
            lambda: _same_padded(8, 12),
            others=frozenset({"constant_pad_nd"}),
        ),
        _case("bn-without-affine", lambda: _plain_norm(8, 12)),
        _case(
            "conv-transpose-bn",
            partial(TransposedBranch, 8, 12),
            affine=False,
        ),
        _case(
            "conv-transpose-bn-grouped",
            partial(TransposedBranch, 8, 12, groups=2, bias=False),
            affine=False,
        ),
        _case(
            "reflect-conv-bn",
            lambda: _padded_mode(8, 12, "reflect"),
            affine=False,
            others=frozenset({"reflection_pad2d"}),
        ),
        _case(
            "reflect-branches",
            partial(ReflectBranches, 8),
            affine=False,
            others=frozenset({"reflection_pad2d"}),
        ),
        _case(
            "circular-branches",
            partial(ReflectBranches, 8, "circular"),
            affine=False,
            others=frozenset({"copy_"}),
        ),
    ]


def _same_padded(cin: int, cout: int) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, (4, 3), padding="same", dilation=(1, 2))
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


def _plain_norm(cin: int, cout: int) -> nn.Sequential:
    block = conv_bn(cin, cout, 3)
    block[1] = nn.BatchNorm2d(cout, affine=False)
    return block


def _padded_mode(cin: int, cout: int, mode: str) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, 3, padding=1, padding_mode=mode, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


CASES: tuple[ZooCase, ...] = tuple(
    case
    for group in (_repvgg, _diverse, _mobile, _large, _superres, _weight_space, _everyday)
    for case in group()
)
