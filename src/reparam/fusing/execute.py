"""Run the operations of a region in float64 with torch's own functions: the reference of a fold.

Nothing here uses the algebra, so that an error there cannot hide. Weights are moved to float64
where they are used, a slice at a time, and never kept.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from reparam.algebra import flat_pads
from reparam.algebra.direct import Positions, at_positions, convolving
from reparam.frontends.kinds import AnyBatchNorm
from reparam.frontends.torch.builtin import is_builtin
from reparam.frontends.torch.lift import Lifted
from reparam.planner import Candidate
from reparam.program import Affine, Alias, HostedInput, Node, Padded, Sum

SLICE = 1 << 18
"""Weights that are handled in float64 at a time: 2 MB, which stays in a core's cache."""


def run_region(
    lifted: Lifted, region: Candidate, x: Tensor, at: Positions | None = None, *,
    done: dict[Node, Tensor] | None = None,
) -> tuple[Tensor, float]:  # fmt: skip
    """Run the region on a float64 input; see :func:`run_in_order`."""

    def run(node: Node, given: dict[Node, Tensor], at: Positions | None) -> Tensor:
        return run_node(lifted, node, given, at)

    return run_in_order(region, x, run, at, done=done)


Runner = Callable[[Node, dict[Node, Tensor], Positions | None], Tensor]
"""Runs one node on the values of its inputs, in float64, at all or some positions."""


def run_in_order(
    region: Candidate, x: Tensor, run: Runner, at: Positions | None = None, *,
    done: dict[Node, Tensor] | None = None,
) -> tuple[Tensor, float]:  # fmt: skip
    """Run the nodes of a region in order.

    Args:
        region: The region.
        x: The value of its source.
        run: Runs a node.
        at: The positions of the output that are wanted, or all of them. What acts on each position
            by itself runs on these alone.
        done: Nodes whose values are known already.

    Returns:
        Its output, and the largest absolute value of any intermediate result, which is the scale
        that rounding errors are to be compared with.

    """
    values: dict[Node, Tensor] = {region.source: x}
    if isinstance(region.source, Padded):
        values[region.source.inputs[0]] = x
        values[region.source] = pad_as(region.source, x)
    done = done or {}
    values |= done
    scale = _largest(x)
    ordered = in_order(region.nodes, set(values))
    whole = {*values, *_read_beyond_positions(ordered)}
    for node in ordered:
        here = None if node in whole else at
        if node not in done:
            given = {v: values[v] for v in node.inputs}
            if here is not None and _keeps_positions(node):
                given = {v: at_positions(y, here) if v in whole else y for v, y in given.items()}
                here = None
            passes = isinstance(node, Alias)
            values[node] = given[node.inputs[0]] if passes else run(node, given, here)
        scale = max(scale, _largest(values[node]))
    return values[region.output], scale


def _largest(value: Tensor) -> float:
    least, most = value.aminmax()  # one pass, where abs and max are two
    return max(-float(least), float(most))


def _read_beyond_positions(ordered: list[Node]) -> set[Node]:
    """The nodes of which others read more than the positions that they return."""
    found: set[Node] = set()
    for node in reversed(ordered):
        if node in found or not _keeps_positions(node):
            found.update(node.inputs)
    return found


def _keeps_positions(node: Node) -> bool:
    """Whether each position of a value is made of the same position of the inputs."""
    if not isinstance(node, Affine):
        return True
    return node.leaf.geometry.is_pointwise


def hosted_inputs(region: Candidate, sample: Tensor, run: Runner) -> dict[Node, Tensor]:
    """The images that the layers of a region read which make something else of their input.

    Args:
        region: A region on what such layers make of it.
        sample: The image.
        run: Runs a scale that was moved to behind what they make; here it stands before.

    Returns:
        By what they read in the region, the image that stands for it.

    """
    hosts: dict[Node, HostedInput] = {
        value: value
        for node in region.nodes
        for value in node.inputs
        if isinstance(value, HostedInput)
    }
    given: dict[Node, Tensor] = dict.fromkeys(hosts, sample)
    for node in in_order(region.nodes, set(hosts)):
        before = node.inputs[0]
        source = hosts.get(before)
        if source is None or source.spread is None:
            continue
        if isinstance(node, Affine) and node.moved is not None:
            hosts[node] = source
            channels = dict(zip(source.spread, node.moved.channels, strict=True))
            once = tuple(channels[k] for k in range(len(channels)))
            given[node] = run(
                replace(node, moved=replace(node.moved, channels=once)),
                {before: given[before]},
                None,
            )
    return given


def pad_as(source: Node, x: Tensor) -> Tensor:
    """Pad a value as the layers do that read it padded."""
    if not isinstance(source, Padded):
        return x
    return F.pad(x, flat_pads(source.pads), mode=source.mode)


def in_order(nodes: Iterable[Node], known: set[Node]) -> list[Node]:
    """Sort nodes so that each comes behind what it reads (moved ones keep their old order)."""
    waiting = sorted(nodes, key=lambda n: n.order)
    done, ordered = set(known), []
    while waiting:
        ready = next(n for n in waiting if all(v in done for v in n.inputs))
        waiting.remove(ready)
        done.add(ready)
        ordered.append(ready)
    return ordered


def run_node(
    lifted: Lifted, node: Node, values: dict[Node, Tensor], at: Positions | None
) -> Tensor:
    """Run one node in float64; see :data:`Runner`."""
    if isinstance(node, Affine) and node.moved is not None:
        return _run_moved(lifted, node, values[node.inputs[0]])
    if isinstance(node, Sum) and node.is_copy:
        return run_sum(node, values)
    origin = lifted.node_of(node)
    read = node.inputs[0]
    while read.is_copy:
        read = read.inputs[0]
    if isinstance(read, Padded):
        # The value is padded already: run the layer's convolution without its padding.
        return _run_conv(lifted.trace.module(origin), values[node.inputs[0]], 0, at)
    given = {lifted.value_of(v): values[v] for v in node.inputs}
    if at is not None and origin.op == "call_module":
        module = lifted.trace.module(origin)
        if is_plain_conv(module):
            return _run_conv(module, values[node.inputs[0]], module.padding, at)
    if given.keys() & lifted.stacks.keys():
        # Along an axis that rows of one dimension less have, too.
        stacked = torch.stack([values[v] for v in node.inputs])
        return stacked.mean(0) if origin.target in {"mean", torch.mean} else stacked.sum(0)
    result = _run_origin(lifted, origin, given)
    return result if at is None else at_positions(result, at)


def _run_moved(lifted: Lifted, node: Affine, x: Tensor) -> Tensor:
    origin = lifted.node_of(node)
    read = origin.args[0] if origin.args else origin.kwargs["input"]
    if not isinstance(read, fx.Node) or lifted.constants.is_tensor(read):
        read = next(n for n in origin.all_input_nodes if not lifted.constants.is_tensor(n))
    return run_moved(node, x, lambda value: _run_origin(lifted, origin, {read: value}))


def run_sum(node: Sum, values: dict[Node, Tensor]) -> Tensor:
    """Run a sum that was moved, which adds other values than it did."""
    terms = zip(node.coefficients, node.inputs, strict=True)
    return torch.stack([factor * values[term] for factor, term in terms]).sum(0)


def run_moved(node: Affine, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """Run a per-channel operation on the axis, and the channels, that it was written for."""
    assert node.axis is not None  # noqa: S101 (moved nodes know their axes)
    assert node.moved is not None  # noqa: S101 (the caller's condition)
    own_axis, width = node.moved.axis, node.moved.width
    assert own_axis is not None  # noqa: S101 (moved nodes know their axes)
    moved = x.movedim(node.axis, -1)
    flat = moved.reshape(-1, moved.shape[-1])

    def on_its_channels(rows: Tensor) -> Tensor:
        # (rows, channels) with as many trailing axes as the operation expects behind its channels
        return run(rows.reshape(*rows.shape, *(1,) * (-1 - own_axis))).reshape(rows.shape)

    # One channel of the operation may act on several of the value: these go into rows of their own.
    here = [k for k, channel in enumerate(node.moved.channels) if channel is not None]
    there = [channel for channel in node.moved.channels if channel is not None]
    turn, seen = [], dict.fromkeys(there, 0)
    for channel in there:
        turn.append(seen[channel])
        seen[channel] += 1
    wide = flat.new_zeros(max(turn) + 1, len(flat), width)
    wide[turn, :, there] = flat[:, here].mT
    changed = on_its_channels(wide.flatten(0, 1)).unflatten(0, wide.shape[:2])
    result = flat.clone()
    added = on_its_channels(flat.new_zeros(1, width))[0, there]
    if node.moved.inverse:
        result[:, here] /= on_its_channels(flat.new_ones(1, width))[0, there] - added
    else:
        result[:, here] = changed[turn, :, there].mT
        result[:, here] += (node.moved.shift - 1) * added
    return result.reshape(moved.shape).movedim(-1, node.axis)


def _run_origin(lifted: Lifted, origin: fx.Node, given: dict[fx.Node, Tensor]) -> Tensor:
    if origin.op == "call_module":
        first = origin.args[0] if origin.args else origin.kwargs["input"]
        assert isinstance(first, fx.Node)  # noqa: S101 (lifted modules read one tensor)
        return _run_module(lifted.trace.module(origin), given[first])

    def read(argument: fx.Node) -> Any:
        return given[argument] if argument in given else lifted.constants.value(argument)

    args, kwargs = fx.map_arg((origin.args, origin.kwargs), read)
    if origin.op == "call_method":
        method = _OUT_OF_PLACE.get(str(origin.target), str(origin.target))
        return getattr(args[0], method)(*args[1:], **kwargs)  # type: ignore[no-any-return]
    target: Any = _OUT_OF_PLACE_FUNCTIONS.get(origin.target, origin.target)
    if target is torch.einsum:
        return run_einsum(*args)
    return target(*args, **kwargs)  # type: ignore[no-any-return]


def run_einsum(equation: Any, *operands: Any) -> Tensor:
    """Run an einsum of images, or of rows that stand for the last axis of something larger."""
    values = list(operands[0] if isinstance(operands[0], list | tuple) else operands)
    terms = equation.replace(" ", "").split("->")[0].split(",")
    rank = max((v.dim() for v in values), default=0)
    for k, (value, term) in enumerate(zip(values, terms, strict=True)):
        if "." not in term:
            values[k] = value.reshape((1,) * (len(term) - value.dim()) + value.shape)
    result: Tensor = torch.einsum(equation, *values)
    return result.flatten(0, result.dim() - rank) if result.dim() > rank else result


def _run_module(module: Any, x: Tensor) -> Tensor:
    result: Tensor
    if nn.utils.parametrize.is_parametrized(module) or not is_builtin(module):
        result = copy.deepcopy(module).to(torch.float64)(x)
    elif isinstance(module, nn.Linear):
        result = by_slices(
            lambda w, b: F.linear(x, w, b), module.weight, module.bias, channel_axis=-1
        )
    elif is_plain_conv(module):
        result = _run_conv(module, x, module.padding)
    elif isinstance(module, AnyBatchNorm):
        numbers = (module.running_mean, module.running_var, module.weight, module.bias)
        mean, var, weight, bias = (None if t is None else t.to(torch.float64) for t in numbers)
        result = F.batch_norm(x, mean, var, weight, bias, eps=module.eps)
    elif next(module.parameters(), None) is not None:
        result = copy.deepcopy(module).to(torch.float64)(x)
    else:
        result = module(x)
    return result


def _run_conv(module: Any, x: Tensor, padding: Any, at: Positions | None = None) -> Tensor:
    if nn.utils.parametrize.is_parametrized(module):
        module = copy.deepcopy(module).to(torch.float64)
    spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    if padding == "same":
        pads = tuple((span // 2, span - span // 2) for span in spans)
    else:
        zeros = (0,) * len(spans) if padding in {0, "valid"} else padding
        pads = tuple((n, n) for n in zeros)
    run = convolving(x, module.kernel_size, module.stride, pads, module.dilation, module.groups, at)
    return by_slices(run, module.weight, module.bias, sliceable=module.groups == 1)


def is_plain_conv(module: nn.Module) -> bool:
    """Whether a module is an ordinary convolution with zero padding."""
    plain = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and is_builtin(module)
    return plain and module.padding_mode == "zeros"


def by_slices(
    function: Callable[[Tensor, Tensor | None], Tensor], weight: Tensor, bias: Tensor | None, *,
    sliceable: bool = True, channel_axis: int = 1,
) -> Tensor:  # fmt: skip
    """Apply a layer a slice of output channels at a time, each slice in float64."""
    per_row = max(1, weight[0].numel())
    step = max(1, SLICE // per_row) if sliceable else weight.shape[0]
    parts = [
        function(
            weight[k : k + step].to(torch.float64),
            None if bias is None else bias[k : k + step].to(torch.float64),
        )
        for k in range(0, weight.shape[0], step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, channel_axis)


_OUT_OF_PLACE = {
    "add_": "add", "sub_": "sub", "mul_": "mul", "div_": "div", "neg_": "neg",
    "__iadd__": "__add__",
}  # fmt: skip

_OUT_OF_PLACE_FUNCTIONS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
