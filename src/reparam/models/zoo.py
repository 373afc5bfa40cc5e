"""The named members of both families, as a table of specs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, cast

from reparam.errors import InputError
from reparam.models.nets import MobileOne, RepVGG, StagedNet
from reparam.models.specs import BRANCHES, BranchSpec, MobileOneSpec, NetSpec, RepVGGSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

Form: TypeAlias = Literal["train", "deploy"]

_A, _B = (2, 4, 14, 1), (4, 6, 16, 1)

SPECS: Mapping[str, NetSpec] = MappingProxyType(
    {
        "repvgg_a0": RepVGGSpec.scaled(_A, a=0.75, b=2.5),
        "repvgg_a1": RepVGGSpec.scaled(_A, a=1, b=2.5),
        "repvgg_a2": RepVGGSpec.scaled(_A, a=1.5, b=2.75),
        "repvgg_b0": RepVGGSpec.scaled(_B, a=1, b=2.5),
        "repvgg_b1": RepVGGSpec.scaled(_B, a=2, b=4),
        "repvgg_b1g2": RepVGGSpec.scaled(_B, a=2, b=4, groups=2),
        "repvgg_b1g4": RepVGGSpec.scaled(_B, a=2, b=4, groups=4),
        "repvgg_b2": RepVGGSpec.scaled(_B, a=2.5, b=5),
        "repvgg_b2g2": RepVGGSpec.scaled(_B, a=2.5, b=5, groups=2),
        "repvgg_b2g4": RepVGGSpec.scaled(_B, a=2.5, b=5, groups=4),
        "repvgg_b3": RepVGGSpec.scaled(_B, a=3, b=5),
        "repvgg_b3g2": RepVGGSpec.scaled(_B, a=3, b=5, groups=2),
        "repvgg_b3g4": RepVGGSpec.scaled(_B, a=3, b=5, groups=4),
        "repvgg_d2se": RepVGGSpec.scaled((8, 14, 24, 1), a=2.5, b=5, reduction=16),
        "mobileone_s0": MobileOneSpec.scaled((0.75, 1, 1, 2), kernels=4),
        "mobileone_s1": MobileOneSpec.scaled((1.5, 1.5, 2, 2.5)),
        "mobileone_s2": MobileOneSpec.scaled((1.5, 2, 2.5, 4)),
        "mobileone_s3": MobileOneSpec.scaled((2, 2.5, 3, 4)),
        "mobileone_s4": MobileOneSpec.scaled((3, 3.5, 3.5, 4), attentive=(0, 0, 5, 1)),
    }
)
"""The spec of every named network, in the order of the papers."""

Net_co = TypeVar("Net_co", bound=StagedNet, covariant=True)


class Factory(Generic[Net_co]):
    """The function that builds one named network; all of them take the same arguments.

    >>> from reparam.models import repvgg_a0
    >>> repvgg_a0(num_classes=10).head.out_features
    10
    """

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.__qualname__ = name
        self.__doc__ = f"Build {name}; see :func:`reparam.models.create` for the arguments."

    def __call__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        form: Form = "train",
        **changes: Any,
    ) -> Net_co:
        """Build the network; see :func:`create` for the arguments and errors."""
        net = create(
            self.__name__, num_classes=num_classes, in_channels=in_channels, form=form, **changes
        )
        return cast("Net_co", net)

    def __repr__(self) -> str:
        return f"reparam.models.{self.__name__}"


def names() -> tuple[str, ...]:
    """Return the names of all networks of this package.

    >>> names()[0], len(names())
    ('repvgg_a0', 19)
    """
    return tuple(SPECS)


def create(
    name: str,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    form: Form = "train",
    **changes: Any,
) -> StagedNet:
    """Build a network of this package by name, with fresh weights and in training mode.

    Args:
        name: One of :func:`names`; the papers' spelling (``"RepVGG-A0"``) is understood too.
        num_classes: Number of classes; 0 for pooled features instead of logits.
        in_channels: Channels of the images.
        form: ``"train"`` for the multi-branch network; ``"deploy"`` for the one with a single
            convolution a block, into which weights that are already folded can be loaded.
        **changes: Fields of the network's spec (:class:`RepVGGSpec` or :class:`MobileOneSpec`) to
            set otherwise. ``branches`` may be a :class:`BranchSpec` or a name in
            :data:`reparam.models.BRANCHES`.

    Returns:
        A :class:`RepVGG` or a :class:`MobileOne`.

    Raises:
        InputError: The name, the form or a field is unknown, or the values do not go together.

    RepVGG-B0 as in the paper's ablation, with the identity branch as the only companion:

    >>> net = create("repvgg_b0", branches="identity", num_classes=10)
    >>> [name for name, _ in net.stages[0][1].branches.named_children()]
    ['kxk0', 'identity']
    """
    key = canonical_name(name)
    if key not in SPECS:
        raise InputError(
            f"there is no network {name!r}{suggestion(key, names())}; "
            f"reparam.models.names() lists all {len(SPECS)}"
        )
    if form not in ("train", "deploy"):
        raise InputError(f"form is {form!r} and must be 'train' or 'deploy'")
    if form == "deploy" and "branches" in changes:
        raise InputError(
            "branches was given together with form='deploy', which has a single convolution a "
            "block; leave one of the two out"
        )
    spec = _changed(key, SPECS[key], changes)
    return build(spec if form == "train" else spec.deploy(), num_classes, in_channels)


def build(spec: NetSpec, num_classes: int = 1000, in_channels: int = 3) -> StagedNet:
    """Build the network of a spec, as the class that belongs to it.

    Raises:
        InputError: The spec is of neither family, or cannot be built.
    """
    if isinstance(spec, RepVGGSpec):
        return RepVGG(spec, num_classes, in_channels)
    if isinstance(spec, MobileOneSpec):
        return MobileOne(spec, num_classes, in_channels)
    raise InputError(f"a {type(spec).__name__} is neither a RepVGGSpec nor a MobileOneSpec")


def canonical_name(name: str) -> str:
    """Return a name in the spelling of :func:`names`.

    >>> canonical_name("RepVGG-B1g4")
    'repvgg_b1g4'
    """
    return name.strip().lower().replace("-", "_")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``", did you mean ...?"`` with the known names close to ``name``, or nothing.

    >>> suggestion("repvg_a0", ["repvgg_a0", "mobileone_s0"])
    ' (did you mean repvgg_a0?)'
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _changed(name: str, spec: NetSpec, changes: Mapping[str, Any]) -> NetSpec:
    known = [field.name for field in fields(spec)]
    for field in changes:
        if field not in known:
            raise InputError(
                f"{name} has no option {field!r}{suggestion(field, known)}; "
                f"its options are {', '.join(known)}"
            )
    branches = changes.get("branches", spec.branches)
    return replace(spec, **{**changes, "branches": branch_spec(branches)})


def branch_spec(choice: str | BranchSpec) -> BranchSpec:
    """Return the branches that a name stands for, and a spec as it is."""
    if isinstance(choice, BranchSpec):
        return choice
    if choice not in BRANCHES:
        raise InputError(
            f"there is no choice of branches {choice!r}{suggestion(choice, BRANCHES)}; "
            f"there are {', '.join(BRANCHES)}"
        )
    return BRANCHES[choice]
