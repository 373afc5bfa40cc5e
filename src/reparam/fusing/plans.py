"""Plan, apply, fuse: the public transformation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import nn
from torch.export import ExportedProgram

from reparam._support.arguments import FLAG, NONE, SHAPES, check_module, takes
from reparam.errors import InputError, TrainingModeError
from reparam.frontends.kinds import AnyBatchNorm
from reparam.frontends.onnx.valid import check_readable
from reparam.frontends.torch.copying import Copier
from reparam.frontends.torch.skeleton import unwrap
from reparam.fusing.asked import FIXED, OUTPUTS, without_fixed
from reparam.fusing.chosen import EVERYTHING, WHERE, Chosen
from reparam.fusing.cutting import cut_out
from reparam.fusing.discover import discover
from reparam.fusing.driver import Discovery, Plan
from reparam.fusing.exported import ExportedDiscovery
from reparam.fusing.onnx_cutting import asked_onnx, cut_onnx
from reparam.fusing.onnx_graphs import OnnxDiscovery
from reparam.fusing.undisturbed import undisturbed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from onnx import ModelProto

    from reparam.fusing.asked import Fixed, Outputs
    from reparam.fusing.chosen import Where
    from reparam.reasons import Refusal

Model = TypeVar("Model")


@overload
def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    probe: bool = False,
    where: Where | None = None,
    outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> Plan[nn.Module]: ...
@overload
def plan(
    model: ModelProto,
    *,
    where: Where | None = None,
    outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> Plan[ModelProto]: ...
@overload
def plan(model: ExportedProgram, *, where: Where | None = None) -> Plan[ExportedProgram]: ...
@takes(
    example_inputs=SHAPES | NONE,
    probe=FLAG,
    where=WHERE | NONE,
    outputs=OUTPUTS | NONE,
    fixed=FIXED | NONE,
)
@undisturbed()
def plan(
    model: Any,
    example_inputs: Any = None,
    *,
    probe: bool = False,
    where: Where | None = None,
    outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> Plan[Any]:
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
        return _plan_onnx(model, where, outputs, fixed)
    if isinstance(model, ExportedProgram):
        _check_whole(outputs, fixed)
        return _planned(ExportedDiscovery(model, where))
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
    found = discover(inner, example_inputs, probe=probe, chosen=chosen)
    found.training = left
    return _planned(found, cut.refusals if cut else (), cut.notes if cut else ())


def plan_but(
    kept: Collection[str], model: nn.Module, example_inputs: Any = None
) -> Plan[nn.Module]:
    """Plan a model of any mode as it is in eval mode, and leave the modules of these names.

    What folds must not depend on its numbers, which others take the place of: factors of norms are
    taken for ones, which pass a maximum and can be divided by.
    """
    ones: dict[int, Any] = {
        id(norm.weight): nn.Parameter(torch.ones_like(norm.weight))
        for norm in model.modules()
        if isinstance(norm, AnyBatchNorm) and type(norm.weight) is nn.Parameter
    }
    inner = Copier(lambda tensor: tensor, keep_hooks=True, memo=ones).copy(model).eval()
    return _planned(discover(inner, example_inputs, chosen=Chosen.but(kept)))


def _plan_onnx(
    model: Any, where: Where | None, outputs: Outputs | None, fixed: Fixed | None
) -> Plan[ModelProto]:
    notes: list[str] = []
    if outputs is not None or fixed is not None:
        check_readable(model)
        model, notes = cut_onnx(asked_onnx(model, outputs, fixed), fixed or ())
    return _planned(OnnxDiscovery(model, where), notes=notes)


def _check_whole(outputs: Outputs | None, fixed: Fixed | None) -> None:
    if outputs is not None or fixed is not None:
        asked = "outputs" if fixed is None else "fixed"
        raise InputError(
            f"{asked}= is for modules and ONNX files, and this is an exported program; fold and "
            f"cut the module, and export what comes out"
        )


def _planned(
    discovery: Discovery[Model, Any], refusals: Iterable[Refusal] = (), notes: Iterable[str] = ()
) -> Plan[Model]:
    return Plan(
        tuple(discovery.records()),
        (*refusals, *discovery.refusals),
        (*notes, *discovery.notes),
        discovery,
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
@undisturbed()
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
