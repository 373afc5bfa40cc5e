"""The equivalent kernel of an affine block, differentiable, in any form of the block."""

from __future__ import annotations

from torch import nn

from reparam._support.arguments import MODULE, takes
from reparam.algebra import AffineConv, evaluate
from reparam.errors import InexactError
from reparam.frontends.torch.rules import lift
from reparam.frontends.torch.skeleton import shared_copy, unwrap
from reparam.frontends.torch.trace import TraceFailure, trace
from reparam.planner.candidates import Candidates
from reparam.program import Opaque, Program, ShapeOf


@takes(block=MODULE)
def operator(block: nn.Module) -> AffineConv:
    r"""Return the one convolution that an affine block computes.

    ``operator(block)(x) = block(x)`` in eval mode. The kernel is float64 and differentiable in the
    parameters of the block, so it can be regularised while training (RepVGG, arXiv 2101.03697, the
    custom L2 of its official code); batch normalisation counts with its running statistics, in
    training mode too.

    Args:
        block: A module with one input and one output that is affine: convolutions, BN, pooling,
            constant scales and sums of such branches. No activation.

    Returns:
        The operator; ``.kernel`` has shape ``(O, I / groups, *kernel_size)``, ``.bias`` ``(O,)``.

    Raises:
        InexactError: The block is not affine or not one convolution; the message says why.

    >>> import torch
    >>> from torch import nn
    >>> block = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
    >>> op = operator(block)
    >>> op.kernel.pow(2).sum().backward()
    >>> block[0].weight.grad.shape
    torch.Size([8, 4, 3, 3])

    """
    inner = unwrap(block, "block")
    name = type(inner).__name__
    root = nn.Sequential(inner)  # so that a single layer is traced as a call, too
    root.training = inner.training  # its own mode alone: `train` would write into the block
    try:
        lifted = lift(trace(shared_copy(root)), training=True, vectors=True)
    except TraceFailure as failure:
        msg = (
            f"{name} cannot be traced ({failure}); needed a block whose forward torch.fx can trace"
        )
        raise InexactError(msg) from failure
    graph = lifted.trace.graph
    inputs = [n for n in lifted.program.nodes if lifted.node_of(n).op == "placeholder"]
    outputs = graph.output_node().all_input_nodes
    ends = [n for n in lifted.program.nodes if n.origin in outputs and not isinstance(n, ShapeOf)]
    if len(inputs) != 1 or len(ends) != 1:
        msg = f"{name} has {len(inputs)} inputs and {len(ends)} outputs; needed one of each"
        raise InexactError(msg)
    found = Candidates(Program(lifted.program.nodes))
    for candidate in found.found[ends[0]]:
        if candidate.source is inputs[0] and candidate.expression is not None:
            return evaluate(candidate.expression)
    opaque = [n for n in lifted.program.nodes if isinstance(n, Opaque) and n not in inputs]
    reasons = [str(r) for n in lifted.program.nodes for r in found.given_up.get(n, [])]
    reasons += [f"{n.what} at {n.where}: {n.reason or 'is not affine'}" for n in opaque]
    why = "; ".join(reasons) or "nothing in it is affine"
    msg = f"{name} is not one convolution of its input: {why}"
    raise InexactError(msg)
