"""How other projects name the weights of the same networks, as data.

A :class:`Layout` says where a project keeps the stem, the stages and the classifier, and how it
names the parts of a block. Translating is one function for all of them; a further project is a
further entry in :data:`LAYOUTS`. Only names are mapped: the tensors are the same everywhere.

The names on our side are those of ``reparam.models``: ``stem.`` and ``stages.<n>.<m>.`` for blocks,
inside which there are ``branches.kxk<i>.{conv,bn}.``, ``branches.pointwise.{conv,bn}.``,
``branches.identity.``, ``attention.{reduce,expand}.``, or, in the deploy form, ``branches.`` alone;
and ``head.`` for the classifier.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Form: TypeAlias = Literal["train", "deploy"]


@dataclass(frozen=True)
class Layout:
    r"""Where a project keeps what, as regular expressions that match whole dotted names.

    Attributes:
        name: The project, for messages.
        stem: The stem block.
        stage: A stage, with one group around its number.
        first_stage: The number of the first stage after the stem.
        head: The classifier.
        parts: Names inside a block, in pairs: theirs, and what it becomes here (in which ``\1`` is
            their first group). The first that matches counts.
    """

    name: str
    stem: str
    stage: str
    first_stage: int
    head: str
    parts: tuple[tuple[str, str], ...]

    def translate(self, key: str) -> str | None:
        """Return our name for one of theirs, or None for what they would not name like that.

        >>> official = next(layout for layout in LAYOUTS if layout.name == "official RepVGG")
        >>> official.translate("stage1.0.rbr_dense.conv.weight")
        'stages.0.0.branches.kxk0.conv.weight'
        >>> official.translate("stage1.0.conv_kxk.conv.weight") is None
        True
        """
        if head := self._head.fullmatch(key):
            return f"head.{head['rest']}"
        if stem := self._stem.fullmatch(key):
            return self._inside("stem.", stem["rest"])
        if block := self._block.fullmatch(key):
            stage = int(block[1]) - self.first_stage
            return self._inside(f"stages.{stage}.{block['block']}.", block["rest"])
        return None

    def _inside(self, block: str, part: str) -> str | None:
        for pattern, ours in self._parts:
            if found := pattern.match(part):
                return block + found.expand(ours) + part[found.end() :]
        return None

    @cached_property
    def _head(self) -> re.Pattern[str]:
        return re.compile(rf"(?:{self.head})\.(?P<rest>.+)")

    @cached_property
    def _stem(self) -> re.Pattern[str]:
        return re.compile(rf"(?:{self.stem})\.(?P<rest>.+)")

    @cached_property
    def _block(self) -> re.Pattern[str]:
        return re.compile(rf"{self.stage}\.(?P<block>\d+)\.(?P<rest>.+)")

    @cached_property
    def _parts(self) -> tuple[tuple[re.Pattern[str], str], ...]:
        return tuple((re.compile(rf"{theirs}\."), f"{ours}.") for theirs, ours in self.parts)


FUSED = Layout(
    name="reparam",
    stem=r"stem",
    stage=r"stages\.(\d+)",
    first_stage=0,
    head=r"head",
    parts=(
        (r"branches(?:\.sum)?(?:\.kxk0(?:\.conv)?)?(?=\.(?:weight|bias)$)", "branches"),
        (r"attention", "attention"),
    ),
)
"""What :func:`reparam.fuse` makes of our networks: the convolution is where the kxk one was."""

LAYOUTS: tuple[Layout, ...] = (
    FUSED,
    Layout(
        name="official RepVGG",
        stem=r"stage0",
        stage=r"stage(\d+)",
        first_stage=1,
        head=r"linear",
        parts=(
            (r"rbr_dense", "branches.kxk0"),
            (r"rbr_1x1", "branches.pointwise"),
            (r"rbr_identity", "branches.identity"),
            (r"rbr_reparam", "branches"),
            (r"se\.down", "attention.reduce"),
            (r"se\.up", "attention.expand"),
        ),
    ),
    Layout(
        name="official MobileOne",
        stem=r"stage0",
        stage=r"stage(\d+)",
        first_stage=1,
        head=r"linear",
        parts=(
            (r"rbr_conv\.(\d+)", r"branches.kxk\1"),
            (r"rbr_scale", "branches.pointwise"),
            (r"rbr_skip", "branches.identity"),
            (r"reparam_conv", "branches"),
            (r"se\.reduce", "attention.reduce"),
            (r"se\.expand", "attention.expand"),
        ),
    ),
    Layout(
        name="timm",
        stem=r"stem",
        stage=r"stages\.(\d+)",
        first_stage=0,
        head=r"head\.fc",
        parts=(
            (r"conv_kxk\.(\d+)", r"branches.kxk\1"),
            (r"conv_kxk", "branches.kxk0"),
            (r"conv_(?:1x1|scale)", "branches.pointwise"),
            (r"identity", "branches.identity"),
            (r"reparam_conv", "branches"),
            (r"attn\.fc1", "attention.reduce"),
            (r"attn\.fc2", "attention.expand"),
        ),
    ),
    Layout(
        name="mmpretrain",
        stem=r"(?:backbone\.)?(?:stem|stage0)",
        stage=r"(?:backbone\.)?stage_?(\d+)",
        first_stage=1,
        head=r"head\.fc",
        parts=(
            (r"branch_conv_list\.(\d+)\.conv", r"branches.kxk\1.conv"),
            (r"branch_conv_list\.(\d+)\.norm", r"branches.kxk\1.bn"),
            (r"branch_3x3\.conv", "branches.kxk0.conv"),
            (r"branch_3x3\.norm", "branches.kxk0.bn"),
            (r"branch_(?:1x1|scale)\.conv", "branches.pointwise.conv"),
            (r"branch_(?:1x1|scale)\.norm", "branches.pointwise.bn"),
            (r"branch_norm", "branches.identity"),
            (r"branch_reparam", "branches"),
            (r"(?:se|se_layer)\.conv1\.conv", "attention.reduce"),
            (r"(?:se|se_layer)\.conv2\.conv", "attention.expand"),
        ),
    ),
)
"""The layouts that are read beside our own."""

PLAIN = "the model's own names"
"""What a report calls a file whose names need no translation."""

# The conv of a lone branch keeps its name when its BN is folded into it, so names like it tell
# nothing. One name of another branch or of a BN says "train", whatever else there is.
_TRAIN = re.compile(
    r"(?:.*\.)?branches\.(?:bn|(?:sum\.)?(?:kxk\d+\.bn|kxk[1-9]\d*|pointwise|identity))\..+"
)
_DEPLOY = re.compile(r"(?:.*\.)?branches\.(?:sum\.)?(?:kxk0\.(?:conv\.)?)?(?:weight|bias)")


def form_of(names: Iterable[str]) -> Form | None:
    """Say of which form our names are; None if there are no blocks of ours among them.

    >>> form_of(["stem.branches.kxk0.conv.weight", "stem.branches.kxk0.bn.weight"])
    'train'
    >>> form_of(["stem.branches.weight", "head.weight"])
    'deploy'
    """
    names = list(names)
    if any(map(_TRAIN.fullmatch, names)):
        return "train"
    return "deploy" if any(map(_DEPLOY.fullmatch, names)) else None
