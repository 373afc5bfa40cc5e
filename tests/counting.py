"""Count what a forward really executes, at the level of the dispatcher.

The library's own accounting is not used: a test that trusted it could not find it wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["NORMS", "Tally", "arithmetic", "count", "stored_numbers", "tensors_of"]

NORMS = frozenset(
    {
        "native_batch_norm",
        "_native_batch_norm_legit",
        "_native_batch_norm_legit_no_training",
        "_batch_norm_no_update",
        "_batch_norm_impl_index",
        "batch_norm",
        "cudnn_batch_norm",
    }
)
_CONVS = frozenset({"convolution", "_convolution", "convolution_overrideable"})
_MATMULS = frozenset({"mm", "addmm", "bmm", "baddbmm", "linear", "addmv", "mv"})
# Moving numbers about costs no arithmetic; everything else counts.
_FREE = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "expand",
        "squeeze",
        "unsqueeze",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unbind",
        "detach",
        "alias",
        "as_strided",
        "clone",
        "contiguous",
        "lift_fresh",
        "_to_copy",
        "empty",
        "empty_like",
        "new_empty",
        "unfold",
        "flatten",
        "chunk",
        "unsafe_chunk",
        "sym_size",
        "sym_stride",
    }
)


@dataclass
class Tally:
    """Executed operators: convolutions, matrix products and norms that read the input, and others.

    ``macs`` are the multiply-adds of ``convs`` and ``linears``; ``scale`` is the largest number any
    operator wrote, against which an error is judged.
    """

    convs: int = 0
    linears: int = 0
    norms: int = 0
    macs: int = 0
    scale: float = 0.0
    others: Counter[str] = field(default_factory=Counter)


class _Counting(TorchDispatchMode):
    """Tally operators; those fed by parameters alone are not layers and go to ``others``.

    A tensor is taken to depend on the input when it shares storage with one that does.
    """

    def __init__(self, inputs: list[torch.Tensor]) -> None:
        super().__init__()
        self.tally = Tally()
        # The tensors are kept, so that no storage is freed and its address reused.
        self._live: dict[int, torch.Tensor] = {_address(x): x for x in inputs}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        read = list(tensors_of((args, kwargs)))
        live = any(_address(x) in self._live for x in read)
        if live:
            for x in tensors_of(out):
                self._live[_address(x)] = x
        self._record(func._schema.name.split("::")[1], args, out, live=live)
        return out

    def _record(self, name: str, args: tuple[Any, ...], out: Any, *, live: bool) -> None:
        tally = self.tally
        if name in _FREE:
            return
        first = next(iter(tensors_of(out)), None)
        if live and first is not None and first.is_floating_point() and first.numel():
            tally.scale = max(tally.scale, float(first.detach().abs().max()))
        if live and name in _CONVS:
            tally.convs += 1
            tally.macs += _conv_macs(args, first)
        elif live and name in _MATMULS:
            tally.linears += 1
            tally.macs += _matmul_macs(name, args, first)
        elif name in NORMS:
            tally.norms += 1
        else:
            tally.others[name.removesuffix("_") if name != "copy_" else name] += 1


def _address(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _conv_macs(args: tuple[Any, ...], out: torch.Tensor | None) -> int:
    assert out is not None
    x, weight, transposed = args[0], args[1], args[6]
    positions = x if transposed else out
    return positions.numel() * weight.numel() // weight.shape[0]


def _matmul_macs(name: str, args: tuple[Any, ...], out: torch.Tensor | None) -> int:
    assert out is not None
    left = args[1] if name in {"addmm", "baddbmm", "addmv"} else args[0]
    return out.numel() * left.shape[-1]


def tensors_of(tree: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of nested tuples, lists and dicts."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_of(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors_of(value)


@contextmanager
def _counting(inputs: list[torch.Tensor]) -> Iterator[Tally]:
    mode = _Counting(inputs)
    with torch.no_grad(), mode:
        yield mode.tally


def count(model: nn.Module, *inputs: torch.Tensor) -> tuple[Any, Tally]:
    """Run ``model`` once on copies of ``inputs``; return its output and the tally."""
    copies = [x.clone() for x in inputs]
    with _counting(copies) as tally:
        out = model(*copies)
    return out, tally


def stored_numbers(model: nn.Module) -> int:
    """Count the numbers a model keeps: parameters and floating buffers, shared ones once."""
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    return sum(t.numel() for t in {id(t): t for t in tensors}.values())


def arithmetic(model: nn.Module, x: torch.Tensor) -> tuple[int, int, int]:
    """The convolutions, matrix products and norms that a forward executes."""
    tally = count(model, x)[1]
    return tally.convs, tally.linears, tally.norms
