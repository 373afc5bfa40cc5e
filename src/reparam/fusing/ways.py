"""Choose what folds in every way through the code of a model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from reparam.frontends.torch.builtin import is_builtin
from reparam.frontends.torch.chains import called_whole, chains
from reparam.frontends.torch.decisions import goes_another_way
from reparam.frontends.torch.lift import Lifted
from reparam.frontends.torch.skeleton import tensors_of
from reparam.frontends.torch.ways import Difference, Way
from reparam.fusing.place import blocks_of
from reparam.fusing.sites import ModuleSite, described, name_of
from reparam.fusing.vetoes import Vetoes
from reparam.planner import Candidate, Selection
from reparam.program import Affine
from reparam.reasons import Reason, Why

Names = frozenset[Hashable]
"""What a region is in every way: its operations, and the modules and tensors that they use."""

Chooser = Callable[
    [Lifted, Callable[[Candidate], Reason | None]], tuple[Selection, list[ModuleSite]]
]
"""Chooses what folds in one way, of what is not objected to."""


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """What was chosen in one way through the code.

    Attributes:
        vetoes: What the front end objects to there.
        selection: The choice.
        found: How the model is edited for it.
        may_fold: All regions that could have been chosen.

    """

    vetoes: Vetoes
    selection: Selection
    found: list[ModuleSite]
    may_fold: set[Names]


def select_alike(
    ways: list[Lifted], vetoes_of: Callable[[Lifted], Vetoes], choose: Chooser
) -> list[Selected]:
    """Choose the same in every way through the code; return it as each way has it."""
    present = [_present(way, ways[0]) for way in ways] if len(ways) > 1 else []
    unwritable = [_unwritable(ways), *[_Unwritable({}, {})] * (len(ways) - 1)]
    possible: list[set[Names]] = []
    while True:
        selected = [
            _select(choose, way, vetoes_of(way), forwards, present, possible)
            for way, forwards in zip(ways, unwritable, strict=True)
        ]
        if not present:
            return selected
        folds = [{_names(one.lifted, one.region) for one in each.found} for each in selected]
        uneven = {
            names
            for names in set[Names]().union(*folds)
            if any(names & o and names not in f for o, f in zip(present, folds, strict=True))
        }
        if not uneven:
            return selected
        if not possible:
            possible = [each.may_fold for each in selected]
        else:
            largest = {names for names in uneven if not any(names < other for other in uneven)}
            possible = [each - largest for each in possible]


def _names(lifted: Lifted, region: Candidate) -> Names:
    """The same only where the same calls of modules are in it."""
    named = {name for node in region.nodes for name in (node.key, name_of(node))}
    return frozenset(named.union(*map(lifted.reads, region.nodes)))


def _present(way: Lifted, first: Lifted) -> set[Hashable]:
    """The operations of a way, and the modules and tensors that they use.

    Where another option is asked for, not what a module uses that could not be read there.
    """
    trace = way.trace
    asked = trace.plain_arguments() != first.trace.plain_arguments()
    keys = set(trace.keys.values())
    found: set[Hashable] = {*keys, *(key.target for key in keys if key.is_module)}
    for node in trace.graph.nodes:
        if node.op == "call_module":
            module = trace.module(node)
            if is_builtin(module):
                found.update(tensors_of(module))
            elif not asked:
                found.update(_unsettled(module))
        elif node.op == "get_attr":
            found.add(trace.held[str(node.target)])
    return found


def _unsettled(module: nn.Module) -> set[Tensor]:
    """What code that could not be read may use in another way than where it could.

    Parts that it calls as wholes, or always one behind the other, do what they do.
    """
    settled = called_whole(module).union(*chains(module))
    inside = (tensors_of(module.get_submodule(name)) for name in settled)
    return set(tensors_of(module)).difference(*inside)


def spares(way: Way, found: Iterable[ModuleSite], lifted: Lifted) -> bool:
    """Whether regions fold in a way as in the whole one, since it differs in other places alone."""
    difference = Difference(lifted.trace, way.trace)
    return all(_is_spared(one.region, lifted, difference) for one in found)


def _is_spared(region: Candidate, lifted: Lifted, difference: Difference) -> bool:
    """Whether a region does the same in a way whatever that makes of its source.

    The source has to have as many axes: a convolution that reads it tells how many.
    """
    first = [node for node in region.nodes if region.source in node.inputs]
    told = any(isinstance(n, Affine) and n.is_convolution and n.leaf.geometry.dims for n in first)
    if not told and not difference.has_rank(lifted.value_of(region.source)):
        return False
    tensors = {tensor for node in region.nodes for tensor in lifted.reads(node)}
    if difference.is_deep or difference.reads(tensors):
        return False
    nodes = {lifted.node_of(node) for node in region.nodes}
    given, waiting, strange = {lifted.value_of(region.source)}, list(nodes), False
    while waiting:
        for read in set(waiting.pop().all_input_nodes) - nodes:
            if lifted.constants.is_tensor(read):
                nodes.add(read)
                waiting.append(read)
            strange |= read not in nodes | given
    if difference.leaves_out(nodes):
        return True
    moved = any(node.is_copy or node.is_virtual for node in (region.source, *region.nodes))
    return not (strange or moved) and difference.keeps(nodes, lifted.node_of(region.output))


def _select(
    choose: Chooser, way: Lifted, vetoes: Vetoes, unwritable: _Unwritable,
    present: list[set[Hashable]], possible: list[set[Names]],
) -> Selected:  # fmt: skip
    """Choose what folds in one way, of what may fold in every one.

    Args:
        choose: Chooses what folds.
        way: The way.
        vetoes: What the front end objects to there.
        unwritable: Forwards that cannot be rewritten.
        present: What every way has, where there are several; see :func:`_present`.
        possible: What may fold in every way, where that is known.

    """
    may_fold: set[Names] = set()

    def veto(region: Candidate) -> Reason | None:
        names = _names(way, region) if present else Names()
        folds_there = [names in folds for folds in possible] or [names <= o for o in present]
        if any(names & there and not f for there, f in zip(present, folds_there, strict=True)):
            return Why.NOT_IN_EVERY_WAY()
        reason = vetoes(region) or unwritable.reason(way, region)
        if reason is None:
            may_fold.add(names)
        return reason

    selection, found = choose(way, veto)
    return Selected(vetoes, selection, found, may_fold)


@dataclass(frozen=True, slots=True)
class _Unwritable:
    """Forwards that cannot be rewritten, by path, each with the reason; less may fold without.

    Attributes:
        deciding: Those that go another way in another call, also as a part of another forward.
        varying: Those that get other plain values at other sizes of the model's inputs.

    """

    deciding: dict[str, str]
    varying: dict[str, str]

    def reason(self, way: Lifted, region: Candidate) -> Reason | None:
        """Why a region cannot be folded, if it needs one of them rewritten."""
        if not self.deciding and not self.varying:
            return None
        for path, block in blocks_of([described(way, region)]).items():
            whys = [self.varying.get(path), *map(self.deciding.get, (path, *block.inlined))]
            for why in filter(None, whys):
                return Why.NOT_REWRITTEN(block=path or "the model", found=why)
        return None


def _unwritable(ways: list[Lifted]) -> _Unwritable:
    """What cannot be rewritten of the first way, which is the one that is written."""
    trace = ways[0].trace
    others = [w.trace for w in ways[1:] if w.trace.plain_arguments() == trace.plain_arguments()]
    varying = {
        frame.call.path
        for frame in (trace.frame.all_calls() if trace.frame and others else ())
        for other in others
        for its in other.calls_of(frame.call.path)
        if its.call == frame.call and its.plain_arguments() != frame.plain_arguments()
    }
    return _Unwritable(
        {path: goes_another_way(place) for path, place in trace.deciding().items()},
        dict.fromkeys(varying, "it is called with other numbers for inputs of other sizes"),
    )
