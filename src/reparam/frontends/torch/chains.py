"""Layers that always run one behind the other, read off code that cannot be traced.

Where a forward has a line that only a run can follow, its other lines still say what they do:
in ``bn(conv(x))``, and in ``x = conv(x); x = bn(x)``, nothing but the second module ever reads
what the first returns. Such a chain is a small trace of its own, as long as nothing else in the
class mentions its modules.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from reparam.frontends.torch.builtin import is_builtin
from reparam.frontends.torch.frames import Call, Key, join
from reparam.frontends.torch.trace import Trace

_OUT_OF_SIGHT = {
    "_modules", "buffers", "children", "get_submodule", "modules", "named_buffers",
    "named_children", "named_modules", "named_parameters", "parameters", "state_dict",
}  # fmt: skip
"""What a class may read all of its modules through."""

Chain = tuple[str, ...]
"""Names of modules, relative to the one that calls them, in the order in which they run."""


def chains(module: nn.Module) -> list[Chain]:
    """The chains of built-in modules in the code of a module's class; none where it is not seen."""
    try:
        functions = _functions(type(module))
    except (OSError, TypeError, SyntaxError):
        return []
    if any(function.name in vars(module) for function in functions):
        return []  # another function takes the place of the class's in this module
    mentioned: Counter[str] = Counter()
    for function in functions:
        if not _count_mentions(function, _self_of(function), mentioned):
            return []
    if any(name.partition(".")[0] in _OUT_OF_SIGHT for name in mentioned):
        return []
    found = (chain for function in functions for chain in _chains_in(function))
    alone = {part for chain in found for part in _parted(chain, module, mentioned)}
    kept: list[Chain] = []
    for chain in sorted(alone, key=lambda each: (-len(each), each)):
        if len(chain) > 1 and not any(set(chain) & set(longer) for longer in kept):
            kept.append(chain)
    return kept


def called_whole(module: nn.Module) -> set[str]:
    """Names of the parts with code of their own that a module's class does nothing with but call.

    None where its code is not seen, or hands the module itself on.
    """
    try:
        functions = _functions(type(module))
    except (OSError, TypeError, SyntaxError):
        return set()
    mentioned: Counter[str] = Counter()
    if not all(_count_mentions(function, _self_of(function), mentioned) for function in functions):
        return set()
    if any(name.partition(".")[0] in _OUT_OF_SIGHT for name in mentioned):
        return set()
    within = {path.partition(".")[0] for path in opened(module, weights=True)}
    children = module.named_children()
    return {n for n, child in children if not is_builtin(child) and n not in within}


def opened(module: nn.Module, *, weights: bool) -> set[str]:
    """What the code of a module's class reads of its parts other than by calling them.

    In ``self.stem[0](x)`` that is ``stem.0``, in ``for layer in self.stem`` it is ``stem``, and in
    ``self.body.features(x)`` it is ``body.features``.

    Args:
        module: The module.
        weights: Whether what reads a weight counts, as ``self.stem[0].weight``; a run tells more.

    Returns:
        Names relative to the module; what the code of these parts alone says is not all that
        happens inside of them.

    """
    try:
        functions = _functions(type(module))
    except (OSError, TypeError, SyntaxError):
        return set()
    found = set()
    for function in functions:
        own = _self_of(function)
        nodes = [node for node in ast.walk(function) if _path(node, own) is not None]
        called = {id(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
        within = {id(inner) for node in nodes for inner in list(ast.walk(node))[1:]}
        for node in nodes:
            path = str(_path(node, own))
            if id(node) not in within and ("." in path or id(node) not in called):
                found.add(_seen_of(module, path, weights=weights))
    return found - {""}


def _seen_of(module: nn.Module, path: str, *, weights: bool) -> str:
    """The start of a path of attributes that leads to a part, a number or a method of one."""
    seen: list[str] = []
    for name in path.split("."):
        tables = (module._modules, module._parameters, module._buffers)
        held = next((table[name] for table in tables if name in table), None)
        own = name == "forward" or not hasattr(nn.Module, name)
        if held is None and not (own and callable(getattr(type(module), name, None))):
            break
        if isinstance(held, Tensor) and not weights:
            return ""
        seen.append(name)
        if not isinstance(held, nn.Module):
            break
        module = held
    return ".".join(seen)


def runs_as_chain(module: nn.Module, chain: Chain, run: Callable[[], object]) -> bool:
    """Whether in one run each module of a chain read what the one before it had just returned.

    Args:
        module: The module that calls the chain; hooks are put on this for the time of the run.
        chain: The chain.
        run: Runs the module.

    """
    events: list[tuple[int, int, Any]] = []

    def noting(k: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            read = args[0] if len(args) == 1 else None
            events.append((k, id(read) if isinstance(read, Tensor) else 0, result))

        return hook

    parts = [module.get_submodule(name) for name in chain]
    handles = [part.register_forward_hook(noting(k)) for k, part in enumerate(parts)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if not events or len(events) % len(chain):
        return False
    for at, (k, read, _) in enumerate(events):
        if k != at % len(chain) or (k and read != id(events[at - 1][2])):
            return False
    return True


def trace_of(root: nn.Module, path: str, chain: Chain) -> Trace:
    """Write a chain as the trace that its module would have if it did nothing else."""
    graph = fx.Graph()
    trace = Trace(root, path, graph, {}, {})
    stack = (Call(path, 0),)
    value = graph.placeholder("x")
    trace.keys[value] = Key(path, "placeholder:x()", 0, is_module=False)
    for name in chain:
        trace.stacks[value] = stack
        value = graph.call_module(name, (value,))
        trace.keys[value] = Key(path, join(path, name), 0, is_module=True)
    trace.stacks[value] = stack
    end = graph.output(value)
    trace.keys[end], trace.stacks[end] = Key(path, "output", 0, is_module=False), stack
    return trace


def _functions(kind: type) -> list[ast.FunctionDef]:
    """The code of the methods of a class that may run once it is made.

    Raises:
        SyntaxError: Some of it is no function of its own.

    """
    found: dict[str, list[ast.FunctionDef]] = {}
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        for name, value in vars(base).items():
            code = getattr(value, "fget", None) or getattr(value, "func", None) or value
            if name == "__init__" or not inspect.isfunction(code):
                continue
            body = ast.parse(textwrap.dedent(inspect.getsource(code))).body
            if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
                raise SyntaxError(name)
            found.setdefault(name, []).append(body[0])
    every = [function for versions in found.values() for function in versions]
    calls_on = any(isinstance(n, ast.Name) and n.id == "super" for f in every for n in ast.walk(f))
    return every if calls_on else [versions[0] for versions in found.values()]


def _count_mentions(node: ast.AST, own: str, mentioned: Counter[str]) -> bool:
    """Count what is read of ``self``; say whether ``self`` itself stays in sight."""
    name = _path(node, own)
    if name is not None:
        mentioned[name] += 1
        return True
    if isinstance(node, ast.Name) and node.id in {own, "locals", "eval", "exec"}:
        return False
    return all(_count_mentions(inner, own, mentioned) for inner in ast.iter_child_nodes(node))


def _self_of(function: ast.FunctionDef) -> str:
    arguments = [*function.args.posonlyargs, *function.args.args]
    return arguments[0].arg if arguments else ""


def _path(node: ast.AST, own: str) -> str | None:
    """``a.0`` for ``self.a[0]``: the name of a part of ``self``."""
    if isinstance(node, ast.Attribute):
        outer, name = node.value, node.attr
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        outer, name = node.value, str(node.slice.value)
    else:
        return None
    if isinstance(outer, ast.Name):
        return name if outer.id == own and isinstance(node, ast.Attribute) else None
    around = _path(outer, own)
    return None if around is None else f"{around}.{name}"


def _chains_in(function: ast.FunctionDef) -> Iterator[Chain]:
    own = _self_of(function)
    for node in ast.walk(function):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                yield from _in_statements(block, own)
        if isinstance(node, ast.Call):
            chain = _nested(node, own)
            if len(chain) > 1:
                yield chain


def _nested(node: ast.AST, own: str) -> Chain:
    """The modules that are called on one another, the innermost first."""
    called = _called(node, own)
    if called is None:
        return ()
    name, argument = called
    return (*_nested(argument, own), name)


def _called(node: ast.AST, own: str) -> tuple[str, ast.expr] | None:
    """The part of ``self`` that is called on one argument."""
    if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
        return None
    name = _path(node.func, own)
    if name is None or isinstance(node.args[0], ast.Starred):
        return None
    return name, node.args[0]


def _in_statements(block: list[ast.stmt], own: str) -> Iterator[Chain]:
    """Chains of ``x = a(x)``, ``x = b(x)``: each value is gone once the next one is made."""
    chain: Chain = ()
    variable = None
    for statement in block:
        target, value = _assigned(statement)
        parts = () if value is None else _nested(value, own)
        reading = () if value is None or variable is None else _reading(value, variable, own)
        gone = target == variable or isinstance(statement, ast.Return)
        follows = chain + reading if reading and gone else chain
        if reading and gone and reading == parts:
            chain = follows
        else:
            if len(follows) > 1:
                yield follows
            chain = parts
        variable = target if parts else None
    if len(chain) > 1:
        yield chain


def _reading(value: ast.AST, variable: str, own: str) -> Chain:
    """The longest chain in an expression that reads a variable, if nothing else in it does."""
    names = [n for n in ast.walk(value) if isinstance(n, ast.Name) and n.id == variable]
    calls = (n for n in ast.walk(value) if isinstance(n, ast.Call))
    found = [_nested(call, own) for call in calls if _innermost(call, own) == variable]
    return max(found, key=len, default=()) if len(names) == 1 else ()


def _assigned(statement: ast.stmt) -> tuple[str | None, ast.expr | None]:
    if isinstance(statement, ast.Return):
        return None, statement.value
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Name):
            return target.id, statement.value
    return None, None


def _innermost(node: ast.AST, own: str) -> str | None:
    """The variable that the innermost of nested calls reads."""
    called = _called(node, own)
    while called is not None:
        node = called[1]
        called = _called(node, own)
    return node.id if isinstance(node, ast.Name) else None


def _parted(chain: Chain, module: nn.Module, mentioned: Counter[str]) -> Iterator[Chain]:
    """The longest pieces of a chain in which each module is built in and mentioned nowhere else."""
    piece: Chain = ()
    for name in chain:
        if _is_alone(name, module, mentioned):
            piece += (name,)
            continue
        yield piece
        piece = ()
    yield piece


def _is_alone(name: str, module: nn.Module, mentioned: Counter[str]) -> bool:
    try:
        part = module.get_submodule(name)
    except AttributeError:
        return False
    ends = [k for k, letter in enumerate(name) if letter == "."]
    around = {name[:k] for k in ends}
    read = sum(n for m, n in mentioned.items() if m == name or m.startswith(f"{name}."))
    return is_builtin(part) and read == 1 and all(mentioned[outer] == 0 for outer in around)
