"""What a model of the coverage benchmark executes, and why it still does."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from coverage_models import Entry
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import reparam

# The tests' own counter of executed operators; it trusts nothing of the library.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from counting import NORMS, count, stored_numbers

__all__ = ["cloned", "cost", "left"]


class _Part(nn.Module):
    """What an entry compares, as a module of tensors, so that it can be counted."""

    def __init__(self, entry: Entry, model: nn.Module, like: Any) -> None:
        super().__init__()
        self.model = model
        self.entry = entry
        self.structure = tree_flatten(like)[1]

    def forward(self, *leaves: Any) -> Any:
        return self.entry.run(self.model, tree_unflatten(leaves, self.structure))


def cloned(x: Any, dtype: torch.dtype | None = None) -> Any:
    """Copy an example, its floating numbers in another type if one is given."""
    return tree_map(
        lambda t: t.to(dtype, copy=True) if dtype and t.is_floating_point() else t.clone(), x
    )


def cost(entry: Entry, model: nn.Module, x: Any) -> dict[str, int]:
    _, tally = count(_Part(entry, model, x), *tree_flatten(x)[0])
    return {
        "convs": tally.convs,
        "linears": tally.linears,
        "norms": tally.norms,
        "macs": tally.macs,
        "stored": stored_numbers(model),
        "operators": tally.convs + tally.linears + tally.norms + tally.others.total(),
    }


class _Norms(TorchDispatchMode):
    """Note the module around every norm that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.around: list[str] = []
        self.at: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func._schema.name.split("::")[1] in NORMS:
            self.at.append(self.around[-1])
        return func(*args, **(kwargs or {}))

    def follow(self, model: nn.Module) -> list[Any]:
        """Note when modules are entered and left; returns the handles of the hooks."""
        handles = []
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(path or "the model")))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        return handles

    def _entering(self, path: str) -> Any:
        return lambda _module, _args: self.around.append(path)

    def _leave(self, _module: nn.Module, _args: Any, _out: Any) -> None:
        self.around.pop()


@torch.no_grad()
def left(
    entry: Entry, fused: nn.Module, x: Any, refusals: Iterable[reparam.Refusal]
) -> dict[str, int]:
    """Count the norms that a fused model runs by the reason that its plan gives for them."""
    reasons = {refusal.where: reason_of(refusal.why) for refusal in refusals}
    norms = _Norms()
    handles = norms.follow(fused)
    with norms:
        entry.run(fused, cloned(x))
    for handle in handles:
        handle.remove()
    return dict(Counter(reasons.get(at, f"{NO_REASON} {at}") for at in norms.at).most_common())


NO_REASON = "no reason:"
"""Begins what stands for the reason of a norm that a plan says nothing of."""


def reason_of(why: str) -> str:
    """Leave out of a reason where it arose and its figures, so that equal ones are counted."""
    return re.sub(r" at (the model|[\w.]+)", "", re.sub(r"\d[\d,]*", "N", why))
