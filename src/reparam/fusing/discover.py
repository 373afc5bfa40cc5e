"""Find what folds in a model: trace it, lift it, let the planner choose, and sort out the rest."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reparam._support.arguments import running_on
from reparam._support.modules import wrapped
from reparam.algebra import AffineConv
from reparam.frontends.kinds import AnyConv, AnyNorm
from reparam.frontends.torch.builtin import is_builtin, is_compiled
from reparam.frontends.torch.chains import chains, opened, runs_as_chain, trace_of
from reparam.frontends.torch.eager import (
    Outcome,
    Report,
    capture_calls,
    compare,
    does_run,
    guess_calls,
    guess_for_module,
    read_from_outside,
    repeats,
    with_numbers,
)
from reparam.frontends.torch.frames import join
from reparam.frontends.torch.lift import Lifted
from reparam.frontends.torch.rules import lift
from reparam.frontends.torch.running import Arguments
from reparam.frontends.torch.skeleton import (
    hooked_modules,
    named_tensors,
    runnable_copy,
    shared_copy,
    with_plain_weights,
)
from reparam.frontends.torch.trace import Trace, TraceFailure, trace
from reparam.frontends.torch.ways import Way, other_ways
from reparam.fusing.chosen import EVERYTHING, Chosen
from reparam.fusing.module_fold import doubt_of
from reparam.fusing.modules import ModuleDiscovery, Probed
from reparam.fusing.place import place_all
from reparam.fusing.probe import identify
from reparam.fusing.sites import ModuleSite
from reparam.fusing.vetoes import Vetoes, chain_of, owners_of
from reparam.fusing.ways import Selected, select_alike, spares
from reparam.planner import Candidate, Selection, Veto
from reparam.reasons import Reason, Why


def discover(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    probe: bool = False,
    chosen: Chosen = EVERYTHING,
) -> ModuleDiscovery:
    """Find the regions of an unwrapped model that lie in the chosen part of it."""
    model = with_plain_weights(model, chosen.__contains__)
    example = None if example_inputs is None else as_call(example_inputs)
    finder = _Finder(model, example, probe, chosen)
    finder.visit("", finder.readable)
    finder.check_example(example_inputs)
    finder.place()
    finder.drop_folded_probes()
    finder.leave_unseen_norms()
    return finder.result


def as_call(example_inputs: Any) -> Arguments:
    """Read a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example_inputs, dict):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    return (example_inputs,), {}


class _Finder:
    def __init__(
        self,
        model: nn.Module,
        example: Arguments | None,
        probe: bool,  # noqa: FBT001 (internal)
        chosen: Chosen,
    ) -> None:
        self._probe, self._chosen = probe, chosen
        self._example = example
        self._captured: dict[str, Arguments] | None = None
        self._hooked = hooked_modules(model)
        needs_hooks = bool(self._hooked) and example is not None and not does_run(model, example)
        self.result = ModuleDiscovery(model, needs_hooks=needs_hooks)
        self.readable = self.result.readable
        self._owners = owners_of(self.readable)
        self._visited: set[nn.Module] = set()
        self._account = self.result.account
        self._seen: set[str] = set()
        self._written: set[Tensor] = set()
        self._elsewhere: set[Tensor] = set()
        self._untraced: set[str] = set()
        self._opened: set[str] = set()

    def check_example(self, example_inputs: Any) -> None:
        """See to it that the model is compared as a whole, also where it could not be traced.

        Raises:
            InputError: It does not run on the example; nothing would be compared then.

        """
        if "" in self.result.calls:
            return
        if self._example is not None and not self._captured:
            with running_on("model", example_inputs):
                positional, named = with_numbers(self._example)
                runnable_copy(self.readable)(*positional, **named)
        call = self._example or guess_for_module(self.readable)
        if call is not None and repeats(self.readable, call):
            self.result.unread = call

    def visit(self, path: str, module: nn.Module) -> None:
        """Trace a module; where it cannot be traced, go on with its children."""
        if module in self._visited:
            return
        self._visited.add(module)
        try:
            traced, ways, report = self._read(path, module)
        except TraceFailure as failure:
            if self._identify(path, module):
                return
            if _has_layers(module) or not path:
                self._leave(path, module, Why.NOT_TRACED(failure=str(failure)))
            self._visit_parts(path, module)
            return
        written = _named(module, report.written)
        self._written |= written
        self.result.writes_weights |= any(isinstance(t, nn.Parameter) for t in written)
        if report.call is not None:
            self.result.calls[path] = report.call
        if report.outcome is Outcome.DIFFERENT:
            self._leave(path, module, Why.TRACE_DIFFERS(found=report.why))
            self._visit_parts(path, module)
            return
        known = {p: self.readable.get_submodule(p) for p in traced.opaque}
        probed = {p: op for p, child in known.items() if (op := self._identify(p, child))}
        self._plan(lift(traced, probed=probed), report, ways, probed)
        for inner in traced.opaque:
            if inner in probed:
                continue
            child = self.readable.get_submodule(inner)
            if _has_layers(child):
                self._leave(inner, child, Why.NOT_TRACED(failure=traced.opaque[inner]))
            self._visit_parts(inner, child)

    def _read(self, path: str, module: nn.Module) -> tuple[Trace, list[Way], Report]:
        """Trace a module, compare it with eager execution, and trace the other ways through it.

        Eager execution may take another of the ways than the trace.
        """
        example, opaque = self._known_call(path), dict[str, str]()
        while True:
            first = Way(trace(module, path, example=example, opaque=opaque))
            found = self._written_convolutions(first.trace)
            if path in found:
                raise TraceFailure(found[path])
            if found:
                opaque |= found
                continue
            try:
                taken, report = self._believed(module, first, example)
                ways = list(other_ways(module, taken, example))
            except TraceFailure as failure:
                if failure.where in {None, path}:
                    raise
                opaque[str(failure.where)] = str(failure)
                continue
            if taken is not first and not taken.forced:
                ways.append(first)
            return taken.trace, ways, report

    def _believed(
        self, module: nn.Module, first: Way, example: Arguments | None
    ) -> tuple[Way, Report]:
        """The way that does what eager execution does, as far as that is known."""
        told = self._compare(module, first.trace)
        if told.outcome is not Outcome.DIFFERENT:
            return first, told
        plain = first.trace.plain_arguments()
        for way in other_ways(module, first, example, whole=True):
            if way.trace.plain_arguments() == plain:
                report = self._compare(module, way.trace, told)
                if report.outcome is Outcome.EQUAL:
                    return way, report
        return first, told

    def _compare(self, module: nn.Module, traced: Trace, known: Report | None = None) -> Report:
        """Compare a trace with eager execution on the inputs that are known or can be made up."""
        calls = [] if known is not None and known.run else self._calls(module, traced)
        return compare(module, traced, calls, known)

    def _calls(self, module: nn.Module, traced: Trace) -> list[Arguments]:
        call = self._known_call(traced.path)
        if call is not None:
            return [call]
        guessed = guess_for_module(module)
        return guess_calls(traced) or ([] if guessed is None else [guessed])

    def _known_call(self, path: str) -> Arguments | None:
        """The arguments of a module, where an example of the model's is given."""
        if self._example is None or not path:
            return self._example
        if self._captured is None:
            self._captured = capture_calls(self.readable, self._example)
        return self._captured.get(path)

    def _is_believable(self, one: ModuleSite, report: Report) -> Reason | None:
        """Where the whole trace could not be compared, compare the block of a region."""
        if report.outcome is Outcome.EQUAL:
            return None
        path = one.reach
        if path != one.lifted.trace.path:
            try:
                block = self.readable.get_submodule(path)
                own = self._compare(block, trace(block, path, example=self._known_call(path)))
            except TraceFailure as failure:
                return Why.NOT_TRACED_ALONE(failure=str(failure))
            if own.outcome is Outcome.EQUAL:
                return None
            report = own
        return Why.NOT_COMPARED(found=report.why)

    def _identify(self, path: str, module: nn.Module) -> AffineConv | None:
        """Probe a module that cannot be traced; its operator, if it is one convolution."""
        found = self._probed(path, module)
        if isinstance(found, AffineConv):
            floating = [p for p in module.parameters() if p.is_floating_point()]
            like = max(floating, key=lambda t: t.numel())
            self.result.probed.append(Probed(path, type(module).__name__, found, like))
            return found
        if found is not None:
            self._leave(path, module, found)
        return None

    def _probed(self, path: str, module: nn.Module) -> AffineConv | Reason | None:
        """The one convolution that a module computes, or why it is none; None if not asked."""
        tried = self._probe and path in self._chosen and path not in self._hooked
        if not tried or not any(p.is_floating_point() for p in module.parameters()):
            return None
        call = self._known_call(path) or guess_for_module(module)
        if call is None:
            return Why.NOT_PROBED()
        found = identify(shared_copy(module), call)
        return Why.PROBED_OTHERWISE(found=found) if isinstance(found, str) else found

    def _written_convolutions(self, traced: Trace) -> dict[str, str]:
        """Modules that write into parts of their values and are one convolution all the same."""
        if not self._probe:
            return {}
        writes = (n for n in traced.graph.nodes if n.target is operator.setitem)
        paths = {traced.stacks[node][-1].path for node in writes}
        return {
            path: "it writes into parts of its values"
            for path in paths
            if isinstance(self._probed(path, self.readable.get_submodule(path)), AffineConv)
        }

    def drop_folded_probes(self) -> None:
        """Keep of the probed modules those that no larger region replaces."""
        nodes = (node for one in self.result.regions for node in one.region.nodes)
        folded = {key.target for key in map(ModuleSite.key_of, nodes) if key.is_module}
        self.result.probed = [p for p in self.result.probed if p.path not in folded]

    def leave_unseen_norms(self) -> None:
        """Say of each norm that no program holds as a scale and shift why that is."""
        probed = {one.path for one in self.result.probed}
        told = {refusal.where for refusal in self.result.refusals}
        told |= {node.where for one in self.result.regions for node in one.region.gone}
        for path, module in self.readable.named_modules():
            around = list(_upwards(path))
            if not isinstance(module, AnyNorm) or path in told or probed.intersection(around):
                continue
            untraced = next((outer for outer in around if outer in self._untraced), None)
            if path in self._seen:
                reason = Why.NOT_A_SCALE()
            elif untraced is None:
                reason = Why.NOT_CALLED()
            else:
                reason = Why.PARENT_NOT_TRACED(parent=untraced or "the model")
            self._leave(path, module, reason)

    def _visit_parts(self, path: str, module: nn.Module) -> None:
        """Go on with what can be read of a module that cannot be traced as a whole."""
        self._untraced.add(path)
        if is_compiled(module):
            return
        call = self._known_call(path) or guess_for_module(module)
        names = frozenset[str]() if call is None else read_from_outside(module, call)
        self._elsewhere |= _named(module, names)
        self._opened |= {join(path, name) for name in opened(module, weights=call is None)}
        self._plan_chains(path, module)
        self._visit_children(path, module)

    def _plan_chains(self, path: str, module: nn.Module) -> None:
        """Plan what runs one behind the other whatever the rest of a forward does."""
        found = chains(module)
        call = (self._known_call(path) or guess_for_module(module)) if found else None
        if call is None:
            return
        twin, (positional, named) = runnable_copy(module), with_numbers(call)
        for chain in found:
            try:
                with torch.no_grad():
                    seen = runs_as_chain(twin, chain, lambda: twin(*positional, **named))
            except Exception:  # noqa: BLE001 (any error of the user's model: nothing was seen)
                return
            if seen:
                self.result.calls.setdefault(path, call)
                report = Report(Outcome.EQUAL, call=call)
                self._plan(lift(trace_of(module, path, chain)), report)

    def _visit_children(self, path: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            inner = join(path, name)
            if _is_container(child) or self._is_opened(inner, child):
                self._visit_children(inner, child)
            elif not is_builtin(child):
                self.visit(inner, child)

    def _is_opened(self, path: str, module: nn.Module) -> bool:
        """Whether more happens inside of a module than its own forward says.

        Code around it that cannot be traced may call parts of it, and read their weights.
        """
        inside = {name for name in self._opened if name.startswith(f"{path}.")}
        if inside:
            return inside != {f"{path}.forward"}
        if path in self._opened and isinstance(module, nn.Sequential):
            return True
        if self._example is None or self._known_call(path) is not None:
            return False
        return any(name.startswith(f"{path}.") for name in self._captured or ())

    def _plan(
        self, lifted: Lifted, report: Report, others: Iterable[Way] = (),
        probed: dict[str, AffineConv] | None = None,
    ) -> None:  # fmt: skip
        """Plan what folds in every way; those are read whole in which it is not left alone."""
        ways, others = [lifted], list(others)
        selected = self._selected(ways)
        while touched := [way for way in others if not spares(way, selected.found, lifted)]:
            others = [way for way in others if way not in touched]
            known = [way.trace for way in ways]
            wholes = _distinct(*known, *(way.whole().trace for way in touched))
            ways += [lift(one, probed=probed) for one in wholes if one not in known]
            selected = self._selected(ways)

        def doubt(one: ModuleSite) -> Reason | None:
            return self._is_believable(one, report) or doubt_of(one)

        self.result.keep(selected.selection, selected.found, doubt)
        self._seen |= {node.where for node in lifted.program.nodes}

    def _selected(self, ways: list[Lifted]) -> Selected:
        """Choose what folds in every way, and in every call of the modules that it is in.

        Where a region is not in every call, less of it may be.
        """
        in_some: dict[frozenset[Hashable], Reason] = {}

        def choose(way: Lifted, veto: Veto) -> tuple[Selection, list[ModuleSite]]:
            def own(region: Candidate) -> Reason | None:
                keys = frozenset(node.key for node in region.nodes) if in_some else frozenset()
                return in_some.get(keys) or veto(region)

            return self.result.found_in(way, own)

        while True:
            first, *others = select_alike(ways, self._vetoes, choose)
            fewer = {k: why for way in (*others, first) for k, why in _in_some_calls(way).items()}
            if not fewer:
                # Modules that are called again and again one behind the other are edited once.
                once = {chain_of(one.region) or one: one for one in reversed(first.found)}
                return replace(first, found=list(once.values())[::-1])
            in_some |= fewer

    def _vetoes(self, way: Lifted) -> Vetoes:
        return Vetoes(way, self._hooked, self._owners, self._chosen, self._written, self._elsewhere)

    def place(self) -> None:
        """Keep the regions whose blocks can be rewritten."""
        placement = place_all(self.result.regions)
        self.result.regions[:] = placement.kept
        self.result.parts.update(placement.parts)
        for one, why in placement.refused:
            self._account.leave_region(one.region, why)

    def _leave(self, path: str, module: nn.Module, reason: Reason) -> None:
        self._account.leave(path or "the model", type(module).__name__, reason, path)


def _in_some_calls(selected: Selected) -> dict[frozenset[Hashable], Reason]:
    """Regions that are not in every call of what they edit, each with the reason."""
    calls_of = selected.vetoes.calls_of
    folds = Counter(one.keys for one in selected.found)
    chains = Counter(chain_of(one.region) for one in selected.found)
    fewer: dict[frozenset[Hashable], Reason] = {}
    for one in selected.found:
        chain, calls = chain_of(one.region), calls_of(one.block)
        most = max(chain, key=calls_of, default="")
        if chain and chains[chain] < calls_of(most) != calls:
            fewer[one.keys] = Why.SHARED_MODULE(where=most, times=calls_of(most))
        elif folds[one.keys] < calls and not (chain and chains[chain] >= calls_of(most)):
            fewer[one.keys] = Why.FOLDS_IN_SOME_CALLS(calls=calls, folds=folds[one.keys])
    return fewer


def _named(module: nn.Module, names: frozenset[str]) -> set[Tensor]:
    """The parameters and buffers of a module that have these names."""
    return {t for name, t in named_tensors(module).items() if name in names} if names else set()


def _distinct(*ways: Trace) -> list[Trace]:
    """The first of those ways each that do the same."""
    found: dict[Hashable, Trace] = {}
    for way in ways if len(ways) > 1 else ():
        found.setdefault(way.does(), way)
    return list(found.values()) or list(ways)


def _upwards(path: str) -> Iterator[str]:
    """A path and those of the modules around it, innermost first."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield path


def _has_layers(module: nn.Module) -> bool:
    kinds = (AnyConv, AnyNorm, nn.Linear)
    return any(isinstance(m, kinds) for m in module.modules())


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.ModuleDict) or wrapped(module) is not None
