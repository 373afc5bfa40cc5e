"""Networks to train wide and deploy straight: all of RepVGG and MobileOne, and small ones by spec.

Every network is a spec (plain data) over plain blocks that know nothing of deployment. Build one
by name, or write a spec of your own:

>>> import reparam.models
>>> net = reparam.models.repvgg_a0(num_classes=10)
>>> spec = reparam.models.RepVGGSpec(
...     depths=(1, 2, 2), widths=(16, 32, 64), stem_width=16, stem_stride=1, strides=(1, 2, 2)
... )
>>> small = reparam.models.RepVGG(spec, num_classes=10, in_channels=1)
"""

from __future__ import annotations

from reparam.models.blocks import Block, ParallelSum, SqueezeExcite
from reparam.models.fastnet import FastNet, fastnet
from reparam.models.lookup import resolve
from reparam.models.nets import MobileOne, RepVGG, StagedNet
from reparam.models.specs import (
    BRANCHES,
    BlockSpec,
    BranchSpec,
    MobileOneSpec,
    NetSpec,
    RepVGGSpec,
)
from reparam.models.zoo import SPECS, Factory, build, create, names

repvgg_a0: Factory[RepVGG] = Factory("repvgg_a0")
repvgg_a1: Factory[RepVGG] = Factory("repvgg_a1")
repvgg_a2: Factory[RepVGG] = Factory("repvgg_a2")
repvgg_b0: Factory[RepVGG] = Factory("repvgg_b0")
repvgg_b1: Factory[RepVGG] = Factory("repvgg_b1")
repvgg_b1g2: Factory[RepVGG] = Factory("repvgg_b1g2")
repvgg_b1g4: Factory[RepVGG] = Factory("repvgg_b1g4")
repvgg_b2: Factory[RepVGG] = Factory("repvgg_b2")
repvgg_b2g2: Factory[RepVGG] = Factory("repvgg_b2g2")
repvgg_b2g4: Factory[RepVGG] = Factory("repvgg_b2g4")
repvgg_b3: Factory[RepVGG] = Factory("repvgg_b3")
repvgg_b3g2: Factory[RepVGG] = Factory("repvgg_b3g2")
repvgg_b3g4: Factory[RepVGG] = Factory("repvgg_b3g4")
repvgg_d2se: Factory[RepVGG] = Factory("repvgg_d2se")
mobileone_s0: Factory[MobileOne] = Factory("mobileone_s0")
mobileone_s1: Factory[MobileOne] = Factory("mobileone_s1")
mobileone_s2: Factory[MobileOne] = Factory("mobileone_s2")
mobileone_s3: Factory[MobileOne] = Factory("mobileone_s3")
mobileone_s4: Factory[MobileOne] = Factory("mobileone_s4")

__all__ = [
    "BRANCHES",
    "SPECS",
    "Block",
    "BlockSpec",
    "BranchSpec",
    "Factory",
    "FastNet",
    "MobileOne",
    "MobileOneSpec",
    "NetSpec",
    "ParallelSum",
    "RepVGG",
    "RepVGGSpec",
    "SqueezeExcite",
    "StagedNet",
    "build",
    "create",
    "fastnet",
    "mobileone_s0",
    "mobileone_s1",
    "mobileone_s2",
    "mobileone_s3",
    "mobileone_s4",
    "names",
    "repvgg_a0",
    "repvgg_a1",
    "repvgg_a2",
    "repvgg_b0",
    "repvgg_b1",
    "repvgg_b1g2",
    "repvgg_b1g4",
    "repvgg_b2",
    "repvgg_b2g2",
    "repvgg_b2g4",
    "repvgg_b3",
    "repvgg_b3g2",
    "repvgg_b3g4",
    "repvgg_d2se",
    "resolve",
]
