"""What the operations of ONNX are, for the planner: a table from operations to rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.frontends.onnx.lift import OnnxLifted, OnnxLifter, Rule
from reparam.frontends.onnx.rules_layers import (
    batch_norm,
    conv,
    conv_transpose,
    einsum,
    gemm,
    matmul,
)
from reparam.frontends.onnx.rules_layouts import (
    max_pool,
    reshape,
    resize,
    spatial_maximum,
    spatial_mean,
    transpose,
)
from reparam.frontends.onnx.rules_moves import (
    average_pool,
    cast,
    concat,
    dropout,
    elementwise,
    expand,
    pad,
    pass_on,
    slice_,
)
from reparam.frontends.onnx.rules_parts import depth_to_space, gather, space_to_depth, split, tile
from reparam.frontends.onnx.rules_scales import add, add_all, divide, multiply, negate, subtract
from reparam.frontends.onnx.rules_stacks import total

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["lift_onnx", "rule_for"]


def lift_onnx(model: ModelProto, opset: int) -> OnnxLifted:
    """Lift the main graph of a model whose default domain has the given version."""
    return OnnxLifter(model, opset).run(rule_for)


def rule_for(proto: NodeProto) -> Rule | None:
    """Find the rule of an operation of the default domain, or None where there is none."""
    return _RULES.get(proto.op_type)


_RULES: dict[str, Rule] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": einsum,
    "BatchNormalization": batch_norm,
    "Add": add,
    "Sum": add_all,
    "Sub": subtract,
    "Mul": multiply,
    "Div": divide,
    "Neg": negate,
    "Identity": pass_on,
    "Dropout": dropout,
    "Cast": cast,
    "AveragePool": average_pool,
    "GlobalAveragePool": spatial_mean,
    "ReduceMean": spatial_mean,
    "ReduceSum": total,
    "ReduceMax": spatial_maximum,
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), max_pool),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "Split": split,
    "Gather": gather,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Tile": tile,
    "Expand": expand,
    "Pad": pad,
    "Slice": slice_,
    "Concat": concat,
    "Transpose": transpose,
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), reshape),
    **dict.fromkeys(
        (
            "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "Swish", "Sigmoid", "Tanh",
            "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Clip", "Erf", "ThresholdedRelu",
            "Abs", "Exp", "Sqrt",
        ),
        elementwise,
    ),
}  # fmt: skip
