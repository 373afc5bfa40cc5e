"""What the operations of torch are, for the planner: a table from operations to rules."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from reparam.algebra import AffineConv
from reparam.frontends.hosted import is_hosted
from reparam.frontends.kinds import AnyBatchNorm
from reparam.frontends.torch.arguments import CONVOLUTIONS, TRANSPOSED
from reparam.frontends.torch.builtin import is_builtin
from reparam.frontends.torch.lift import Lifted, Lifter, Rule
from reparam.frontends.torch.rules_layers import (
    batch_norm_function,
    batch_norm_module,
    conv_function,
    conv_module,
    conv_transpose_function,
    conv_transpose_module,
    hosted_module,
    linear_function,
    linear_module,
    probed_module,
)
from reparam.frontends.torch.rules_layouts import (
    flatten,
    flip,
    global_pool_function,
    global_pool_module,
    interpolate,
    largest_along,
    max_pool_function,
    max_pool_module,
    mean,
    permute,
    repad_module,
    reshape,
    roll,
    squeeze,
    transpose,
    unflatten,
    unsqueeze,
)
from reparam.frontends.torch.rules_moves import (
    average_pool_function,
    average_pool_module,
    concat,
    dropout_function,
    dropout_module,
    elementwise,
    item,
    pad_function,
    pass_on,
    shape_of_another,
    zero_pad_module,
)
from reparam.frontends.torch.rules_parts import (
    channel_shuffle,
    chunk,
    pixel_shuffle,
    pixel_unshuffle,
    repeat,
    repeat_interleave,
    split,
)
from reparam.frontends.torch.rules_products import einsum, matmul
from reparam.frontends.torch.rules_scales import (
    add,
    divide,
    lerp,
    multiply,
    negate,
    reverse_subtract,
    subtract,
)
from reparam.frontends.torch.rules_stacks import stack, total
from reparam.frontends.torch.trace import Trace

__all__ = ["function_called", "has_method", "lift", "rule_for"]


def lift(
    trace: Trace,
    *,
    training: bool = False,
    vectors: bool = False,
    probed: dict[str, AffineConv] | None = None,
) -> Lifted:
    """Lift a trace by the rules for its operations.

    Args:
        trace: What was traced.
        training: Read the running statistics of BN layers in training mode too.
        probed: Operators of modules that could not be traced, by path.
        vectors: Take the outputs of linear layers for ``(N, C)`` where nothing says otherwise.

    """
    return Lifter(trace, training=training, vectors=vectors, probed=probed or {}).run(rule_for)


def function_called(name: str) -> Callable[..., Any] | None:
    """The function of torch of that name that a rule reads, or None."""
    found = (getattr(space, name, None) for space in (torch.nn.functional, torch))
    return next((function for function in found if function in _FUNCTIONS), None)


def has_method(name: str) -> bool:
    """Whether a rule reads the method of tensors of that name."""
    return name in _METHODS


def rule_for(lifter: Lifter, node: fx.Node) -> Rule | None:
    """Find the rule of an operation, or None where there is none."""
    rule = _rule_of(lifter, node)
    if rule is None or rule in _TAKES_ANY_ARGUMENTS:
        return rule
    first = node.args[0] if node.args else node.kwargs.get("input")
    return rule if lifter.is_value(first) else None


_TAKES_ANY_ARGUMENTS = frozenset({
    add, subtract, reverse_subtract, multiply, divide, concat, stack, shape_of_another, einsum,
    matmul,
})  # fmt: skip
"""Rules that look at their arguments themselves; the others expect a value as the first one."""


def _rule_of(lifter: Lifter, node: fx.Node) -> Rule | None:
    if node.op == "call_module":
        module = lifter.module(node)
        if lifter.trace.keys[node].target in lifter.probed:
            return probed_module
        if not is_builtin(module):
            return hosted_module if is_hosted(module) else None
        return next((rule for kinds, rule in _MODULES if isinstance(module, kinds)), None)
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target)
    if node.op == "call_method":
        return _METHODS.get(str(node.target))
    return None


_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.ELU, nn.CELU, nn.SELU, nn.Softplus,
)  # fmt: skip

_MODULES: list[tuple[tuple[type[nn.Module], ...], Rule]] = [
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), conv_module),
    ((nn.Linear,), linear_module),
    ((AnyBatchNorm,), batch_norm_module),
    ((nn.Identity,), pass_on),
    (
        (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
         nn.FeatureAlphaDropout),
        dropout_module,
    ),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), average_pool_module),
    (
        (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d,
         nn.ConstantPad3d),
        zero_pad_module,
    ),
    (
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        global_pool_module,
    ),
    ((nn.Flatten,), flatten),
    ((nn.Unflatten,), unflatten),
    ((nn.Upsample,), interpolate),
    (
        (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
         nn.AdaptiveMaxPool3d),
        max_pool_module,
    ),
    (
        (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d,
         nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d,
         nn.CircularPad3d),
        repad_module,
    ),
    ((nn.PixelShuffle,), pixel_shuffle),
    ((nn.PixelUnshuffle,), pixel_unshuffle),
    ((nn.ChannelShuffle,), channel_shuffle),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), conv_transpose_module),
    (_ACTIVATIONS, elementwise),
]  # fmt: skip

_FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys(CONVOLUTIONS, conv_function),
    **dict.fromkeys(TRANSPOSED, conv_transpose_function),
    F.linear: linear_function,
    F.batch_norm: batch_norm_function,
    **dict.fromkeys((operator.add, operator.iadd, torch.add), add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, torch.subtract), subtract),
    torch.rsub: reverse_subtract,
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply), multiply),
    **dict.fromkeys(
        (operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide), divide
    ),
    **dict.fromkeys((operator.neg, torch.neg, torch.negative), negate),
    F.avg_pool1d: average_pool_function(1),
    F.avg_pool2d: average_pool_function(2),
    F.avg_pool3d: average_pool_function(3),
    **dict.fromkeys(
        (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
        global_pool_function,
    ),
    **dict.fromkeys(
        (F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d,
         F.adaptive_max_pool3d),
        max_pool_function,
    ),
    F.interpolate: interpolate,
    torch.amax: largest_along,
    torch.chunk: chunk,
    torch.split: split,
    torch.pixel_shuffle: pixel_shuffle,
    torch.pixel_unshuffle: pixel_unshuffle,
    torch.channel_shuffle: channel_shuffle,
    torch.tile: repeat,
    torch.repeat_interleave: repeat_interleave,
    torch.roll: roll,
    torch.flip: flip,
    torch.unflatten: unflatten,
    torch.unsqueeze: unsqueeze,
    torch.squeeze: squeeze,
    torch.mean: mean,
    torch.sum: total,
    torch.lerp: lerp,
    torch.einsum: einsum,
    **dict.fromkeys((operator.matmul, torch.matmul), matmul),
    torch.reshape: reshape,
    F.pad: pad_function,
    F.dropout: dropout_function,
    torch.dropout: dropout_function,
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), concat),
    torch.stack: stack,
    torch.flatten: flatten,
    operator.getitem: item,
    torch.permute: permute,
    torch.transpose: transpose,
    **dict.fromkeys(
        (F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.leaky_relu, F.sigmoid, torch.relu,
         torch.sigmoid, torch.tanh, F.mish, F.elu),
        elementwise,
    ),
}  # fmt: skip

_METHODS: dict[str, Rule] = {
    **dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), add),
    **dict.fromkeys(("sub", "sub_", "subtract"), subtract),
    **dict.fromkeys(("mul", "mul_", "multiply"), multiply),
    **dict.fromkeys(("div", "div_", "divide", "true_divide"), divide),
    **dict.fromkeys(("neg", "neg_", "negative"), negate),
    **dict.fromkeys(("clone", "contiguous"), pass_on),
    "reshape_as": shape_of_another,
    "view_as": shape_of_another,
    "flatten": flatten,
    "mean": mean,
    "sum": total,
    "lerp": lerp,
    **dict.fromkeys(("matmul", "__matmul__"), matmul),
    "amax": largest_along,
    "chunk": chunk,
    "split": split,
    **dict.fromkeys(("repeat", "tile"), repeat),
    "repeat_interleave": repeat_interleave,
    "roll": roll,
    "flip": flip,
    "unflatten": unflatten,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    **dict.fromkeys(("reshape", "view"), reshape),
    "permute": permute,
    "transpose": transpose,
    **dict.fromkeys(("relu", "relu_", "sigmoid", "tanh"), elementwise),
}
