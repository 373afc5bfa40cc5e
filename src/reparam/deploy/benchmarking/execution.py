"""See every operator a model executes, with the storages it reads and makes.

A :class:`torch.utils._python_dispatch.TorchDispatchMode` sees what really runs, so functional
calls, fused and re-written graphs count like modules. Nothing is hooked onto the model.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from reparam._support.modules import watch_modules
from reparam.deploy.engines._inputs import as_tuple, check_eval

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Bytes:
    """Bytes in use at one moment: of the model's input, and of everything computed from it."""

    input: int
    activations: int

    @property
    def total(self) -> int:
        """Input and activations together."""
        return self.input + self.activations


NOTHING = Bytes(0, 0)


@dataclass(frozen=True)
class Op:
    """One executed operator, and the memory around it.

    Attributes:
        op: Its name, such as ``"convolution"``.
        module: Path of the innermost module that ran it; empty for the model itself.
        shapes: Shapes of its outputs.
        multiply_adds: Multiply-adds of a convolution or matrix product, 0 for the rest.
        bytes_moved: Bytes of the tensors it reads plus those it writes.
        reads: Identifiers of the storages among its arguments.
        makes: Identifiers of the storages it created.
        held: Eager, in use just before it ran.
        working: Eager, in use just after it ran, its arguments and results included.
        planned_held: As ``held``, each tensor released after its last use.
        planned_working: As ``working``, each tensor released after its last use.
    """

    op: str
    module: str
    shapes: tuple[tuple[int, ...], ...]
    multiply_adds: int
    bytes_moved: int
    reads: frozenset[int]
    makes: frozenset[int]
    held: Bytes
    working: Bytes
    planned_held: Bytes = NOTHING
    planned_working: Bytes = NOTHING


@dataclass
class Execution:
    """Everything one inference executed.

    Attributes:
        ops: The operators in order.
        sizes: Bytes of each storage by identifier; parameters and constants are not among them.
        inputs: Identifiers of the storages of the model's inputs.
        outputs: Identifiers of the storages of its outputs.
    """

    ops: list[Op] = field(default_factory=list)
    sizes: dict[int, int] = field(default_factory=dict)
    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()


def execute(model: nn.Module, example_inputs: torch.Tensor | Sequence[torch.Tensor]) -> Execution:
    """Run a model once without gradients and record what it executes.

    Raises:
        InputError: The inputs are not tensors.
        TrainingModeError: The model is in training mode.
    """
    inputs = as_tuple(example_inputs)
    check_eval(model, "counting operators and memory")
    tracer = _Tracer(model)
    with torch.no_grad(), watch_modules(model, tracer.path):
        # Copies, so that nothing outside the call holds the input's storage.
        copies = [x.detach().clone() for x in inputs]
        tracer.result.inputs = frozenset(tracer.track(x) for x in copies)
        with tracer:
            output = model(*copies)
        tracer.result.outputs = tracer.known(pytree.tree_leaves(output))
    return tracer.result


class _Tracer(TorchDispatchMode):
    """Records operators, and follows storages from their creation to their release."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.result = Execution()
        self.path: list[str] = []
        # A storage's address may be given to a new one after its release, so addresses are
        # forgotten then, and storages are numbered.
        self._ids: dict[int, int] = {}
        self._live: set[int] = set()
        self._ignored = {
            _address(tensor)
            for tensor in (*model.parameters(), *model.buffers())
            if _has_storage(tensor)
        }

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func._can_decompose():  # noqa: SLF001 - composite operators, seen with inference tensors
            with self:
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        arguments = pytree.tree_leaves((args, kwargs))
        reads, held = self.known(arguments), self._bytes()
        output = func(*args, **kwargs)
        results = pytree.tree_leaves(output)
        before = set(self.result.sizes)
        touched = frozenset(self.track(y) for y in results if self._counts(y))
        self.result.ops.append(
            Op(
                op=func._schema.name.partition("::")[2],  # noqa: SLF001 - no public accessor
                module=self.path[-1] if self.path else "",
                shapes=tuple(tuple(y.shape) for y in results if isinstance(y, torch.Tensor)),
                multiply_adds=_multiply_adds(func, args, output),
                bytes_moved=_bytes_moved(func, arguments, results),
                reads=reads,
                makes=touched - before,
                held=held,
                working=self._bytes(),
            )
        )
        return output

    def track(self, tensor: torch.Tensor) -> int:
        """Return the number of a tensor's storage, which is new or known."""
        storage = tensor.untyped_storage()
        address = storage._cdata  # noqa: SLF001 - the identity of a storage
        if address not in self._ids:
            number = len(self.result.sizes)
            self._ids[address] = number
            self._live.add(number)
            self.result.sizes[number] = storage.nbytes()
            weakref.finalize(storage, self._release, address).atexit = False
        return self._ids[address]

    def known(self, values: Sequence[Any]) -> frozenset[int]:
        """Return the numbers of the tracked storages among some values."""
        addresses = (_address(x) for x in values if _has_storage(x))
        return frozenset(self._ids[a] for a in addresses if a in self._ids)

    def _counts(self, value: Any) -> bool:
        return _has_storage(value) and _address(value) not in self._ignored

    def _release(self, address: int) -> None:
        self._live.discard(self._ids.pop(address))

    def _bytes(self) -> Bytes:
        sizes, inputs = self.result.sizes, self.result.inputs
        return Bytes(
            input=sum(sizes[n] for n in self._live if n in inputs),
            activations=sum(sizes[n] for n in self._live if n not in inputs),
        )


def _has_storage(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _address(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - the identity of a storage


# What one operator costs: multiply-adds, and bytes read and written.

_Formula: TypeAlias = Callable[[tuple[Any, ...], Any], int]


def _convolution(args: tuple[Any, ...], output: Any) -> int:
    """Each output (input, if transposed) element meets every weight of its channel."""
    x, weight, transposed = args[0], args[1], args[6]
    positions = x.numel() if transposed else output.numel()
    return int(positions * math.prod(weight.shape[1:]))


def _product(args: tuple[Any, ...], _: Any) -> int:
    """(..., m, k) times (..., k, n)."""
    a, b = args[-2], args[-1]
    columns = b.shape[-1] if b.dim() > 1 else 1
    return int(a.numel() * columns)


def _product_after_bias(args: tuple[Any, ...], output: Any) -> int:
    return _product(args[1:3], output)


def _attention(args: tuple[Any, ...], _: Any) -> int:
    """Queries (..., l, e) with keys (..., s, e), then with values (..., s, v)."""
    query, key, value = args[:3]
    return int(math.prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


_FORMULAS: dict[str, _Formula] = {
    "convolution": _convolution,
    "mm": _product,
    "bmm": _product,
    "mv": _product,
    "dot": _product,
    "addmm": _product_after_bias,
    "addmv": _product_after_bias,
    "baddbmm": _product_after_bias,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
}


def _multiply_adds(func: Any, args: tuple[Any, ...], output: Any) -> int:
    """Return the multiply-adds of a convolution, matrix product or attention; 0 for the rest."""
    formula = _FORMULAS.get(func._schema.name.partition("::")[2])  # noqa: SLF001 - no accessor
    return formula(args, output) if formula else 0


def _bytes_moved(func: Any, arguments: Sequence[Any], results: Sequence[Any]) -> int:
    """Return the bytes an operator reads and writes, each tensor once and caches left aside.

    Views and fresh empty tensors move nothing.
    """
    if func.is_view or func._schema.name.startswith("aten::empty"):  # noqa: SLF001 - no accessor
        return 0
    return sum(_nbytes(x) for x in (*arguments, *results) if isinstance(x, torch.Tensor))


def _nbytes(tensor: torch.Tensor) -> int:
    """Return the bytes a tensor covers; an expanded dimension is stored once."""
    stored = (n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(stored) * tensor.element_size()
