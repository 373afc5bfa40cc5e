"""What the operations of ONNX are, for the planner: the rules of ``rules_*.py``, see ``table``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.frontends.onnx import (  # noqa: F401 (each enters its rules)
    rules_layers,
    rules_layouts,
    rules_moves,
    rules_parts,
    rules_scales,
    rules_stacks,
)
from reparam.frontends.onnx.lift import OnnxLifted, OnnxLifter, Rule
from reparam.frontends.onnx.table import RULES

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["lift_onnx", "rule_for"]


def lift_onnx(model: ModelProto, opset: int) -> OnnxLifted:
    """Lift the main graph of a model whose default domain has the given version."""
    return OnnxLifter(model, opset).run(rule_for)


def rule_for(proto: NodeProto) -> Rule | None:
    """Find the rule of an operation of the default domain, or None where there is none."""
    return RULES.get(proto.op_type)
