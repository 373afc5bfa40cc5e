"""Record what a model does in one run of its forward on symbolic values.

Beside every value stands what it is for the example, on the ``meta`` device, where shapes are known
and numbers are not. Code that asks for a plain value (``if``, ``len``, ``int``, a loop) gets that
of the example, and the question is noted as a :class:`Decision`.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam._support.modules import wrapped
from reparam.frontends.hosted import is_hosted
from reparam.frontends.kinds import AnyNorm
from reparam.frontends.torch.builtin import is_builtin, is_compiled
from reparam.frontends.torch.containers import Maker, is_special
from reparam.frontends.torch.decisions import (
    Decision,
    Level,
    Place,
    caller,
    raised_by_the_model,
    way_that_raises,
)
from reparam.frontends.torch.effects import FACTORIES, metadata_read, name_of
from reparam.frontends.torch.frames import (
    Call,
    Frame,
    Key,
    as_called,
    by_name,
    check_call,
    first_line,
    join,
)
from reparam.frontends.torch.guards import planned_for
from reparam.frontends.torch.proxies import (
    UNKNOWN,
    KnowingTracer,
    TracedValue,
    is_rank_check,
    taken_for_tensors,
)
from reparam.frontends.torch.recording import Factories, Recorder
from reparam.frontends.torch.repeated import Repeated
from reparam.frontends.torch.skeleton import named_tensors
from reparam.frontends.torch.structures import contents, leaves, put_back, snapshot
from reparam.frontends.torch.trial import Trial

_MOST_DECISIONS = 10_000
"""Decisions in one trace at the most: a loop that waits for the numbers in a tensor never ends."""

_ASSERT = torch._assert  # noqa: SLF001 (what models call, it has no other name)


class Tracer(KnowingTracer):
    """Trace one module.

    Attributes:
        frames: The calls of modules that are being recorded, outermost first.
        names: The name of every node.
        stacks: The module calls around every node, outermost first.
        decisions: What the code looked at, by the node that checks it.
        opaque: Paths of modules that could not be traced, each with the reason.
        recorder: The operators that the trace runs.
        known: Calls that need not be traced where they are made alike.

    """

    def __init__(
        self, path: str, original: nn.Module, bound: inspect.BoundArguments, opaque: dict[str, str],
        forced: dict[Place, bool], device: torch.device, positional: int = 0,
    ) -> None:  # fmt: skip
        """Prepare to trace.

        Args:
            path: Path of the module in the whole model.
            original: The module, which tracing leaves as it is: to run operations without numbers.
            bound: The arguments of forward; those tensors that are given become inputs. Values that
                are :class:`inspect.Parameter` become inputs of which nothing is known.
            opaque: Modules not to trace.
            forced: Ways to go, by place, whatever the values say.
            device: Where the example lies.
            positional: How many arguments are given by position.

        """
        super().__init__()
        self.proxy_buffer_attributes = True
        self.frames: list[Frame] = []
        self.names: dict[fx.Node, Key] = {}
        self.stacks: dict[fx.Node, tuple[Call, ...]] = {}
        self.decisions: dict[fx.Node, Decision] = {}
        self.opaque = dict(opaque)
        self.recorder = Recorder(on=False)
        self._path, self._original, self._bound = path, original, bound
        self._forced, self._device, self._positional = forced, device, positional
        self.known: Mapping[Call, Repeated] = {}
        self._levels: dict[fx.Node, Level] = {}
        self._calls: Counter[str] = Counter()
        self._targets: Counter[tuple[Call, str]] = Counter()
        self._tensors: dict[int, str] = {}
        self._evaluating = False

    def record(self, root: nn.Module) -> Frame:
        """Trace a module; its graph is ``self.graph`` afterwards."""
        tensors = named_tensors(root)
        self._tensors = {id(tensor): name for name, tensor in tensors.items()}
        self._trial = Trial(self._original, tensors, self._device, self.recorder)
        with torch.no_grad(), self.recorder, Factories(self.create_proxy), taken_for_tensors():
            self.trace(root)
        return self.frames[0]

    def forget(self) -> None:
        """Hold nothing any more: the values of a trace refer to their tracer, and that to all else.

        What the trace needs no more is gone then at once, without the garbage collector.
        """
        vars(self).clear()

    # ------------------------------------------------------------------------ what torch.fx calls

    def create_args_for_root(
        self, root_fn: Any, is_module: Any, concrete_args: Any = None
    ) -> tuple[Callable[[], Any], list[Any]]:
        """Make the inputs; torch.fx calls what is returned."""
        del root_fn, is_module, concrete_args  # known from the start
        root: Any = self.root
        inputs = {name: self._inputs(name, v) for name, v in self._bound.arguments.items()}
        args, kwargs = as_called(self._bound.signature, inputs, self._positional)
        frame = self._enter(root, self._path, snapshot(inputs))

        def run() -> Any:
            frame.result = root.forward(*args, **kwargs)
            return tuple(leaf for _, leaf in leaves(frame.result) if isinstance(leaf, fx.Node))

        return run, []

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Record a call: as one operation, or as what happens inside."""
        name = None if self._evaluating else (self.submodule_paths or {}).get(m)
        if name is None:
            return forward(*args, **kwargs)  # without numbers, or a module made in a forward
        check_call(m, args, kwargs)
        path = join(self._path, name)
        if is_compiled(m):
            self.opaque.setdefault(path, "it is TorchScript, whose Python code is gone")
        inner = wrapped(m)
        if path in self.opaque or (inner is None and is_builtin(m)):
            return self.create_proxy("call_module", name, args, kwargs)
        arguments = by_name(m, *snapshot((args, kwargs)))
        known = self.known.get(Call(path, self._calls[path]))
        if known is not None and self._repeats(known, arguments):
            return self.create_proxy("call_function", known, args, kwargs)
        forward = forward if inner is None else inner
        return self._call_inside(m, name, forward, args, kwargs, arguments)

    def _call_inside(
        self, m: nn.Module, name: str, forward: Callable[..., Any], args: Any,
        kwargs: dict[str, Any], arguments: dict[str, Any],
    ) -> Any:  # fmt: skip
        """Record a call as what happens inside, or as one operation where that cannot be traced."""
        path = join(self._path, name)
        before = contents((args, kwargs))
        frame = self._enter(m, path, arguments)
        try:
            result = forward(*args, **kwargs)
            frame.result = snapshot(result)
            for _ in leaves(result):
                pass  # attributes become nodes when they are first looked at: now
        except Exception as error:
            if raised_by_the_model(error) and self._forced:
                raise
            self._undo(frame)
            self.opaque[path] = first_line(error)
        else:
            if not (is_hosted(m) and self._is_open(frame)):
                self.frames.pop()
                return result
            self._undo(frame)  # a convolution that pads by the size of its input runs as it is
        put_back(before)  # what cannot be traced may have changed the lists that it was given
        return self.create_proxy("call_module", name, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:  # noqa: ARG002
        """Read a parameter or buffer as a symbolic value, once in each call of a module."""
        name = self._tensors.get(id(attr_val))
        if name is None or self._evaluating or not isinstance(attr_val, Tensor):
            return attr_val
        read = self.frames[-1].read
        if name not in read:
            read[name] = self.create_proxy("get_attr", name, (), {})
        return read[name]

    def create_arg(self, a: Any) -> Any:
        """Write an argument into a node; objects that torch.fx does not know stay as they are."""
        if type(a) is tuple:
            return tuple([self.create_arg(part) for part in a])
        if _is_traced(a):
            return a.node
        if type(a) in _WRITTEN_AS_THEY_ARE or isinstance(a, nn.Module):
            return a
        if is_special(a):  # its class is kept
            parts = tuple(self.create_arg(part) for part in Maker.parts(a))
            return self.create_node("call_function", Maker.of(a), parts, {})
        try:
            return super().create_arg(a)
        except NotImplementedError:
            return a

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node, name it, and say what it is for the example."""
        node = super().create_node(kind, target, *args, **kwargs)
        if not self.frames:
            return node
        owner = self.frames[-1].call
        is_module = kind == "call_module"
        named = join(self._path, str(target)) if is_module else self._signature(kind, target, node)
        number = self._targets[owner, named]
        self._targets[owner, named] += 1
        self.names[node] = Key(owner.path, named, number, is_module)
        self.stacks[node] = tuple(frame.call for frame in self.frames)
        if kind not in {"placeholder", "output"}:
            self.frames[-1].items.append(node)
            self._evaluate(node)
            self._levels[node] = self._level_of(node)
        return node

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **rest: Any
    ) -> Any:
        """Record an operation; what is the same in every call comes back as a plain value."""
        if self._evaluating:  # inside a module that is not traced
            return target(*args, **{**kwargs, "device": "meta"})
        in_norm = isinstance(self.frames[-1].module, AnyNorm)
        if in_norm and target is _ASSERT and is_rank_check(args[0]):
            return None  # what it is folded into, or it itself, says the same
        node = self.create_node(
            kind, target, self.create_arg(args), self.create_arg(kwargs), *more, **rest
        )
        proxy = TracedValue(node, self)
        value = self.values.get(node, UNKNOWN)
        plain = isinstance(value, bool | int | float | torch.Size)
        if plain and self._levels.get(node, Level.DATA) is Level.CONSTANT:
            self._forget([node])
            return value
        if plain and self._levels.get(node) is Level.KIND and not isinstance(value, torch.Size):
            return self._look(node, value, caller(), Level.KIND)
        return proxy

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decide an ``if``."""
        place = caller()
        raising = way_that_raises(place)
        outcome = self._forced.get(place)
        if outcome is None:
            try:
                outcome = bool(self.values[obj.node])
            except Exception:  # noqa: BLE001 (not known, or a tensor without numbers)
                outcome = raising is not True
        level = self._levels.get(obj.node, Level.DATA)
        self._look(obj.node, outcome, place, level, other_raises=raising is (not outcome))
        return outcome

    # ------------------------------------------------------------------------ what values ask

    def plain(self, kind: str, target: Callable[..., Any], obj: fx.Proxy) -> Any:
        """The number that the code of a model makes of a value."""
        made = self.create_proxy(kind, target, (obj,), {})
        if not _is_traced(made):
            return made
        value = self.values.get(made.node, UNKNOWN)
        if not isinstance(value, bool | int | float):
            self._forget([made.node])  # whoever asked may go on without an answer
            msg = f"{getattr(target, '__name__', target)} of a value that only a run can tell"
            raise fx.proxy.TraceError(msg)
        if isinstance(self.values.get(obj.node), bool):
            return target(self.to_bool(obj))
        return self._look(made.node, value, caller(), self._levels[made.node])

    # ------------------------------------------------------------------------ internals

    def _inputs(self, name: str, value: Any) -> Any:
        """Replace the tensors of an argument by inputs."""
        if isinstance(value, inspect.Parameter):
            return self._input(name, UNKNOWN)
        if isinstance(value, Tensor):
            return self._input(name, value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            default = self._bound.signature.parameters[name].default
            return value if value == default else self._input(name, value)
        if type(value) in {list, tuple}:
            return type(value)(self._nested(name, k, part) for k, part in enumerate(value))
        if isinstance(value, dict):
            return {k: self._nested(name, k, part) for k, part in value.items()}
        return value

    def _nested(self, name: str, key: Any, value: Any) -> Any:
        name = f"{name}_{key}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self._input(name, value)
        if isinstance(value, Tensor | list | tuple | dict | inspect.Parameter):
            return self._inputs(name, value)
        return value

    def _input(self, name: str, value: Any) -> Any:
        clean = name if name.isidentifier() else "input"
        made = TracedValue(self.graph.create_node("placeholder", clean), self)
        self.names[made.node] = Key(self._path, f"placeholder:{name}()", 0, is_module=False)
        self.stacks[made.node] = (Call(self._path, 0),)
        self._levels[made.node] = Level.DATA if isinstance(value, Tensor) else Level.ARGUMENT
        if value is not UNKNOWN:
            self.values[made.node] = value.to("meta") if isinstance(value, Tensor) else value
        else:
            self._levels[made.node] = Level.DATA
        return made

    def _enter(self, module: nn.Module, path: str, arguments: dict[str, Any]) -> Frame:
        for _ in leaves(arguments):
            pass  # attributes become nodes when they are first looked at: before the call
        frame = Frame(Call(path, self._calls[path]), module, arguments)
        self._calls[path] += 1
        if self.frames:
            self.frames[-1].items.append(frame)
        self.frames.append(frame)
        return frame

    def _repeats(self, known: Repeated, arguments: dict[str, Any]) -> bool:
        """Whether a call does what is known of it already; if so, count the calls in it."""
        calls = [frame.call for frame in known.frame.all_calls()]
        first: dict[str, int] = {}
        for call in calls:
            first.setdefault(call.path, call.number)
        counted = all(self._calls[path] == number for path, number in first.items())
        if not counted or not known.fits(arguments, self.values):
            return False
        self._calls.update(call.path for call in calls)
        return True

    def _is_open(self, frame: Frame) -> bool:
        return any(n in self.decisions and self.decisions[n].is_open for n in frame.nodes())

    def _undo(self, frame: Frame) -> None:
        """Forget a call that cannot be traced."""
        while self.frames.pop() is not frame:
            pass
        self.frames[-1].items.remove(frame)
        self._forget(list(frame.nodes()))

    def _forget(self, nodes: list[fx.Node]) -> None:
        for node in reversed(nodes):
            if node in self.frames[-1].items:
                self.frames[-1].items.remove(node)
            for table in (self.names, self.stacks, self.values, self._levels, self.decisions):
                table.pop(node, None)
            self.graph.erase_node(node)

    def _look(
        self, node: fx.Node, value: Any, place: Place, level: Level, *, other_raises: bool = False
    ) -> Any:
        """Note that the code has looked at a value, and write a check of it into the graph."""
        if level is not Level.CONSTANT:
            if len(self.decisions) > _MOST_DECISIONS:
                msg = f"it looks at traced values more than {_MOST_DECISIONS} times"
                raise fx.proxy.TraceError(msg)
            what = str(node.target if isinstance(node.target, str) else node.name)
            check = self.create_node("call_function", planned_for, (node, value, what), {})
            self.decisions[check] = Decision(place, level, value, other_raises)
        return value

    def _evaluate(self, node: fx.Node) -> None:
        """Run an operation without numbers."""
        if node.target is planned_for or not all(n in self.values for n in node.all_input_nodes):
            return
        self._evaluating = self.recorder.on = True
        try:
            self.values[node] = self._trial.run(node, self.values)
        except Exception:  # noqa: BLE001, S110 (it needs numbers: nothing is known of it)
            pass
        finally:
            self._evaluating = self.recorder.on = False

    def _level_of(self, node: fx.Node) -> Level:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (node.target in FACTORIES and not inputs):
            return Level.CONSTANT
        below = max((self._levels.get(n, Level.DATA) for n in inputs), default=Level.DATA)
        if node.target is len and isinstance(self.values.get(inputs[0]), torch.Size):
            return min(below, Level.KIND)
        read = metadata_read(node)
        return min(below, {"kind": Level.KIND, "shape": Level.SIZE}.get(read or "", Level.DATA))

    def _signature(self, kind: str, target: Any, node: fx.Node) -> str:
        """Tell operations of one kind apart by the parameters and literals that they read.

        Calls of one module with different arguments share what is the same in them; the literals
        keep arithmetic on sizes from being counted among the operations on tensors.
        """
        reads = []
        for _, value in leaves((node.args, node.kwargs)):
            if isinstance(value, fx.Node):
                known = value.op == "get_attr"
                reads.append(join(self._path, str(value.target)) if known else "*")
            else:
                reads.append(repr(value))
        return f"{kind}:{name_of(target)}({', '.join(reads)})"


def _is_traced(value: object) -> bool:
    return issubclass(type(value), fx.Proxy)


_WRITTEN_AS_THEY_ARE = frozenset({
    str, int, float, bool, type(None), fx.Node, torch.dtype, torch.device,
})  # fmt: skip
