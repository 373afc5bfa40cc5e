"""The invariant of a plan: each norm, scale and branch is in a region or in exactly one refusal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from reparam.frontends.torch.trace import Key
from reparam.program import Affine, Alias, Layout, Node, Opaque, Program, Sum

if TYPE_CHECKING:
    from collections.abc import Hashable

    from reparam.frontends.onnx.lift import OnnxLifted
    from reparam.frontends.torch.lift import Lifted
    from reparam.fusing import Plan

__all__ = ["unaccounted", "unaccounted_norms"]

NORMS = (nn.modules.batchnorm._NormBase,)


def unaccounted_norms(model: nn.Module, plan: Plan) -> list[str]:
    """Norm modules that the plan names twice, or not at all."""
    folded = {part for region in plan.regions for part in region.parts}
    refused = Counter(refusal.where for refusal in plan.refusals)
    wrong = []
    for path, module in model.named_modules():
        if isinstance(module, NORMS):
            probed = any(r.probed and path.startswith(f"{r.where}.") for r in plan.regions)
            if (path in folded or probed) + refused[path] != 1:
                wrong.append(f"{path}: folded {path in folded}, refused {refused[path]} times")
    return wrong


def unaccounted(plan: Plan, lifted: Lifted | OnnxLifted) -> list[str]:
    """Norms, scales and branches of a program, not moved yet, that are in both or in neither."""
    folded = {name(n) for found in plan._discovery.regions for n in found.region.gone}
    # Calls of one module may be read in different ways, and be called differently by that.
    modules = {node.where for node in lifted.program.nodes if is_module(node)}

    def place(where: str, what: str) -> tuple[str, str]:
        return where, "" if where in modules else what

    places = {name(node): place(node.where, node.what) for node in items(lifted.program)}
    left = Counter(place for key, place in places.items() if key not in folded)
    told = Counter(place(r.where, r.what) for r in plan.refusals)
    # May be told of, too, and have the same name: what is not read at all, and, as a part of what
    # was given up, sums and single numbers, which bring no stored ones in.
    unread = [
        n
        for n in lifted.program.nodes
        if (isinstance(n, Opaque | Layout) and n.reason is not None) or isinstance(n, Sum | Affine)
    ]
    others = Counter(
        {name(n): place(n.where, n.what) for n in unread if name(n) not in places}.values()
    )
    return [
        f"{p}: {left[p]} left, {told[p]} refused"
        for p in set(places.values())
        if not left[p] <= told[p] <= left[p] + others[p]
    ]


def name(node: Node) -> Hashable:
    """What makes operations one of the model: a module is one however often it is called."""
    key = node.key
    return key.target if is_module(node) else key


def is_module(node: Node) -> bool:
    return isinstance(node.key, Key) and node.key.is_module


def items(program: Program) -> Iterator[Node]:
    """The norms and scales with numbers of their own, and the sums of branches with numbers."""
    for node in program.nodes:
        if node.is_scale or (isinstance(node, Sum) and _is_branching(node)):
            yield node


def _is_branching(node: Node) -> bool:
    """Whether all terms are affine in one value, and not all of them are that value."""
    ways = [_affine_ways(term) for term in node.inputs]
    common = set(ways[0]).intersection(*ways[1:])
    nearest = max(common, key=lambda n: len(_affine_ways(n)), default=None)
    return any(way[nearest] for way in ways if nearest is not None)


def _affine_ways(node: Node) -> dict[Node, bool]:
    """The values that a value is an affine function of, and whether numbers come in on the way."""
    ways = {node: False}
    if isinstance(node, Affine | Alias):
        here = node.is_layer or node.is_scale
        ways |= {v: here or had for v, had in _affine_ways(node.inputs[0]).items()}
    elif isinstance(node, Sum):
        terms: list[dict[Node, bool]] = [_affine_ways(term) for term in node.inputs]
        for source in set(terms[0]).intersection(*terms[1:]):
            ways[source] = any(way[source] for way in terms)
    return ways
