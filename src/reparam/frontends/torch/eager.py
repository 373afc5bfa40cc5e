"""Compare a trace with eager execution, before anything is believed of it.

``isinstance(x, Tensor)`` is false for a proxy, ``torch.rand`` without a proxy becomes a constant: a
trace can be wrong without any error. So the module and its trace are both run on tensors without
numbers (the ``meta`` device), and the sequences of operators that reach the dispatcher are
compared; that costs no arithmetic. Where a module cannot run without numbers, both are run with
random ones and their outputs are compared.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from reparam.errors import InputError
from reparam.frontends.kinds import AnyConv
from reparam.frontends.torch.arguments import CONVOLUTIONS, bind
from reparam.frontends.torch.builtin import is_builtin, is_compiled
from reparam.frontends.torch.constants import Constants
from reparam.frontends.torch.frames import first_line
from reparam.frontends.torch.recording import OutsideReads, Recorder, storages, written_by
from reparam.frontends.torch.running import Arguments as Call
from reparam.frontends.torch.running import is_literal, run_graph, run_until
from reparam.frontends.torch.skeleton import named_tensors, on_meta, runnable_copy
from reparam.frontends.torch.structures import leaves, tensors_in
from reparam.frontends.torch.trace import Trace, bound_arguments

_SIZES = {1: (32, 64, 224, 256), 2: (32, 64, 224, 256), 3: (16, 24, 32, 64)}
"""Spatial sizes to try where no example is given, by number of spatial dimensions."""
_ATTEMPTS = 4
_RTOL = 1e-4


class Outcome(enum.Enum):
    """What a comparison says."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a module does by itself on tensors without numbers.

    Attributes:
        twin: The copy of it that ran.
        arguments: Of the run.
        operators: What reached the dispatcher.
        written: Names of the parameters and buffers that it has written to.

    """

    twin: nn.Module
    arguments: Call
    operators: list[Any]
    written: frozenset[str]


@dataclass(frozen=True, slots=True)
class Report:
    """What a comparison says.

    Attributes:
        outcome: Whether the trace does what the module does.
        why: The reason, where it does not or where that is not known.
        call: The arguments of the run, where there was one.
        written: Names of the parameters and buffers that the module writes to when it runs.
        run: What the module does by itself, where it runs without numbers.

    """

    outcome: Outcome
    why: str = ""
    call: Call | None = None
    written: frozenset[str] = frozenset()
    run: Run | None = field(default=None, repr=False)


def compare(
    module: nn.Module, traced: Trace, calls: list[Call], known: Report | None = None
) -> Report:
    """Compare a trace with its module on the first of the calls that the module accepts.

    That is the first one with which it runs without numbers, if there is one.

    Args:
        module: The module.
        traced: A trace of it.
        calls: Arguments to try.
        known: A report on another trace, with the arguments to take.

    """
    if known is not None and known.call is not None and known.run is not None:
        return replace(_compare_run(module, traced, known.call, known.run), call=known.call)
    report = Report(Outcome.UNKNOWN, "no example of its inputs is known; pass example_inputs")
    failed: list[tuple[Call, Exception]] = []
    for call in calls:
        found = _compare_once(module, traced, call)
        if isinstance(found, Exception):
            failed.append((call, found))
            continue
        report = replace(found, call=call)
        if report.outcome is not Outcome.UNKNOWN:
            return report
    for call, error in failed:
        report = replace(_compare_numbers(module, traced, call, error), call=call)
        if report.outcome is not Outcome.UNKNOWN:
            return report
    return replace(report, call=None)


def capture_calls(model: nn.Module, call: Call) -> dict[str, Call]:
    """Run a model once and note the arguments of the first call of every module inside.

    Those of torch's own modules are not kept.
    """
    for twin, arguments in _twins(model, call):
        seen: dict[str, Call] = {}
        handles = [
            module.register_forward_pre_hook(
                _noting(seen, name, keeps=not is_builtin(module)), with_kwargs=True
            )
            for name, module in twin.named_modules()
            if not is_compiled(module)
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


def does_run(model: nn.Module, call: Call) -> bool:
    """Whether a model runs without its hooks."""
    for twin, arguments in _twins(model, call):
        with contextlib.suppress(Exception), torch.no_grad():  # any error of the user's model
            twin(*arguments[0], **arguments[1])
            return True
    return False


def read_from_outside(module: nn.Module, call: Call) -> frozenset[str]:
    """Names of the tensors of modules inside that a module's own code computes with."""
    for twin, arguments in _twins(module, call):
        reads = OutsideReads(twin)
        try:
            with torch.no_grad(), reads:
                twin(*arguments[0], **arguments[1])
        except Exception:  # noqa: BLE001 (any error of the user's model: the next twin)
            reads.found()
            continue
        return reads.found()
    return frozenset()


def repeats(model: nn.Module, call: Call) -> bool:
    """Whether a model runs on arguments, and returns the same whenever it does."""
    results = []
    for _ in range(2):
        with contextlib.suppress(Exception), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            positional, named = with_numbers(call)
            results.append(runnable_copy(model)(*positional, **named))
    return len(results) == 2 and _close(*results)


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


def _compare_once(module: nn.Module, traced: Trace, call: Call) -> Report | Exception:
    """Compare on tensors without numbers; an error is what the module raises there."""
    run = _run(module, call)
    return run if isinstance(run, Exception) else _compare_run(module, traced, call, run)


def _run(module: nn.Module, call: Call) -> Run | Exception:
    twin = on_meta(module)
    tensors = storages(named_tensors(twin))
    try:
        arguments = _to_meta(call)
        with torch.no_grad(), torch.device("meta"), Recorder() as eager:
            twin(*arguments[0], **arguments[1])
    except Exception as error:  # noqa: BLE001 (a model may need numbers, or other inputs)
        return error
    return Run(twin, arguments, eager.operators, written_by(eager, tensors, named_tensors(twin)))


def _compare_run(module: nn.Module, traced: Trace, call: Call, run: Run) -> Report:
    writes = _writes_weights(module, run.written)
    if writes is not None:
        return writes
    operators = _operators_of(traced)
    if operators is None:
        # What is called is torch's own, which a run leaves as it was, or else it is copied anew, as
        # is what the trace alone holds: tensors that are neither parameters nor buffers.
        anew = traced.opaque or any(map(is_literal, traced.graph.nodes))
        copy_of_root = on_meta(traced.root) if anew else run.twin
        try:
            with torch.no_grad(), torch.device("meta"), Recorder() as replayed:
                _run_trace(traced, copy_of_root, module, run.arguments)
        except Exception as error:  # noqa: BLE001 (the trace does not run: it is not faithful)
            why = f"its trace fails where the module runs ({first_line(error)})"
            return Report(Outcome.DIFFERENT, why, run=run)
        operators = replayed.operators
    if run.operators == operators:
        return Report(Outcome.EQUAL, written=run.written)
    return replace(_compare_numbers(module, traced, call, None), run=run)


def _operators_of(traced: Trace) -> list[Any] | None:
    """The operators that the trace itself has run, if it has run all of its operations."""
    if traced.recorder is None:
        return None
    skipped = {"placeholder", "output", "get_attr"}
    steps = (n for n in traced.graph.nodes if n.op not in skipped and n not in traced.decisions)
    return traced.recorder.operators if all(n in traced.values for n in steps) else None


def _run_trace(traced: Trace, twin: nn.Module, module: nn.Module, call: Call) -> Any:
    """Run a trace on the arguments of a call, with the tensors of a copy of its module."""
    return run_graph(traced.graph, twin, inputs_of(traced, module, call))


def inputs_of(traced: Trace, module: nn.Module, call: Call) -> list[Any]:
    """What a call of a module gives the inputs of its trace, in order."""
    given = bound_arguments(module, call).arguments
    if traced.frame is None:  # a part: its inputs are forward's own
        inputs = [n for n in traced.graph.nodes if n.op == "placeholder"]
        return [given[str(n.target).lstrip("*")] for n in inputs]
    return [
        functools.reduce(lambda value, step: step[0](value, step[1]), steps, given)
        for steps, leaf in leaves(traced.frame.arguments)
        if isinstance(leaf, fx.Node)
    ]


def _compare_numbers(
    module: nn.Module, traced: Trace, call: Call, error: Exception | None
) -> Report:
    """Compare outputs on random numbers, where comparing operators was not conclusive."""
    arguments = with_numbers(call)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            twin = runnable_copy(module)
            expected = twin(*_clone(arguments)[0], **_clone(arguments)[1])
            found = _run_trace(traced, runnable_copy(traced.root), module, _clone(arguments))
    except InputError:  # a check of what the trace was planned for
        return Report(Outcome.DIFFERENT, "its code goes another way than its trace")
    except Exception as second:  # noqa: BLE001 (any error of the user's model)
        return Report(
            Outcome.UNKNOWN,
            f"it does not run on the inputs at hand ({first_line(error or second)})",
        )
    now = named_tensors(twin)
    written = frozenset(
        name
        for name, before in named_tensors(module).items()
        if name not in now or not torch.equal(before.nan_to_num(), now[name].nan_to_num())
    )
    writes = _writes_weights(module, written)
    if writes is not None:
        return writes
    if _close(expected, found):
        return Report(Outcome.EQUAL, written=written)
    why = "its trace returns other values than the module itself"
    return Report(Outcome.DIFFERENT, why, written=written)


def _writes_weights(module: nn.Module, written: frozenset[str]) -> Report | None:
    """Say that a forward writes its own parameters, which no graph of it can be relied on for."""
    for name, tensor in named_tensors(module).items() if written else ():
        if name in written and isinstance(tensor, nn.Parameter):
            why = f"its forward writes to its own {name}"
            return Report(Outcome.DIFFERENT, why, written=written)
    return None


def _twins(model: nn.Module, call: Call) -> Iterator[tuple[nn.Module, Call]]:
    yield on_meta(model), _to_meta(call)
    yield runnable_copy(model), with_numbers(call)


def _noting(seen: dict[str, Call], name: str, *, keeps: bool) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.setdefault(name, (args, kwargs) if keeps else ((), {}))

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
                    value = run_until(other, twin, known)
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
    numbers = itertools.chain(root.parameters(), root.buffers())
    return next((t.dtype for t in numbers if t.is_floating_point()), torch.float32)


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
            return _loud_and_soft(torch.randn(value.shape)).to(value.dtype)
        return torch.zeros(value.shape, dtype=value.dtype)

    made: Call = tree_map(real, call)
    return made


def _loud_and_soft(noise: Tensor) -> Tensor:
    """Make noise louder from sample to sample: what a net makes of all noise is much the same."""
    if noise.dim() < 2 or len(noise) < 2:
        return noise
    return noise * torch.linspace(0.5, 2.0, len(noise)).reshape(-1, *(1,) * (noise.dim() - 1))


def _clone(call: Call) -> Call:
    copied: Call = copy.deepcopy(call)
    return copied


def _close(expected: Any, found: Any) -> bool:
    left, right = tensors_in(expected), tensors_in(found)
    if [t.shape for t in left] != [t.shape for t in right] or not left:
        return False
    return all(
        float((a.double() - b.double()).abs().max())
        <= _RTOL * (float(a.double().abs().max()) + 1e-30)
        for a, b in zip(left, right, strict=True)
        if a.numel()
    )
