"""Read an exported program (``torch.export``) as a trace, so that it is lifted like any other.

Parameters and buffers become reads of attributes, and the operators of ATen the functions of torch
that they came from, which the rules for single operations know. Every node of the trace remembers
the node of the program that it stands for.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.nn import functional as F

from reparam.frontends.torch.frames import Call, Key
from reparam.frontends.torch.rules import function_called, has_method
from reparam.frontends.torch.trace import Trace

Word = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""What a node of the trace calls: a function, or a method by its name, and the arguments."""


@dataclass(eq=False)
class Reading:
    """An exported program as a trace.

    Attributes:
        program: The program; it is only read.
        trace: The trace.
        reader: By node of the trace, the node of the program that reads its inputs.
        value: By node of the trace, the node of the program whose value it is.
        stored: By name of an input of the program, the tensor that it holds.

    """

    program: ExportedProgram
    trace: Trace
    reader: dict[fx.Node, fx.Node]
    value: dict[fx.Node, fx.Node]
    stored: dict[str, Tensor]


def read_program(program: ExportedProgram) -> Reading:
    """Read a program as a trace."""
    return _Reader(program).reading


def stored_in(program: ExportedProgram) -> dict[str, Tensor]:
    """By name of an input, the parameter, buffer or constant that it stands for."""
    return {
        spec.arg.name: value
        for spec in program.graph_signature.input_specs
        if (value := _stored(program, spec)) is not None
    }


def _stored(program: ExportedProgram, spec: InputSpec) -> Tensor | None:
    if spec.kind is InputKind.USER_INPUT or spec.target is None:
        return None
    value = program.state_dict.get(spec.target)
    value = program.constants.get(spec.target) if value is None else value
    return value if isinstance(value, Tensor) else None


def path_of(node: fx.Node) -> str:
    """Path of the module that a node was exported from."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((str(path) for path, _ in reversed(stack.values())), "")
    return (path.partition("L['self'].")[2] or path).removeprefix("L['self']")


class _Reader:
    def __init__(self, program: ExportedProgram) -> None:
        root, graph = nn.Module(), fx.Graph()
        trace = Trace(root, "", graph, {}, {})
        self.reading = Reading(program, trace, {}, {}, stored_in(program))
        self._graph, self._root = graph, root
        self._of: dict[fx.Node, fx.Node] = {}
        changed = program.graph_signature.buffers_to_mutate.values()
        self._changed = {
            spec.arg.name
            for spec in program.graph_signature.input_specs
            if spec.target in set(changed)
        }
        for node in program.graph.nodes:
            self._read(node, program.graph_module)

    def _read(self, node: fx.Node, module: fx.GraphModule) -> None:
        if node.op == "placeholder":
            made = self._input(node)
        elif node.op == "get_attr":
            vars(self._root)[node.name] = getattr(module, str(node.target))
            made = self._graph.get_attr(node.name)
        elif node.op == "output":
            made = self._graph.output(self._known(node.args[0]))
        elif node.target is operator.getitem and node.args[0] in self._of and self._is_norm(node):
            made = self._of[node.args[0]]  # type: ignore[index]
            self._of[node] = made
            self.reading.value[made] = node
            return
        else:
            target, args, kwargs = _word(node)
            kind = "call_method" if isinstance(target, str) else "call_function"
            args, kwargs = self._known(args), self._known(kwargs)
            made = self._graph.create_node(kind, target, args, kwargs)
        self._name(node, made)

    def _input(self, node: fx.Node) -> fx.Node:
        stored = self.reading.stored.get(node.name)
        if stored is None or node.name in self._changed:
            return self._graph.placeholder(node.name)
        vars(self._root)[node.name] = stored
        return self._graph.get_attr(node.name)

    def _name(self, node: fx.Node, made: fx.Node) -> None:
        self._of[node] = made
        self.reading.reader[made] = self.reading.value[made] = node
        trace, path = self.reading.trace, path_of(node)
        trace.keys[made] = Key(path, node.name, 0, is_module=False)
        ends = [k for k, letter in enumerate(path) if letter == "."]
        around = ["", *(path[:k] for k in ends), *([path] if path else [])]
        trace.stacks[made] = tuple(Call(each, 0) for each in around)
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            trace.values[made] = value

    def _is_norm(self, item: fx.Node) -> bool:
        """Whether an item is the result of a norm that the trace holds as one value."""
        made = self._of[item.args[0]]  # type: ignore[index]
        return made.target is F.batch_norm and bool(item.args[1] == 0)

    def _known(self, value: Any) -> Any:
        return fx.map_arg(value, self._of.__getitem__)


def _args(node: fx.Node) -> Any:
    """The arguments of a node, without their recursive type, over which mypy finds no end."""
    return node.args


def _word(node: fx.Node) -> Word:
    """What an operator of ATen is called in torch."""
    target, args, kwargs = node.target, _args(node), dict(node.kwargs)
    if not isinstance(target, OpOverload):
        return target, args, kwargs
    schema = target._schema  # noqa: SLF001 (the only way to see what an operator does)
    space, _, name = schema.name.partition("::")
    if space != "aten":
        return target, args, kwargs
    special = _SPECIAL.get(name)
    word = special(node) if special is not None else None
    if word is not None:
        return word
    first = schema.arguments[0] if schema.arguments else None
    shares = first is not None and first.alias_info is not None
    if not shares and (function := function_called(name.removeprefix("_"))) is not None:
        return function, args, kwargs
    return (_METHODS.get(name, name) if shares or has_method(name) else target), args, kwargs


_METHODS = {"alias": "contiguous", "sym_size": "size"}
"""Methods that do what an operator does that returns its input, or reads it."""


def _convolution(node: fx.Node) -> Word | None:
    x, weight, bias, stride, padding, dilation, transposed, more, groups = _args(node)
    rank = _rank(weight)
    if rank is None or not 3 <= rank <= 5:
        return None
    if not transposed:
        function: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 3]
        return function, (x, weight, bias, stride, padding, dilation, groups), {}
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 3]
    return function, (x, weight, bias, stride, padding, more, groups, dilation), {}


def _batch_norm(node: fx.Node) -> Word | None:
    x, weight, bias, mean, var, training, momentum, eps, *_ = _args(node)
    return F.batch_norm, (x, mean, var, weight, bias, training, momentum, eps), {}


def _batch_norm_in_eval(node: fx.Node) -> Word | None:
    x, weight, bias, mean, var, momentum, eps = _args(node)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        return None
    return F.batch_norm, (x, mean, var, weight, bias, False, momentum, eps), {}


def _native_batch_norm(node: fx.Node) -> Word | None:
    word = _batch_norm(node)
    outside = any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users)
    return None if outside or node.args[5] is not False else word


def _product_with_weight(node: fx.Node) -> Word | None:
    """``bias + x @ weight.T``, which is what a linear layer becomes in core ATen."""
    bias, x, turned = _args(node) if len(node.args) == 3 else (None, *_args(node))
    if node.kwargs or not isinstance(turned, fx.Node) or (bias is not None and _rank(bias) != 1):
        return None
    name = str(turned.target)
    plain = name.startswith("aten.t.") or (
        name.startswith(("aten.permute.", "aten.transpose."))
        and (_args(turned)[1:] in {(0, 1), (1, 0)} or list(_args(turned)[1]) == [1, 0])
    )
    if not plain or _rank(turned) != 2:
        return None
    return F.linear, (x, _args(turned)[0], bias), {}


def _zero_pad(node: fx.Node) -> Word | None:
    x, pads, *value = _args(node)
    return F.pad, (x, pads, "constant", *value), {}


def _slice(node: fx.Node) -> Word | None:
    names = ("self", "dim", "start", "end", "step")
    given: dict[str, Any] = {**dict(zip(names, _args(node), strict=False)), **node.kwargs}
    dim: Any = given.get("dim", 0)
    start, end, step = given.get("start"), given.get("end"), given.get("step", 1)
    if not all(n is None or isinstance(n, int) for n in (dim, start, end, step)) or dim < 0:
        return None
    part = slice(start or None, None if end is None or end >= sys.maxsize else end)
    part = part if step == 1 else slice(part.start, part.stop, step)
    return operator.getitem, (given["self"], (*(slice(None),) * dim, part)), {}


def _method(name: str) -> Callable[[fx.Node], Word]:
    return lambda node: (name, _args(node), dict(node.kwargs))


_SPECIAL: dict[str, Callable[[fx.Node], Word | None]] = {
    "convolution": _convolution,
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm_in_eval,
    "native_batch_norm": _native_batch_norm,
    "cudnn_batch_norm": _native_batch_norm,
    "addmm": _product_with_weight,
    "mm": _product_with_weight,
    "constant_pad_nd": _zero_pad,
    "slice": _slice,
    "sym_size": _method("size"),
    "clone": _method("clone"),
    "contiguous": _method("contiguous"),
    "reshape": _method("reshape"),
}


def _rank(value: Any) -> int | None:
    known = value.meta.get("val") if isinstance(value, fx.Node) else None
    return known.dim() if isinstance(known, Tensor) else None
