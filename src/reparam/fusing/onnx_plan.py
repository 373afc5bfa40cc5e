"""Plan and apply for ONNX models: the second skin of the same algebra and the same planner."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reparam.errors import VerificationError
from reparam.frontends.onnx.lift import OnnxLifted
from reparam.frontends.onnx.valid import check_readable, complaint
from reparam.fusing.fold import FoldedLayer, in_parallel
from reparam.fusing.onnx_cutting import asked_onnx, cut_onnx
from reparam.fusing.onnx_discover import OnnxDiscovery, OnnxFound, discover_onnx
from reparam.fusing.onnx_edit import write_model
from reparam.fusing.onnx_fold import fold_onnx
from reparam.fusing.plans import FoldWarning, Plan, Region, region_record
from reparam.reasons import Reason, Why

if TYPE_CHECKING:
    from onnx import ModelProto

    from reparam.fusing.asked import Fixed, Outputs
    from reparam.fusing.chosen import Where

__all__ = ["OnnxPlan", "plan_onnx"]


@dataclass(frozen=True, eq=False)
class OnnxPlan(Plan):
    """The plan of an ONNX model."""

    _discovery: OnnxDiscovery = field(repr=False)

    def apply(self) -> ModelProto:
        """Write the fused model: a new one, whose inputs, outputs and metadata have their names.

        Each folded layer is compared in float64, at the interior and the borders, with the
        operations that it replaces, as the reference evaluator of onnx runs them. One that does
        not agree is not used.

        Raises:
            VerificationError: The new model is not a valid one; nothing is returned. (This would
                be a defect of this package.)

        Warns:
            FoldWarning: A folded layer did not agree, or does not fit the type of the model; its
                region was left as it is.

        """
        lifted = self._discovery.lifted
        folded: list[tuple[OnnxFound, FoldedLayer]] = []
        dropped: list[OnnxFound] = []
        for found, layer in in_parallel(
            lambda f: _attempt(lifted, f),
            self._discovery.regions,
            size=lambda f: f.region.geometry.weights,
        ):
            why = layer if isinstance(layer, Reason) else layer.doubt
            if why is None and not isinstance(layer, Reason):
                folded.append((found, layer))
                continue
            dropped.append(found)
            warnings.warn(
                f"{found.anchor.where} is left as it is: {why}", FoldWarning, stacklevel=2
            )
        lifted.constants.forget()
        model = write_model(lifted, _without(folded, dropped))
        wrong = complaint(model)
        if wrong is not None:
            msg = (
                f"the fused model is not a valid one, and nothing is returned: {wrong}. Please "
                f"report this model: its graph was edited wrongly"
            )
            raise VerificationError(msg)
        return model


def plan_onnx(
    model: Any,
    where: Where | None = None,
    outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> OnnxPlan:
    """Read an ONNX model and say what folds in it; nothing is changed.

    Args:
        model: An ``onnx.ModelProto`` with its weights.
        where: Names of operations or of what they return, patterns of these, or a function of the
            name and the node; only what lies there folds.
        outputs: Names or positions of the outputs to keep.
        fixed: Values of inputs that never change, by name.

    Raises:
        InputError: It is no whole model, or of a version that the installed onnx does not know; or
            nothing in it is chosen, or it has no such output or input.

    """
    notes: list[str] = []
    if outputs is not None or fixed is not None:
        check_readable(model)
        model, notes = cut_onnx(asked_onnx(model, outputs, fixed), fixed or ())
    discovery = discover_onnx(model, where)
    discovery.lifted.constants.forget()
    return OnnxPlan(
        tuple(_region(discovery.lifted, one) for one in discovery.regions),
        discovery.refusals,
        (*notes, *discovery.notes),
        discovery,
    )


def _region(lifted: OnnxLifted, found: OnnxFound) -> Region:
    region, dtype = found.region, found.dtype(lifted)
    return region_record(
        region,
        found.anchor.where,
        positions=lifted.positions(region.source, region.geometry.in_channels),
        bytes_each=4 if dtype is None else dtype.itemsize,
    )


def _attempt(lifted: OnnxLifted, found: OnnxFound) -> FoldedLayer | Reason:
    """Fold a region, or say why its operations could not be run to compare with."""
    try:
        return fold_onnx(lifted, found)
    except Exception as error:  # noqa: BLE001 (the reference evaluator's operators raise anything)
        return Why.NOT_RUN(error=str(error))


def _without(
    folded: list[tuple[OnnxFound, FoldedLayer]], dropped: list[OnnxFound]
) -> list[tuple[OnnxFound, FoldedLayer]]:
    """Leave out regions that hold a part of what a dropped one holds the other part of."""
    while dropped:
        keys = dropped.pop().moved_keys
        clash = [p for p in folded if any(node.key in keys for node in p[0].region.nodes)]
        folded = [pair for pair in folded if pair not in clash]
        dropped += [found for found, _ in clash]
    return folded
