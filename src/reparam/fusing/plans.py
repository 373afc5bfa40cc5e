"""Plan, apply, fuse: the public transformation."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from torch import nn
from torch.export import ExportedProgram

from reparam._support.arguments import FLAG, NONE, SHAPES, check_module, takes
from reparam.errors import TrainingModeError
from reparam.frontends.kinds import AnyBatchNorm
from reparam.frontends.torch.skeleton import Copier, unwrap
from reparam.fusing.asked import FIXED, OUTPUTS, without_fixed
from reparam.fusing.chosen import EVERYTHING, WHERE, Chosen
from reparam.fusing.collector import paused_collector
from reparam.fusing.compare import compare_runs
from reparam.fusing.cutting import CutOut, cut_out
from reparam.fusing.discover import Discovery, Probed, discover
from reparam.fusing.edit import CannotPlaceError, apply_regions
from reparam.fusing.fold import FoldedLayer, fold_all
from reparam.fusing.found import Found, complete
from reparam.fusing.table import Line, page
from reparam.planner import Candidate
from reparam.program import Affine, HostedInput, Node, Padded, Sum
from reparam.reasons import Refusal

if TYPE_CHECKING:
    from collections.abc import Collection

    from onnx import ModelProto

    from reparam.fusing.asked import Fixed, Outputs
    from reparam.fusing.chosen import Where
    from reparam.fusing.exported_plan import ExportedPlan
    from reparam.fusing.onnx_plan import OnnxPlan

__all__ = [
    "FoldWarning",
    "ModulePlan",
    "Plan",
    "Region",
    "describe",
    "fuse",
    "plan",
    "plan_but",
    "region_record",
]


class FoldWarning(UserWarning):
    """A region was left as it is because its folded layer did not agree with it."""


@dataclass(frozen=True, slots=True)
class Region:
    """Operations that one layer replaces.

    Attributes:
        where: Path of the module that holds them.
        what: What they are, in the field's terms.
        into: The layer that replaces them.
        layers_before: Operations executed now; one afterwards.
        macs_before: Multiply-adds per position of the region's input, now.
        macs_after: The same after folding; never more.
        stored_before: Numbers stored now: weights, biases, running statistics.
        stored_after: The same after folding; never more.
        parts: Places of the operations.
        probed: Whether the operator was read off the module's responses to impulses instead of its
            code: evidence, not proof.
        positions: Positions of the region's input in the example, batch included, where known: the
            multiply-adds are so many times those of one.
        bytes_each: Bytes of one stored number.

    """

    where: str
    what: str
    into: str
    layers_before: int
    macs_before: float
    macs_after: float
    stored_before: int
    stored_after: int
    parts: tuple[str, ...] = ()
    probed: bool = False
    positions: int | None = None
    bytes_each: int = 4


@dataclass(frozen=True, eq=False)
class Plan:
    """What folds in a model and what does not; ``print(plan)`` is a page for a person.

    Attributes:
        regions: What folds.
        refusals: What does not, and why.
        notes: What else there is to know of the model, a sentence each.

    """

    regions: tuple[Region, ...]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]

    def apply(self) -> Any:
        """Write the fused model; what was planned on is only read."""
        raise NotImplementedError

    def __str__(self) -> str:
        """A page of 80 columns: what is saved, what folds and what stays, alike places as one."""
        return self.text()

    def text(self, width: int = 80, *, every: bool = False) -> str:
        """Write the plan for a person.

        Args:
            width: Columns to fill.
            every: Tell each region and each refusal by itself, with its sizes.

        """
        return "\n".join(line.text for line in self.page(width, every=every))

    def page(self, width: int = 80, *, every: bool = False) -> list[Line]:
        """The lines of :meth:`text`, each with what it is; the notes come last."""
        notes = (Line(f"Note: {note}.") for note in self.notes)
        return [*page(self, width, every=every), *notes]


@dataclass(frozen=True, eq=False)
class ModulePlan(Plan):
    """The plan of a torch module."""

    _discovery: Discovery = field(repr=False)
    _training: frozenset[str] = field(default=frozenset(), repr=False)
    """Modules outside of the chosen part that are in training mode."""

    @paused_collector()
    def apply(self) -> nn.Module:
        """Write the fused model: new, in eval mode, sharing no storage with the original.

        What lies outside of the part chosen by ``where`` keeps its mode.

        Each folded layer is compared with the operations it replaces in float64, at the interior
        and the borders. One that does not agree is not used.

        Raises:
            VerificationError: The new model computes something else than the old one; nothing is
                returned. (This would be a defect of this package.)

        Warns:
            FoldWarning: A folded layer did not agree; its region was left as it is.

        """
        discovery = self._discovery
        folded: list[tuple[Found, FoldedLayer]] = []
        for found, layer in fold_all(discovery.regions):
            doubt = layer.doubt
            if doubt is None:
                folded.append((found, layer))
                continue
            warnings.warn(
                f"{found.block or 'the model'} is left as it is: {doubt}",
                FoldWarning,
                stacklevel=2,
            )
        together = set(complete((found for found, _ in folded), discovery.regions))
        fused = _place(discovery, [pair for pair in folded if pair[0] in together])
        if folded or discovery.probed:
            compare_runs(discovery, fused)
        for name, module in fused.named_modules():
            module.training = module.training or name in self._training
        return fused


def _place(discovery: Discovery, folded: list[tuple[Found, FoldedLayer]]) -> nn.Module:
    """Make the new model, without the blocks whose forward cannot be rewritten."""
    while True:
        try:
            return apply_regions(discovery, folded)
        except CannotPlaceError as error:
            others = [found for found, _ in folded if not _touches(found, error.block)]
            together = set(complete(others, discovery.regions))
            kept = [pair for pair in folded if pair[0] in together]
            if len(kept) == len(folded):
                raise
            folded = kept
            warnings.warn(
                f"{error.block or 'the model'} is left as it is: its forward cannot be rewritten "
                f"({error})",
                FoldWarning,
                stacklevel=3,
            )


def _touches(found: Found, block: str) -> bool:
    """Whether a region has operations in a module."""
    owners = {found.block, *(key.owner for key in found.keys)}
    return any(_is_within(owner, block) for owner in owners)


def _is_within(path: str, block: str) -> bool:
    return block in {"", path} or path.startswith(f"{block}.")


@overload
def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    probe: bool = False,
    where: Where | None = None,
    outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> ModulePlan: ...
@overload
def plan(
    model: ModelProto,
    *,
    where: Where | None = None,
    outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> OnnxPlan: ...
@overload
def plan(model: ExportedProgram, *, where: Where | None = None) -> ExportedPlan: ...
@takes(
    example_inputs=SHAPES | NONE,
    probe=FLAG,
    where=WHERE | NONE,
    outputs=OUTPUTS | NONE,
    fixed=FIXED | NONE,
)
@paused_collector()
def plan(
    model: Any,
    example_inputs: Any = None,
    *,
    probe: bool = False,
    where: Where | None = None,
    outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> Plan:
    """Read a model and say what folds in it; nothing is changed.

    Args:
        model: Any ``nn.Module`` in eval mode; or an ``onnx.ModelProto`` or a program of
            ``torch.export``, for which ``example_inputs`` and ``probe`` have no meaning.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments. With it,
            traces are compared with eager execution on real shapes.
        probe: Also identify affine modules that cannot be traced from their responses to impulses;
            evidence rather than proof, and marked as such.
        where: The part that may be folded; all else stays as it is, its mode too, so that it may
            go on training. A name of a module, which stands for all that it holds, or a pattern
            with ``*`` and ``?``; a class of modules; a function of name and module, which chooses
            all that lies in a module, or, where it is true for the model as a whole, leaves all
            that lies in a module for which it is not; or a list of these. In an ONNX model: names
            of operations or of what they return.
        outputs: The results to keep; what they do not need is left out. A position or a name in
            what the model returns, dots leading into what is nested (``"aux.0"``), which is then
            returned itself; or a list: of positions, for a tuple of these; else for a dict. In an
            ONNX model: names of outputs.
        fixed: Arguments that never change, by name, each with its value. The new model no longer
            takes them, has computed what follows from them, and folds what that allows.
            ``example_inputs`` are the others, or all, with the same values. In an ONNX model:
            inputs.

    Raises:
        TrainingModeError: What may be folded has batch normalisation and is in training mode.
        UnsupportedModelError: The model cannot be read (a ScriptModule, for example), or cannot be
            traced and so not be cut down to its ``outputs``.
        InputError: The model does not run on the example, nothing in it is chosen, or it has no
            such result or argument.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> [region.what for region in plan(net).regions]
    ['3x3 conv + batch norm']

    """
    if _is_onnx(model):
        from reparam.fusing.onnx_plan import plan_onnx

        return plan_onnx(model, where, outputs, fixed)
    if isinstance(model, ExportedProgram):
        from reparam.fusing.exported_plan import plan_exported

        return plan_exported(model, where, outputs, fixed)
    inner = check_module("model", unwrap(model, "model"))
    chosen = (
        EVERYTHING
        if where is None
        else Chosen(where, dict(inner.named_modules(remove_duplicate=False)))
    )
    _check_eval(inner, chosen)
    training = frozenset(name for name, module in inner.named_modules() if module.training)
    cuts = outputs is not None or fixed is not None
    if training and (cuts or where is not None):  # the other part is read as it will be used
        inner = Copier(lambda tensor: tensor, keep_hooks=True).copy(inner).eval()
    left = frozenset() if where is None else frozenset(n for n in training if n not in chosen)
    if fixed is not None and example_inputs is not None:
        example_inputs = without_fixed(inner, example_inputs, fixed)
    cut = cut_out(inner, example_inputs, outputs, fixed) if cuts else None
    inner = inner if cut is None else cut.model
    return _planned(discover(inner, example_inputs, probe=probe, chosen=chosen), left, cut)


def plan_but(kept: Collection[str], model: nn.Module, example_inputs: Any = None) -> ModulePlan:
    """Plan a model of any mode as it is in eval mode, and leave the modules of these names."""
    inner = Copier(lambda tensor: tensor, keep_hooks=True).copy(model).eval()
    return _planned(discover(inner, example_inputs, chosen=Chosen.but(kept)), frozenset())


def _planned(
    discovery: Discovery, training: frozenset[str], cut: CutOut | None = None
) -> ModulePlan:
    return ModulePlan(
        (
            *(_region(found) for found in discovery.regions),
            *(_probed_region(probed) for probed in discovery.probed),
        ),
        (*(cut.refusals if cut else ()), *discovery.refusals),
        cut.notes if cut else (),
        discovery,
        training,
    )


@overload
def fuse(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    probe: bool = False,
    where: Where | None = None,
    outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> nn.Module: ...
@overload
def fuse(
    model: ModelProto,
    *,
    where: Where | None = None,
    outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> ModelProto: ...
@overload
def fuse(model: ExportedProgram, *, where: Where | None = None) -> ExportedProgram: ...
def fuse(model: Any, example_inputs: Any = None, **how: Any) -> Any:
    """Fold everything in a model, or in a part of it, that folds exactly: ``plan(...).apply()``.

    A module makes a module, an ``onnx.ModelProto`` an ``onnx.ModelProto``, and an
    ``ExportedProgram`` an ``ExportedProgram``; the arguments are those of :func:`reparam.plan`.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> print(fuse(net))
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Identity()
      (2): ReLU()
    )

    """
    return plan(model, example_inputs, **how).apply()


def _is_onnx(model: object) -> bool:
    """Whether an object comes from the onnx package, which is not imported to find out."""
    return type(model).__module__.partition(".")[0] == "onnx"


def _check_eval(model: nn.Module, chosen: Chosen) -> None:
    for name, module in model.named_modules():
        if isinstance(module, AnyBatchNorm) and module.training and name in chosen:
            msg = (
                f"{name or type(model).__name__} is in training mode, where batch normalisation "
                f"uses the statistics of the batch; needed eval mode: call model.eval() first"
            )
            raise TrainingModeError(msg)


def _region(found: Found) -> Region:
    region = found.region
    return region_record(
        region,
        found.block or "the model",
        positions=found.lifted.positions(region.source, region.geometry.in_channels),
        bytes_each=found.like.element_size(),
    )


def region_record(
    region: Candidate, where: str, *, positions: int | None, bytes_each: int
) -> Region:
    """Describe a region of a program of any kind for a person."""
    before, after = region.cost, region.cost_after
    return Region(
        where=where,
        what=describe(region.nodes),
        into=_into(region),
        layers_before=before.layers,
        macs_before=float(before.macs),
        macs_after=float(after.macs),
        stored_before=before.stored,
        stored_after=after.stored,
        parts=tuple(dict.fromkeys(n.where for n in sorted(region.nodes, key=lambda n: n.order))),
        positions=positions,
        bytes_each=bytes_each,
    )


def _probed_region(probed: Probed) -> Region:
    geometry = probed.op.geometry
    return Region(
        where=probed.path or "the model",
        what=f"{probed.what} (probed, not traced)",
        into=str(geometry),
        layers_before=1,
        macs_before=0.0,
        macs_after=0.0,
        stored_before=geometry.parameters,
        stored_after=geometry.parameters,
        parts=(probed.path or "the model",),
        probed=True,
        bytes_each=probed.like.element_size(),
    )


def _into(region: Candidate) -> str:
    """Name the layer that takes the place of a region."""
    source = region.source
    if isinstance(source, Padded):
        return f"{region.geometry}, {source.mode} padding {source.pads[0][0]}"
    if isinstance(source, HostedInput):
        return next(n.what for n in region.nodes if source in n.inputs)
    return str(region.geometry)


def describe(nodes: frozenset[Node]) -> str:
    """Name the operations of a region, equal ones counted, layers first."""
    ordered = sorted(nodes, key=lambda n: (not n.is_mixing, n.order))
    names = Counter(_short(n) for n in ordered if isinstance(n, Affine | Sum))
    return " + ".join(
        name if times == 1 else f"{times} {name}{'s' if name in _COUNTED else ''}"
        for name, times in names.items()
    )


_COUNTED = {"batch norm", "add", "scale", "shift"}
"""Operations whose name takes an s; a layer's, such as 3x3 conv, reads well without."""


def _short(node: Node) -> str:
    if isinstance(node, Affine) and node.is_layer:
        if isinstance(node.inputs[0], HostedInput):
            return node.what
        size = "x".join(str(len(taps)) for taps in node.leaf.geometry.offsets)
        return f"{size} conv" if size else "linear"
    return node.what
