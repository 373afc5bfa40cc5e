"""Take out of a trace the part that lies in one module, as the graph of that module's forward.

Its arguments are what its callers pass; a module inside whose operations are left alone is called
as a whole.
"""

from __future__ import annotations

import inspect
import itertools
import operator
from collections import Counter
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from reparam.frontends.torch.cut import Everything
from reparam.frontends.torch.decisions import goes_another_way
from reparam.frontends.torch.frames import Frame, Key
from reparam.frontends.torch.guards import given, planned_for
from reparam.frontends.torch.running import is_literal
from reparam.frontends.torch.structures import Step, Unwritable, leaves, reach, rebuilt_for
from reparam.frontends.torch.told_sizes import Size
from reparam.frontends.torch.trace import Trace


def part_of(trace: Trace, path: str, inlined: set[str], cut: Everything | None = None) -> Trace:
    """Take the forward of one module out of a trace.

    Args:
        trace: A trace in which the module is called.
        path: Path of the module.
        inlined: Paths of the modules inside whose operations become part of this forward.
        cut: What of the trace is left; everything where it is not given.

    Raises:
        LookupError: It cannot be written as one forward; the message says why.

    """
    cut = cut or Everything()
    parts = [_Part(trace, f, inlined, cut) for f in trace.calls_of(path) if cut.runs(f)]
    if not parts:
        msg = "it is not called"
        raise Unwritable(msg)
    if any(part.code() != parts[0].code() for part in parts[1:]):
        msg = "it is called in several ways that do different things"
        raise Unwritable(msg)
    return parts[0].trace


class _Part:
    def __init__(self, trace: Trace, frame: Frame, inlined: set[str], cut: Everything) -> None:
        self._whole, self._frame, self._inlined, self._cut = trace, frame, inlined, cut
        self._path = frame.call.path
        self._graph = fx.Graph()
        self._made: dict[fx.Node, fx.Node] = {}
        self._reached: dict[fx.Node, tuple[fx.Node, tuple[Step, ...]]] = {}
        self._modules: dict[nn.Module, fx.Node] = {}
        self._counts: Counter[str] = Counter()
        self._buffers: set[str] = set()
        root = trace.root.get_submodule(self._path[len(trace.path) :].lstrip("."))
        self.trace = Trace(root, self._path, self._graph, {}, {})
        self._read_arguments()
        self._copy_items(frame)
        self._graph.output(rebuilt_for(self._graph, frame.result, self._returned))

    @cached_property
    def _own(self) -> dict[int, str]:
        """What the module holds, by identity: each by its first name."""
        root = self.trace.root
        found = [*root.named_modules(), *root.named_parameters(), *root.named_buffers()]
        return {id(what): name for name, what in reversed(found)}

    def code(self) -> list[str]:
        """What the forward does, to compare it with that of another call."""
        held = [f"{name}: {id(tensor)}" for name, tensor in self.trace.literals.items()]
        return held + [repr((n.op, n.target, n.args, n.kwargs)) for n in self._graph.nodes]

    # ------------------------------------------------------------------------ arguments

    def _read_arguments(self) -> None:
        """Make the inputs that forward has, and check what is passed as it was planned."""
        parameters = inspect.signature(self._frame.module.forward).parameters
        inputs = {name: self._input(p) for name, p in parameters.items()}
        for name, start in inputs.items():
            optional = parameters[name].default is not inspect.Parameter.empty
            value = self._frame.arguments.get(name, _absent(parameters[name]))
            if parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                names = self._graph.call_function(list, (start,))
                self._graph.call_function(planned_for, (names, list(value), f"names of {name}"))
            if optional and isinstance(value, fx.Proxy) and self._is_passed_tensor(value.node):
                self._graph.call_function(given, (start, name))
            for steps, leaf in leaves(value):
                self._read_leaf(name, start, steps, leaf)

    def _is_passed_tensor(self, node: fx.Node) -> bool:
        may_be = isinstance(self._whole.values.get(node, Tensor()), Tensor)
        return may_be and self._cut.is_passed(self._path, node)

    def _input(self, parameter: inspect.Parameter) -> fx.Node:
        stars: dict[Any, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        if parameter.default is parameter.empty:
            node = self._graph.placeholder(stars.get(parameter.kind, "") + parameter.name)
        else:
            default = rebuilt_for(self._graph, parameter.default, _nothing_traced)
            node = self._graph.placeholder(parameter.name, default_value=default)
        self.trace.keys[node] = Key(self._path, f"input {parameter.name}", 0, is_module=False)
        return node

    def _read_leaf(self, name: str, start: fx.Node, steps: tuple[Step, ...], leaf: Any) -> None:
        if isinstance(leaf, fx.Node):
            self._reached.setdefault(leaf, (start, steps))
        elif isinstance(leaf, nn.Module):
            self._modules.setdefault(leaf, reach(self._graph, start, steps))
        else:
            literal = rebuilt_for(self._graph, leaf, _nothing_traced)
            value = reach(self._graph, start, steps)
            self._graph.call_function(planned_for, (value, literal, name))

    # ------------------------------------------------------------------------ operations

    def _copy_items(self, frame: Frame) -> None:
        for item in frame.items:
            if not self._cut.runs(item):
                continue
            if isinstance(item, Frame):
                if item.call.path in self._inlined:
                    self._copy_items(item)
                else:
                    self._call(item)
            elif item.op != "get_attr":
                self._copy(item)

    def _copy(self, node: fx.Node) -> None:
        sizes = self._cut.sizes(node)
        if sizes is not None:
            self._made[node] = self._size_read(node, sizes)
            return
        decision = self._whole.decisions.get(node)
        if decision is not None and decision.is_open and not self._cut.goes_one_way:
            raise Unwritable(goes_another_way(decision.place))
        args = rebuilt_for(self._graph, tuple(node.args), self._node_of)
        if decision is not None and isinstance(decision.taken, bool):
            args = (self._graph.call_function(operator.truth, args[:1]), decision.taken, args[2])
        kwargs = rebuilt_for(self._graph, dict(node.kwargs), self._node_of)
        called = self._whole.module(node) if node.op == "call_module" else None
        if called in self._modules:
            made = self._graph.call_function(operator.call, (self._modules[called], *args), kwargs)
        elif node.op == "call_module":
            made = self._graph.call_module(self._relative(str(node.target), called), args, kwargs)
        else:
            made = self._graph.create_node(node.op, node.target, args, kwargs)
        self._made[node] = made
        self.trace.keys[made] = self._whole.keys[node]

    def _size_read(self, node: fx.Node, sizes: tuple[Size, ...]) -> Any:
        """Read the sizes of a value that is gone where they are found as well."""
        if node.target is getattr and node.args[1] != "shape":
            other = next(size[0] for size in sizes if not isinstance(size, int))
            return self._graph.call_function(getattr, (self._node_of(other), node.args[1]))
        asked = [axis for axis in node.args[1:] if isinstance(axis, int)]
        found = [
            size
            if isinstance(size, int)
            else self._graph.call_method("size", (self._node_of(size[0]), size[1]))
            for size in (sizes[axis] for axis in asked or range(len(sizes)))
        ]
        return found[0] if asked else tuple(found)

    def _call(self, frame: Frame) -> None:
        """Call a module as a whole."""
        path = frame.call.path
        args, kwargs = _call_of(frame)

        def handed(value: fx.Node | nn.Module) -> Any:
            return self._node_of(value) if self._is_passed(path, value) else None

        made = self._graph.call_module(
            self._below(path, frame.module),
            rebuilt_for(self._graph, args, handed),
            rebuilt_for(self._graph, kwargs, handed),
        )
        owner = path.rpartition(".")[0]
        self.trace.keys[made] = Key(owner, path, self._counts[path], is_module=True)
        self._counts[path] += 1
        for steps, leaf in leaves(frame.result):
            if isinstance(leaf, fx.Node):
                self._made.pop(leaf, None)
                self._reached[leaf] = (made, steps)

    # ------------------------------------------------------------------------ values

    def _is_passed(self, path: str, value: fx.Node | nn.Module) -> bool:
        return isinstance(value, nn.Module) or self._cut.is_passed(path, value)

    def _returned(self, value: fx.Node | nn.Module) -> Any:
        """What is returned in the place of a value; a caller has what is stored itself."""
        outermost = self._path == self._whole.path
        return self._node_of(value) if outermost or self._is_passed(self._path, value) else None

    def _node_of(self, value: fx.Node | nn.Module) -> Any:
        if isinstance(value, nn.Module):
            return self._module(value)
        if self._cut.is_stored(self._path, value):
            return self._stored(value, self._cut.value_of(value))
        if value not in self._made:
            if value in self._reached:
                self._made[value] = reach(self._graph, *self._reached[value])
            elif is_literal(value):
                self._made[value] = self._graph.get_attr(self._literal(value))
                self.trace.keys[self._made[value]] = self._whole.keys[value]
            elif value.op == "get_attr":
                stored = operator.attrgetter(str(value.target))(self._whole.root)
                made = self._graph.get_attr(self._relative(str(value.target), stored))
                self.trace.keys[made] = self._whole.keys[value]
                self._made[value] = made
            else:
                msg = f"it reads {value.name}, which is none of its arguments"
                raise Unwritable(msg)
        return self._made[value]

    def _literal(self, node: fx.Node) -> str:
        """Name a tensor that no module holds, to be stored in this one."""
        tensor = getattr(self._whole.root, str(node.target))
        for number in itertools.count(1):
            name = f"constant{number}"
            free = not hasattr(self.trace.root, name)
            if free and self.trace.literals.setdefault(name, tensor) is tensor:
                return name
        raise AssertionError  # there is always another number

    def _stored(self, node: fx.Node, value: Any) -> Any:
        """Write a value that is known for good."""
        if type(value) in {list, tuple}:
            return type(value)(self._stored(node, part) for part in value)
        if not isinstance(value, Tensor):
            return rebuilt_for(self._graph, value, _nothing_traced)
        name = self._cut.store(self._path, node, value, self._buffers)
        made = self._graph.get_attr(name)
        self.trace.keys[made] = Key(self._path, f"get_attr:{name}()", 0, is_module=False)
        return made

    def _module(self, module: nn.Module) -> fx.Node:
        if module in self._modules:
            return self._modules[module]
        names = {m: name for name, m in self._whole.root.named_modules()}
        name = self._relative(names[module], module)
        if not name:
            msg = "it hands on itself"
            raise Unwritable(msg)
        return self._graph.get_attr(name)

    def _relative(self, target: str, what: object) -> str:
        """A name in the whole trace as one in this module."""
        whole = f"{self._whole.path}.{target}" if self._whole.path else target
        return self._below(whole, what)

    def _below(self, path: str, what: object) -> str:
        """The name here of what has that path, or, where modules share it, of its own."""
        if not self._path:
            return path
        if path.startswith(f"{self._path}."):
            return path[len(self._path) + 1 :]
        if id(what) in self._own:
            return self._own[id(what)]
        msg = f"it reads {path}, which lies outside of it"
        raise Unwritable(msg)


def _call_of(frame: Frame) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        signature = inspect.signature(frame.module.forward)
        bound = inspect.BoundArguments(signature, dict(frame.arguments))
    except (TypeError, ValueError):
        starred = [v for n, v in frame.arguments.items() if n.startswith("*")]
        return tuple(starred), {n: v for n, v in frame.arguments.items() if not n.startswith("*")}
    return bound.args, bound.kwargs


def _absent(parameter: inspect.Parameter) -> Any:
    """What a parameter is that no argument is given for."""
    empty: dict[Any, Any] = {parameter.VAR_POSITIONAL: (), parameter.VAR_KEYWORD: {}}
    return empty.get(parameter.kind, parameter.default)


def _nothing_traced(value: Any) -> Any:
    msg = f"a {type(value).__name__} cannot be written into its code"
    raise Unwritable(msg)
