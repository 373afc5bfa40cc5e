"""Write a model in which blocks run merged: their forwards anew, and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from reparam.branching.online.reading import Found
from reparam.branching.online.region import Mode, Region
from reparam.branching.online.steps import Step
from reparam.frontends.kinds import BATCH_NORMS, AnyBatchNorm
from reparam.frontends.torch.copying import HOOKS, own_copy
from reparam.frontends.torch.eager import Outcome, compare, guess_calls
from reparam.frontends.torch.frames import Key, join
from reparam.frontends.torch.part import part_of
from reparam.frontends.torch.rewrite import generated_forward, rewritten_base, with_forward
from reparam.frontends.torch.trace import Trace, TraceFailure

_NAME = "_online_"
_INNER = "_online_inner"
_NORMS = {*BATCH_NORMS, nn.SyncBatchNorm}


@dataclass(eq=False)
class Block:
    """A module whose forward is written anew.

    Attributes:
        path: Where it is.
        inlined: Paths of modules inside whose operations become part of it.
        regions: What is merged, by the names of the operations.

    """

    path: str
    trace: Trace
    inlined: set[str] = field(default_factory=set)
    regions: dict[frozenset[Key], Found] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Forward:
    """The new forward of a module: its source, what its names stand for, and what it merges."""

    path: str
    source: str
    bindings: dict[str, Any]
    regions: dict[str, tuple[Step, ...]]
    inner: Inner


@dataclass(frozen=True, slots=True)
class Inner:
    """Modules inside a block that are merged, by their names from the block on, and their classes.

    Whoever watches one, or puts another in its place, wants it to run: the block then does as it
    did before it was rewritten.
    """

    kinds: tuple[tuple[tuple[str, ...], type], ...]

    def are_as_planned(self, block: nn.Module) -> bool:
        """Whether they are still there, and unwatched."""
        for names, kind in self.kinds:
            module: nn.Module | None = block
            for name in names:
                module = None if module is None else module._modules.get(name)
            if module is None or has_hooks(module):
                return False
            found = rewritten_base(type(module))
            if found is not kind and not {found, kind} <= _NORMS:
                return False
        return True


def has_hooks(module: nn.Module) -> bool:
    """Whether something wants to be told when a module runs."""
    own = vars(module)
    return any(own.get(name) for name in HOOKS)


def blocks_of(found: Iterable[tuple[Trace, Found]]) -> dict[str, Block]:
    """Sort regions by the smallest module that holds all of their operations."""
    blocks: dict[str, Block] = {}
    for traced, region in found:
        stacks = [traced.stacks[n] for n in _with_constants(region)]
        depth = 0
        while all(len(s) > depth for s in stacks) and len({s[depth] for s in stacks}) == 1:
            depth += 1
        path = stacks[0][depth - 1].path
        block = blocks.setdefault(path, Block(path, traced))
        block.inlined |= {call.path for stack in stacks for call in stack[depth:]}
        block.regions[frozenset(traced.keys[n] for n in region.nodes)] = region
    return blocks


def place(
    model: nn.Module, forwards: Iterable[Forward], mode: Mode, *, compiled: bool = False
) -> nn.Module:
    """Copy a model and give modules their new forwards."""
    copied = own_copy(model)
    for forward in forwards:
        module = copied.get_submodule(forward.path)
        module.__class__ = with_forward(type(module), forward.source, forward.bindings)
        vars(module).update(
            {n: Region(steps, mode, compiled=compiled) for n, steps in forward.regions.items()}
        )
        vars(module)[_INNER] = forward.inner
    return copied


def undo(model: nn.Module) -> None:
    """Give rewritten blocks their own forwards again, in place."""
    for module in model.modules():
        names = [n for n, value in vars(module).items() if isinstance(value, Region | Inner)]
        if names:
            module.__class__ = type(module)._reparam_base  # type: ignore[attr-defined]  # noqa: SLF001
        for name in names:
            del vars(module)[name]


def regions_of(model: nn.Module) -> Iterator[Region]:
    """The merged parts of a model."""
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Region))


def _with_constants(region: Found) -> list[fx.Node]:
    """The operations of a region and those that compute its constants."""
    found = list(region.nodes)
    waiting = [o for o in region.operands if isinstance(o, fx.Node)]
    while waiting:
        node = waiting.pop()
        # Where a parameter was read first says nothing of who reads it.
        if node not in found and node.op != "get_attr":
            found.append(node)
            waiting.extend(node.all_input_nodes)
    return found


def rewritten(block: Block) -> Forward:
    """Write the forward of a block anew; the module is only read.

    Raises:
        TraceFailure: Its trace does something else than the block.
        LookupError: An operation is not found there.

    """
    traced = part_of(block.trace, block.path, block.inlined)
    for norm in traced.root.modules():
        if isinstance(norm, AnyBatchNorm):
            norm.eval()  # a copy: without numbers, batch statistics take PyTorch long
    report = compare(traced.root, traced, guess_calls(traced))
    if report.outcome is not Outcome.EQUAL:
        raise TraceFailure(report.why)
    by_key = {key: node for node, key in traced.keys.items()}
    regions = {}
    for number, region in enumerate(block.regions.values()):
        name = f"{_NAME}{number}"
        _merge(traced, by_key, block, region, name)
        regions[name] = region.steps
    source, bindings = generated_forward(traced.graph)
    return Forward(block.path, _guarded(source), bindings, regions, _inner_of(block))


def _guarded(source: str) -> str:
    """Begin a forward with the way back to the one that it takes the place of."""
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)  # noqa: S101 (fx generates exactly this)
    given = function.args
    passed = [a.arg for a in (*given.posonlyargs, *given.args)]
    passed += [f"*{given.vararg.arg}"] if given.vararg else []
    passed += [f"{a.arg}={a.arg}" for a in given.kwonlyargs]
    passed += [f"**{given.kwarg.arg}"] if given.kwarg else []
    lines = source.splitlines(keepends=True)
    lines.insert(
        function.body[0].lineno - 1,
        f"    if not self.{_INNER}.are_as_planned(self):\n"
        f"        return self._reparam_base.forward({', '.join(passed)})\n",
    )
    return "".join(lines)


def _inner_of(block: Block) -> Inner:
    modules = dict(block.trace.root.named_modules())
    base = block.trace.path
    paths = set(block.inlined)
    for region in block.regions.values():
        paths |= {join(base, str(n.target)) for n in region.nodes if n.op == "call_module"}
    kinds = []
    for path in sorted(paths - {block.path}):
        names = tuple(_relative(block.path, path).split("."))
        kinds.append((names, rewritten_base(type(modules[_relative(base, path)]))))
    return Inner(tuple(kinds))


def _merge(
    traced: Trace, by_key: dict[Key, fx.Node], block: Block, region: Found, name: str
) -> None:
    """Put one call in the place of the operations of a region."""
    keys = block.trace.keys
    nodes = [by_key[keys[n]] for n in region.nodes]
    source = by_key.get(keys[region.source]) or _outer_source(nodes)
    graph, end = traced.graph, nodes[-1]
    with graph.inserting_before(end):
        operands = [
            graph.create_node("get_attr", _relative(block.path, join(block.trace.path, o)))
            if isinstance(o, str)
            else by_key[keys[o]]
            for o in region.operands
        ]
        call = graph.call_module(name, (source, *operands))
    end.replace_all_uses_with(call)
    for node in reversed(nodes):
        if node.users:
            raise LookupError("a value inside of it is read elsewhere")
        graph.erase_node(node)


def _outer_source(nodes: list[fx.Node]) -> fx.Node:
    """The value that the operations read, where it comes from outside of the block."""
    members = set(nodes)
    read = {s for n in nodes for s in n.all_input_nodes if s not in members}
    values = [s for s in read if _is_value(s)]
    if len(values) != 1:
        raise LookupError(f"its operations read {len(values)} values here")
    return values[0]


def _is_value(node: fx.Node) -> bool:
    if node.op == "placeholder":
        return True
    return any(_is_value(s) for s in node.all_input_nodes)


def _relative(base: str, path: str) -> str:
    return path[len(base) + 1 :] if base else path
