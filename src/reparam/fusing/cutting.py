"""Leave out of a model what its wanted results do not need, and compute what is fixed once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from reparam._support.arguments import running_on
from reparam.errors import InputError, UnsupportedModelError
from reparam.frontends.torch.copying import Copier
from reparam.frontends.torch.cut import Cut
from reparam.frontends.torch.eager import Outcome, compare, guess_calls, with_numbers
from reparam.frontends.torch.fixed import fixed_values
from reparam.frontends.torch.frames import join
from reparam.frontends.torch.part import part_of
from reparam.frontends.torch.rewrite import Classes, Shell, build
from reparam.frontends.torch.running import Arguments
from reparam.frontends.torch.skeleton import (
    hooked_modules,
    runnable_copy,
    with_plain_weights,
)
from reparam.frontends.torch.trace import Trace, TraceFailure, trace
from reparam.fusing.asked import Fixed, Outputs, asked, whole_result, without_fixed
from reparam.fusing.compare import compare_models
from reparam.fusing.discover import as_call
from reparam.reasons import Refusal, Why

_INDEXED = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Containers in which a part keeps its place when another one is gone."""

_SHOWN = 6
"""Modules that a note names."""


@dataclass(frozen=True, slots=True)
class CutOut:
    """What is left of a model.

    Attributes:
        model: It, in eval mode; it shares its numbers with the original.
        reference: A model that returns the same and computes all that the original did.
        notes: What is gone and what is stored, a sentence each.
        refusals: Modules that could not be changed, so that more is left than is needed.

    """

    model: nn.Module
    reference: nn.Module
    notes: tuple[str, ...]
    refusals: tuple[Refusal, ...]


def cut_out(
    model: nn.Module, example_inputs: Any, outputs: Outputs | None, fixed: Fixed | None
) -> CutOut:
    """Cut a model down to some of its results, with some of its arguments fixed.

    The new model is run side by side with the original before it is returned.

    Raises:
        InputError: It has no such result or argument, or does not run on the example.
        UnsupportedModelError: Its forward cannot be traced, or not be written anew.
        VerificationError: The new model returns something else (a defect of this package).

    """
    model = with_plain_weights(model, lambda _: True)
    name = type(model).__name__
    hooked = hooked_modules(model)
    if "" in hooked:
        msg = f"{name} has {hooked['']}, which would see other values; remove the hook to cut it"
        raise InputError(msg)
    reference, buffers = asked(model, outputs, fixed)
    example = None if example_inputs is None else as_call(example_inputs)
    traced, returned, call = _traced(name, reference, example)
    cutter = _Cutter(model, traced, returned, hooked)
    new = cutter.cut(fixed or {}, [each for names in buffers.values() for each in names])
    compare_models(name, reference, new, call)
    if fixed and not isinstance(new, nn.Identity):
        new.register_forward_pre_hook(_NoLonger(tuple(fixed)), with_kwargs=True)
    return CutOut(new, reference, tuple(cutter.notes), tuple(cutter.refusals))


def cut_down(
    model: nn.Module, example_inputs: Any, outputs: Outputs | None, fixed: Fixed | None
) -> nn.Module:
    """Cut a model of any mode as it is in eval mode; see :func:`reparam.plan`."""
    inner = Copier(lambda tensor: tensor, keep_hooks=True).copy(model).eval()
    if fixed is not None and example_inputs is not None:
        example_inputs = without_fixed(inner, example_inputs, fixed)
    return cut_out(inner, example_inputs, outputs, fixed).model


def _traced(
    name: str, reference: nn.Module, example: Arguments | None
) -> tuple[Trace, Any, Arguments]:
    """Trace a model and make sure that the trace does what it does.

    Returns:
        The trace, all that the model returned before it was asked for less, and the arguments that
        it was compared on.

    """
    try:
        traced = trace(reference, example=example)
    except TraceFailure as failure:
        _check_runs(reference, example)
        if isinstance(failure.__cause__, InputError):
            raise failure.__cause__ from None
        msg = (
            f"the forward of {name} cannot be traced ({failure}), so nothing of it can be left "
            f"out or computed beforehand; choose among the results where it is called, or cut "
            f"the module inside that can be traced"
        )
        raise UnsupportedModelError(msg) from failure
    returned = whole_result(traced.root)
    report = compare(reference, traced, guess_calls(traced) if example is None else [example])
    if report.outcome is Outcome.EQUAL and report.call is not None:
        return traced, returned, report.call
    _check_runs(reference, example)
    if report.outcome is Outcome.UNKNOWN:
        raise InputError(f"what {name} computes is not known: {report.why}")
    raise UnsupportedModelError(
        f"the trace of {name} is not what it does ({report.why}), so nothing is left out of it"
    )


def _check_runs(reference: nn.Module, example: Arguments | None) -> None:
    if example is not None:
        with running_on("model", example):
            positional, named = with_numbers(example)
            runnable_copy(reference)(*positional, **named)


class _Cutter:
    """Writes what is left of a model.

    Attributes:
        notes: What is gone and what is stored, a sentence each.
        refusals: Modules that could not be changed.

    """

    def __init__(
        self, model: nn.Module, traced: Trace, returned: Any, hooked: dict[str, str]
    ) -> None:
        self._model, self._trace, self._returned, self._hooked = model, traced, returned, hooked
        self.notes: list[str] = []
        self.refusals: list[Refusal] = []

    def cut(self, fixed: Fixed, buffers: Collection[str]) -> nn.Module:
        """Make the new model."""
        with running_on("model", fixed, "fixed"):
            values = fixed_values(self._trace, buffers, self._hooked)
        cut, parts = self._written(values)
        dropped, emptied = self._removed(cut)
        classes = Classes()
        shells = [
            Shell(
                self._model.get_submodule(path),
                part.graph,
                classes,
                layers={},
                dropped=dropped[path],
                inlined=set(),
                buffers=cut.buffers[path],
            )
            for path, part in parts.items()
        ]
        stored = sum(map(len, cut.buffers.values()))
        if fixed:
            follow = f", and {stored} tensors that follow from it are stored" if stored else ""
            self.notes.append(f"what is passed for {', '.join(fixed)} is fixed{follow}")
        layers: dict[nn.Module, nn.Module] = {m: nn.Identity().eval() for m in emptied}
        return build(self._model, layers, shells, shares_weights=True)

    def _written(self, fixed: dict[fx.Node, Any]) -> tuple[Cut, dict[str, Trace]]:
        """Write the forwards that change; what cannot be written stays whole."""
        whole = set(self._hooked)
        while True:
            cut = Cut(self._trace, self._returned, fixed, whole)
            parts = {}
            for path in sorted(cut.rewritten):
                try:
                    parts[path] = part_of(self._trace, path, set(), cut)
                except LookupError as failure:
                    self._keep(path, str(failure))
                    whole.add(path)
                    break
            else:
                self._note_ways(cut)
                return cut, parts

    def _keep(self, path: str, why: str) -> None:
        """Note that a module stays as it is; the model itself cannot."""
        if not path:
            msg = f"the forward of {type(self._model).__name__} cannot be written anew: {why}"
            raise UnsupportedModelError(msg)
        self._refuse(path, Why.NOT_REWRITTEN(block=path, found=why))

    def _refuse(self, path: str, reason: Any) -> None:
        what = type(self._model.get_submodule(path)).__name__
        self.refusals.append(Refusal(path or "the model", what, reason))

    def _note_ways(self, cut: Cut) -> None:
        """Say where the new code takes the one way that the example goes."""
        taken = {
            (self._trace.stacks[check][-1].path, str(decision.place)): None
            for check, decision in self._trace.decisions.items()
            if check in cut.live and decision.is_open
        }
        for path, place in taken:
            if path in cut.rewritten:
                self._refuse(path, Why.ONE_WAY(place=place))

    def _removed(self, cut: Cut) -> tuple[dict[str, set[str]], list[nn.Module]]:
        """What each changed module loses, and which modules leave an empty place."""
        called, gone = cut.called(), cut.gone()
        kept = {id(found) for found in map(self._find, called) if isinstance(found, nn.Module)}
        dropped: dict[str, set[str]] = defaultdict(set)
        emptied: list[nn.Module] = []
        removed: list[str] = []

        def visit(path: str, module: nn.Module) -> None:
            for name, child in module.named_children():
                inner = join(path, name)
                if not _is_gone(inner, child, called, gone, kept):
                    visit(inner, child)
                    continue
                removed.append(inner)
                if path in cut.rewritten and not isinstance(module, _INDEXED):
                    dropped[path].add(name)
                else:
                    emptied.append(child)

        visit("", self._model)
        for target in gone:
            owner, _, name = target.rpartition(".")
            if owner in cut.rewritten and not isinstance(self._find(target), nn.Module):
                dropped[owner].add(name)
        self._note_removed(removed, something=bool(cut.fixed))
        return dropped, emptied

    def _note_removed(self, removed: list[str], *, something: bool) -> None:
        modules = [self._model.get_submodule(path) for path in removed]
        numbers = sum(t.numel() for module in modules for t in module.parameters())
        more = [f"{len(removed) - _SHOWN} more"] if removed[_SHOWN:] else []
        names = ", ".join((*removed[:_SHOWN], *more))
        if removed:
            self.notes.append(f"nothing needs {names} any more: {numbers:,} parameters fewer")
        elif not something:
            self.notes.append("no module can be left out for what was asked")

    def _find(self, path: str) -> Any:
        found: Any = self._model
        for name in filter(None, path.split(".")):
            found = getattr(found, name, None)
        return found


def _is_gone(
    path: str, module: nn.Module, called: set[str], gone: set[str], kept: set[int]
) -> bool:
    """Whether neither a module nor anything in it is used any more, and it was used before."""
    below = any(name == path or name.startswith(f"{path}.") for name in called)
    if below or any(id(inner) in kept for inner in module.modules()):
        return False
    parts = [
        _is_gone(join(path, name), child, called, gone, kept)
        for name, child in module.named_children()
    ]
    own = (module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    parts += [join(path, name) in gone for tensors in own for name, _ in tensors]
    return path in gone or (bool(parts) and all(parts))


class _NoLonger:
    """Raises where a model is given an argument that was fixed; it can be pickled."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def __call__(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        """Look at the names."""
        for name in self._names:
            if name in kwargs:
                msg = f"{name} was fixed when this model was fused; call it without {name}"
                raise InputError(msg)
