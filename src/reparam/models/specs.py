"""What a network of the families is made of, as plain data: no tensors, no modules.

Three levels, each a frozen dataclass. A :class:`BranchSpec` says which branches a block sums, a
:class:`BlockSpec` is one block with its channels and stride, and a :class:`RepVGGSpec` or
:class:`MobileOneSpec` is a whole network. A named variant is a value, never a class, and the
deploy form of a network is a value as well: the same network with one plain convolution a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from reparam.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

BASE_WIDTHS = (64, 128, 256, 512)
"""Channels of the stages at width multiplier 1, in both families."""


@dataclass(frozen=True, kw_only=True)
class BranchSpec:
    """Which branches the affine part of a block sums, and where it normalises.

    The affine part is ``sum_j BN_j(conv_kxk_j(x)) + BN(conv_1x1(x)) + BN(x)``.

    Attributes:
        kernels: Number of kxk convolution branches, at least 1.
        pointwise: Whether there is a 1x1 branch. A block whose kernel is 1x1 has none of its own.
        identity: Whether there is an identity branch, where the channels match and the stride
            is 1.
        norm: ``"branch"``: a BN at the end of every branch (RepVGG, MobileOne). ``"sum"``: a BN
            after the sum and one in the kxk branches, none in the 1x1 and identity branches
            (QARepVGG, arXiv 2212.01593). ``"none"``: no BN; the kxk convolutions
            have a bias instead.

    >>> BranchSpec(kernels=0)
    Traceback (most recent call last):
        ...
    reparam.errors.InputError: a block has 0 kxk branches and needs at least 1
    """

    kernels: int = 1
    pointwise: bool = True
    identity: bool = True
    norm: Literal["branch", "sum", "none"] = "branch"

    def __post_init__(self) -> None:
        if self.kernels < 1:
            raise InputError(f"a block has {self.kernels} kxk branches and needs at least 1")
        if self.norm not in ("branch", "sum", "none"):
            raise InputError(f"norm is {self.norm!r} and must be 'branch', 'sum' or 'none'")

    @property
    def single(self) -> bool:
        """Whether this is one convolution with a bias and nothing else."""
        only_one = self.kernels == 1 and not self.pointwise and not self.identity
        return only_one and self.norm == "none"


BRANCHES: Mapping[str, BranchSpec] = MappingProxyType(
    {
        "repvgg": BranchSpec(),
        "identity": BranchSpec(pointwise=False),
        "1x1": BranchSpec(identity=False),
        "neither": BranchSpec(pointwise=False, identity=False),
        "qarepvgg": BranchSpec(norm="sum"),
        "conv": BranchSpec(pointwise=False, identity=False, norm="none"),
    }
)
"""Branch choices by name: RepVGG's and the three of its ablation (arXiv 2101.03697, section 4.2),
where ``"neither"`` is one conv and BN; QARepVGG's; and ``"conv"``, one convolution with a bias."""


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """One block: ``ReLU(SE(affine(x)))``, from ``(N, in, H, W)`` to ``(N, out, H', W')``.

    ``H' = ceil(H / stride)``, and so for the width, whatever the dilation: the padding follows from
    the kernel, so that the taps of all branches line up.

    Attributes:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kxk kernels, odd.
        stride: Stride of every branch.
        dilation: Distance between the taps of the kxk kernels.
        groups: Groups of every convolution.
        squeeze: Channels inside the squeeze-and-excitation module; 0 for no such module.
        branches: What the affine part sums.
    """

    in_channels: int
    out_channels: int
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    squeeze: int = 0
    branches: BranchSpec = BRANCHES["repvgg"]

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of a block is {getattr(self, name)} and must be positive")
        if self.kernel_size % 2 == 0:
            raise InputError(
                f"kernel_size is {self.kernel_size} and must be odd: an even kernel has no centre "
                f"for the 1x1 and identity branches"
            )
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise InputError(
                f"{self.in_channels} -> {self.out_channels} channels cannot be split into "
                f"{self.groups} groups; both must be divisible by the number of groups"
            )

    @property
    def padding(self) -> int:
        """Padding of the kxk convolutions: what centres the dilated kernel on the input."""
        return self.dilation * (self.kernel_size - 1) // 2

    @property
    def has_pointwise(self) -> bool:
        """Whether the block has a 1x1 branch beside its kxk branches."""
        return self.branches.pointwise and self.kernel_size > 1

    @property
    def has_identity(self) -> bool:
        """Whether the block has an identity branch."""
        same_shape = self.in_channels == self.out_channels and self.stride == 1
        return self.branches.identity and same_shape


Stages: TypeAlias = "tuple[tuple[BlockSpec, ...], ...]"
"""The blocks of a network, stage by stage; the first stage is the stem."""


@dataclass(frozen=True, kw_only=True)
class NetSpec(ABC):
    """What both families share: a stem, stages of blocks, and which branches the blocks have.

    Attributes:
        depths: Number of units in every stage after the stem.
        widths: Output channels of every stage after the stem.
        stem_width: Output channels of the stem.
        stem_stride: Stride of the stem; 1 for small images.
        strides: Stride of the first unit of every stage: one number for all, or one each.
        branches: What the blocks sum.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem_width: int
    stem_stride: int = 2
    strides: int | tuple[int, ...] = 2
    branches: BranchSpec = BRANCHES["repvgg"]

    _own: ClassVar[str] = "strides"
    """The field of the family that may differ from stage to stage."""

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 1:
            raise InputError(f"depths is {self.depths}; every stage needs at least one block")
        for field in ("widths", "strides", self._own):
            self._per_stage(field)

    def deploy(self) -> Self:
        """Return the deploy form: the same network with one biased convolution a block, no BN.

        It has the function of the fused network once it holds its weights, and fewer parameters
        than the train form.
        """
        return replace(self, branches=BRANCHES["conv"])

    def stages(self, in_channels: int = 3) -> Stages:
        """Return the blocks, stage by stage, for images with ``in_channels`` channels."""
        stem = self._stem(self._block(in_channels, self.stem_width, self.stem_stride))
        stages: list[tuple[BlockSpec, ...]] = [(stem,)]
        channels, position = self.stem_width, 0
        strides, own = self._per_stage("strides"), self._per_stage(self._own)
        for depth, width, stride, value in zip(self.depths, self.widths, strides, own, strict=True):
            blocks: list[BlockSpec] = []
            for index in range(depth):
                position += 1
                block = self._block(channels, width, stride if index == 0 else 1)
                blocks += self._unit(block, value, position, depth - index)
                channels = width
            stages.append(tuple(blocks))
        return tuple(stages)

    def _block(self, source: int, width: int, stride: int) -> BlockSpec:
        return BlockSpec(
            in_channels=source, out_channels=width, stride=stride, branches=self.branches
        )

    @abstractmethod
    def _stem(self, block: BlockSpec) -> BlockSpec:
        """Return the stem as the family has it."""

    @abstractmethod
    def _unit(self, block: BlockSpec, own: int, position: int, left: int) -> Iterable[BlockSpec]:
        """Return the blocks of a unit as the family has it.

        Args:
            block: One with its channels and stride.
            own: What the family's own field says of the stage.
            position: Of the unit in the network, from 1.
            left: Units of the stage from this one on.
        """

    def _per_stage(self, field: str) -> tuple[int, ...]:
        """Return a field that is one number for all stages, or one each, as one each."""
        value: int | tuple[int, ...] = getattr(self, field)
        values = (value,) * len(self.depths) if isinstance(value, int) else tuple(value)
        if len(values) != len(self.depths):
            raise InputError(
                f"{field} has {len(values)} values ({values}) and depths has {len(self.depths)} "
                f"({self.depths}); there must be one for every stage"
            )
        return values


@dataclass(frozen=True, kw_only=True)
class RepVGGSpec(NetSpec):
    """A RepVGG network: 3x3 blocks in stages (CVPR 2021, arXiv 2101.03697, section 3.4).

    Attributes:
        dilations: Dilation of the blocks of every stage: one number for all, or one each.
        groups: Groups of the convolutions in every second block (the 2nd, 4th, ... after the stem).
        reduction: Squeeze-and-excitation before the activation of every block, inside which there
            are ``channels // reduction`` channels; 0 for none.

    A network for images of 32 pixels, with three stages:

    >>> spec = RepVGGSpec(
    ...     depths=(1, 2, 2), widths=(16, 32, 64), stem_width=16, stem_stride=1, strides=(1, 2, 2)
    ... )
    >>> [len(stage) for stage in spec.stages()]
    [1, 1, 2, 2]
    >>> spec.stages()[-1][0].stride
    2
    """

    dilations: int | tuple[int, ...] = 1
    groups: int = 1
    reduction: int = 0

    _own = "dilations"

    @classmethod
    def scaled(
        cls,
        depths: tuple[int, ...],
        a: float,
        b: float,
        *,
        groups: int = 1,
        reduction: int = 0,
    ) -> Self:
        """Return a network of the paper: multiplier ``a`` on all stages but the last, ``b`` there.

        The stem has ``min(64, 64 a)`` channels (arXiv 2101.03697, section 3.4).

        >>> RepVGGSpec.scaled((2, 4, 14, 1), a=0.75, b=2.5).widths
        (48, 96, 192, 1280)
        """
        widths = _scaled((a,) * (len(depths) - 1) + (b,))
        return cls(depths=depths, groups=groups, reduction=reduction, **widths)

    def _stem(self, block: BlockSpec) -> BlockSpec:
        return replace(block, squeeze=_squeezed(block.out_channels, self.reduction))

    def _unit(self, block: BlockSpec, own: int, position: int, left: int) -> Iterable[BlockSpec]:
        del left
        groups = self.groups if position % 2 == 0 else 1
        yield replace(self._stem(block), dilation=own, groups=groups)


@dataclass(frozen=True, kw_only=True)
class MobileOneSpec(NetSpec):
    """A MobileOne network: units of a depthwise 3x3 block and a 1x1 block (arXiv 2206.04040).

    The stem always has a single kxk branch; ``branches`` is for the units.

    Attributes:
        attentive: Number of units at the end of every stage whose blocks have
            squeeze-and-excitation: one number for all stages, or one each.
        reduction: Channels of a block for each channel inside its squeeze-and-excitation.
    """

    attentive: int | tuple[int, ...] = 0
    reduction: int = 16

    _own = "attentive"

    @classmethod
    def scaled(
        cls,
        multipliers: tuple[float, float, float, float],
        *,
        kernels: int = 1,
        attentive: int | tuple[int, ...] = 0,
    ) -> Self:
        """Return a network of the paper from its width multipliers.

        Args:
            multipliers: Width multiplier of each of the four stages.
            kernels: Number of kxk branches of a block.
            attentive: Units with squeeze-and-excitation at the end of every stage.
        """
        branches = BranchSpec(kernels=kernels)
        widths = _scaled(multipliers)
        return cls(depths=(2, 8, 10, 1), branches=branches, attentive=attentive, **widths)

    def _stem(self, block: BlockSpec) -> BlockSpec:
        return replace(block, branches=replace(self.branches, kernels=1))

    def _unit(self, block: BlockSpec, own: int, position: int, left: int) -> Iterable[BlockSpec]:
        """Yield a depthwise 3x3 block and the 1x1 block that mixes its channels."""
        del position
        source, reduction = block.in_channels, self.reduction if left <= own else 0
        squeeze = _squeezed(source, reduction)
        yield replace(block, out_channels=source, groups=source, squeeze=squeeze)
        squeeze = _squeezed(block.out_channels, reduction)
        yield replace(block, kernel_size=1, stride=1, squeeze=squeeze)


def _squeezed(channels: int, reduction: int) -> int:
    """Return the channels inside a block's squeeze-and-excitation; 0 for none."""
    return max(1, channels // reduction) if reduction else 0


def _scaled(multipliers: Iterable[float]) -> dict[str, Any]:
    """Return the widths of stages and stem by width multipliers, as both papers have them."""
    widths = tuple(int(w * m) for w, m in zip(BASE_WIDTHS, multipliers, strict=True))
    return {"widths": widths, "stem_width": min(64, widths[0])}
