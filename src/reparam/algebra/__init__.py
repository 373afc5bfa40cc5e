"""What a convolution is: an immutable operator with ``+`` (parallel) and ``@`` (one after another).

Tensors in, tensors out; this room knows no module and no graph.
"""

from __future__ import annotations

from reparam.algebra.affine_conv import AffineConv
from reparam.algebra.builders import (
    average_pool,
    average_pool_geometry,
    batch_norm,
    conv,
    conv_geometry,
    identity,
    linear,
    pad_geometry,
    per_dim,
    scale,
    zero_pad,
)
from reparam.algebra.direct import flat_pads
from reparam.algebra.expression import (
    Composition,
    Expression,
    Leaf,
    Rows,
    Sum,
    constant_scale,
    evaluate,
    pad_leaf,
    picked_leaf,
    prepared,
    rerouted,
    shift_before,
)
from reparam.algebra.geometry import Geometry, compose, parallel
from reparam.algebra.lowering import LayerArguments, layer_arguments, lower

__all__ = [
    "AffineConv",
    "Composition",
    "Expression",
    "Geometry",
    "LayerArguments",
    "Leaf",
    "Rows",
    "Sum",
    "average_pool",
    "average_pool_geometry",
    "batch_norm",
    "compose",
    "constant_scale",
    "conv",
    "conv_geometry",
    "evaluate",
    "flat_pads",
    "identity",
    "layer_arguments",
    "linear",
    "lower",
    "pad_geometry",
    "pad_leaf",
    "parallel",
    "per_dim",
    "picked_leaf",
    "prepared",
    "rerouted",
    "scale",
    "shift_before",
    "zero_pad",
]
