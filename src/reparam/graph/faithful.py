"""Compare a trace with eager execution, before anything is believed of it.

``isinstance(x, Tensor)`` is false for a proxy, ``torch.rand`` without a proxy becomes a constant: a
trace can be wrong without any error. So the module and its trace are both run on tensors without
numbers (the ``meta`` device), and the sequences of operators that reach the dispatcher are
compared; that costs no arithmetic. Where a module cannot run without numbers, both are run with
random ones and their outputs are compared.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from reparam.graph.arguments import CONVOLUTIONS, bind
from reparam.graph.builtin import is_builtin
from reparam.graph.constants import Constants
from reparam.graph.kinds import AnyConv
from reparam.graph.running import Arguments as Call
from reparam.graph.running import bind_inputs, run_until
from reparam.graph.skeleton import on_meta, runnable_copy
from reparam.graph.trace import Key, Trace

__all__ = [
    "Outcome",
    "Report",
    "capture_calls",
    "compare",
    "guess_calls",
    "guess_for_module",
    "with_numbers",
]

_SIZES = {1: (32, 64, 224, 256), 2: (32, 64, 224, 256), 3: (16, 24, 32, 64)}
"""Spatial sizes to try where no example is given, by number of spatial dimensions."""
_ATTEMPTS = 4
_RTOL = 1e-4


class Outcome(enum.Enum):
    """What a comparison says."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Report:
    """What a comparison says.

    Attributes:
        outcome: Whether the trace does what the module does.
        why: The reason, where it does not or where that is not known.
        ranks: Number of dimensions of every value of the trace.
        call: The arguments of the run, where there was one.

    """

    outcome: Outcome
    why: str = ""
    ranks: dict[Key, int] = field(default_factory=dict)
    call: Call | None = None


def compare(traced: Trace, calls: list[Call]) -> Report:
    """Compare a trace with its module on the first of the calls that the module accepts."""
    why = "no example of its inputs is known; pass example_inputs"
    for call in calls:
        report = _compare_once(traced, call)
        if report.outcome is not Outcome.UNKNOWN:
            return replace(report, call=call)
        why = report.why
    return Report(Outcome.UNKNOWN, why)


def capture_calls(model: nn.Module, call: Call) -> dict[str, Call]:
    """Run a model once and note the arguments of the first call of every module inside."""
    for twin, arguments in _twins(model, call):
        seen: dict[str, Call] = {}
        handles = [
            module.register_forward_pre_hook(_noting(seen, name), with_kwargs=True)
            for name, module in twin.named_modules()
            if not is_builtin(module)
        ]
        try:
            with torch.no_grad():
                twin(*arguments[0], **arguments[1])
        except Exception:  # noqa: BLE001, S112 (any error of the user's model: the next twin)
            continue
        finally:
            for handle in handles:
                handle.remove()
        return seen
    return {}


def guess_calls(traced: Trace) -> list[Call]:
    """Make up arguments for a traced module from the layers that read its inputs."""
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    inputs = [n for n in placeholders if n.users and not n.args]  # those without a default
    guesses: list[Call] = []
    for attempt in range(_ATTEMPTS):
        arguments: dict[str, Tensor] = {}
        for node in sorted(inputs, key=lambda n: _guess_shape(traced, n, attempt) is None):
            shape = _guess_shape(traced, node, attempt) or _met_shape(traced, node, arguments)
            if shape is None:
                return []
            arguments[str(node.target)] = torch.empty(
                shape, dtype=_dtype(traced.root), device="meta"
            )
        arguments = {str(node.target): arguments[str(node.target)] for node in inputs}
        if inputs == placeholders[: len(inputs)]:
            # By position, since a layer that takes the place of a block has other names.
            guesses.append((tuple(arguments.values()), {}))
        elif all(name.isidentifier() for name in arguments):
            guesses.append(((), arguments))
    return guesses


def guess_for_module(module: nn.Module) -> Call | None:
    """Make up an input for a module that cannot be traced, from the first layer in it."""
    for layer in module.modules():
        shape = _shape_for_module(layer, 0)
        if shape is not None:
            return (torch.empty(shape, dtype=_dtype(module), device="meta"),), {}
    return None


def _compare_once(traced: Trace, call: Call) -> Report:
    try:
        twin = on_meta(traced.root)
        arguments = _to_meta(call)
        with torch.no_grad(), _Recorder() as eager:
            twin(*arguments[0], **arguments[1])
    except Exception as error:  # noqa: BLE001 (a model may need numbers, or other inputs)
        return _compare_numbers(traced, call, error)
    watcher = _Watcher(twin, traced)
    try:
        with torch.no_grad(), _Recorder() as replayed:
            watcher.call(arguments)
    except Exception as error:  # noqa: BLE001 (the trace does not run: it is not faithful)
        return Report(Outcome.DIFFERENT, f"its trace fails where the module runs ({error})")
    if eager.operators == replayed.operators:
        return Report(Outcome.EQUAL, ranks=watcher.ranks)
    return _compare_numbers(traced, call, None, watcher.ranks)


def _compare_numbers(
    traced: Trace, call: Call, error: Exception | None, ranks: dict[Key, int] | None = None
) -> Report:
    """Compare outputs on random numbers, where comparing operators was not conclusive."""
    twin = runnable_copy(traced.root)
    arguments = with_numbers(call)
    watcher = _Watcher(twin, traced)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            expected = twin(*_clone(arguments)[0], **_clone(arguments)[1])
            found = watcher.call(_clone(arguments))
    except Exception as second:  # noqa: BLE001 (any error of the user's model)
        return Report(
            Outcome.UNKNOWN, f"it does not run on the inputs at hand ({_line(error or second)})"
        )
    if _close(expected, found):
        return Report(Outcome.EQUAL, ranks=ranks or watcher.ranks)
    return Report(Outcome.DIFFERENT, "its trace returns other values than the module itself")


class _Recorder(TorchDispatchMode):
    """Note every operator with the shapes it returns and its plain arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[tuple[str, Any, Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = _batch_norm_shapes(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        flat, _ = tree_flatten(result)
        shapes = tuple(tuple(t.shape) for t in flat if isinstance(t, Tensor))
        plain, _ = tree_flatten((args, kwargs))
        literals = tuple(repr(v) for v in plain if isinstance(v, int | float | bool))
        self.operators.append((str(func), shapes, literals))
        return result


def _batch_norm_shapes(func: Any, args: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
    """Shapes of a BN in eval mode without numbers; torch derives them by a slow decomposition."""
    if "batch_norm" not in str(func) or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    if any(value is True for value in args):
        return None
    schema = func._schema  # noqa: SLF001 (the only way to see what an operator returns)
    if len(schema.returns) != 3:
        return None
    x = args[0]
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


class _Watcher(fx.Interpreter):
    """Run a trace on a twin of its module and note the number of dimensions of every value."""

    def __init__(self, twin: nn.Module, traced: Trace) -> None:
        super().__init__(twin, graph=traced.graph, garbage_collect_values=True)
        self._traced = traced
        self.ranks: dict[Key, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.ranks[self._traced.keys[n]] = result.dim()
        return result

    def call(self, arguments: Call) -> Any:
        """Run with positional and keyword arguments, as the module is called."""
        return self.run(*bind_inputs(self.graph, arguments).values())


def _twins(model: nn.Module, call: Call) -> Iterator[tuple[nn.Module, Call]]:
    yield on_meta(model), _to_meta(call)
    yield runnable_copy(model), with_numbers(call)


def _noting(seen: dict[str, Call], name: str) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.setdefault(name, (args, kwargs))

    return hook


def _guess_shape(traced: Trace, node: fx.Node, attempt: int) -> tuple[int, ...] | None:
    """Shape of an input, from the first layer that reads it (through what keeps the shape)."""
    queue, seen = [node], {node}
    while queue:
        for reader in queue.pop(0).users:
            found = _shape_for(traced, reader, attempt)
            if found is not None:
                return found
            if reader not in seen:
                seen.add(reader)
                queue.append(reader)
    return None


def _met_shape(traced: Trace, node: fx.Node, known: dict[str, Tensor]) -> tuple[int, ...] | None:
    """Shape of an input, from a value that an operation reads beside it."""
    twin = on_meta(traced.root)
    queue, seen = [node], {node}
    while queue:
        for reader in queue.pop(0).users:
            for other in reader.all_input_nodes:
                if other in seen:
                    continue
                try:
                    value = run_until(other, twin, ((), known))
                except Exception:  # noqa: BLE001, S112 (any error of the user's: not this one)
                    continue
                if isinstance(value, Tensor) and value.dim() > 1:
                    return tuple(value.shape)
            if reader not in seen:
                seen.add(reader)
                queue.append(reader)
    return None


def _spatial(dims: int, attempt: int) -> tuple[int, ...]:
    return (_SIZES[dims][attempt],) * dims


def _shape_for(traced: Trace, reader: fx.Node, attempt: int) -> tuple[int, ...] | None:
    if reader.op == "call_module":
        return _shape_for_module(traced.module(reader), attempt)
    if reader.op == "call_function" and reader.target in CONVOLUTIONS:
        return _shape_for_function(traced, reader, attempt)
    return None


def _shape_for_module(module: Any, attempt: int) -> tuple[int, ...] | None:
    if isinstance(module, AnyConv):
        return (2, module.in_channels, *_spatial(module.weight.dim() - 2, attempt))
    dims = {nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}.get(type(module))
    if dims is not None:
        return (2, module.num_features, *_spatial(dims, attempt))
    if type(module) is nn.BatchNorm1d:
        return (2, module.num_features, *([16] if attempt % 2 == 0 else []))
    if isinstance(module, nn.Linear):
        width = module.in_features
        # Vectors, tokens, images that become tokens, and images with their channels last.
        return ((2, width), (2, 16, width), (2, width, 8, 8), (2, 8, 8, width))[attempt]
    return None


def _shape_for_function(traced: Trace, reader: fx.Node, attempt: int) -> tuple[int, ...] | None:
    """Shape for a functional convolution, whose weight may have to be computed."""
    constants = Constants(traced)
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    _, weight, *_, groups = bind(reader, names, (None, None, None, 1, 0, 1, 1))
    if not isinstance(weight, fx.Node) or not constants.is_tensor(weight):
        return None
    shape = constants.shape(weight)
    if not isinstance(groups, int):
        return None
    return (2, shape[1] * groups, *_spatial(len(shape) - 2, attempt))


def _dtype(root: nn.Module) -> torch.dtype:
    return next((p.dtype for p in root.parameters() if p.is_floating_point()), torch.float32)


def _to_meta(call: Call) -> Call:
    moved: Call = tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, call)
    return moved


def with_numbers(call: Call) -> Call:
    """Copy arguments, with random numbers where they have none."""

    def real(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.device.type != "meta":
            return value.clone()
        if value.is_floating_point():
            return torch.randn(value.shape, dtype=torch.float32).to(value.dtype)
        return torch.zeros(value.shape, dtype=value.dtype)

    made: Call = tree_map(real, call)
    return made


def _clone(call: Call) -> Call:
    copied: Call = copy.deepcopy(call)
    return copied


def _close(expected: Any, found: Any) -> bool:
    left, right = (
        [t for t in tree_flatten(v)[0] if isinstance(t, Tensor)] for v in (expected, found)
    )
    if [t.shape for t in left] != [t.shape for t in right] or not left:
        return False
    return all(
        float((a.double() - b.double()).abs().max())
        <= _RTOL * (float(a.double().abs().max()) + 1e-30)
        for a, b in zip(left, right, strict=True)
        if a.numel()
    )


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__
