"""What must hold between a model and its fused form; raises where it does not.

Independent of the library's own verification, so that the two can find each other wrong.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from counting import Tally, count, stored_numbers, tensors_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Snapshot", "assert_no_dearer", "assert_same_function", "worst_error"]


def worst_error(
    reference: nn.Module, candidate: nn.Module, *inputs: torch.Tensor
) -> tuple[float, Tally, Tally]:
    """Return the largest difference over the largest number that ``reference`` computes.

    Compares structure, shapes and types of the outputs, and what becomes of the inputs, too.
    """
    ours, theirs = [x.clone() for x in inputs], [x.clone() for x in inputs]
    expected, before = count(reference, *ours)
    actual, after = count(candidate, *theirs)
    assert _skeleton(actual) == _skeleton(expected), (_skeleton(actual), _skeleton(expected))
    pairs = [*zip(tensors_of(expected), tensors_of(actual), strict=True)]
    pairs += zip(ours, theirs, strict=True)
    worst = max(_distance(left, right) for left, right in pairs)
    return worst / max(before.scale, 1e-30), before, after


def assert_same_function(
    reference: nn.Module, candidate: nn.Module, *inputs: torch.Tensor, tolerance: float
) -> None:
    """Raise unless both compute the same within ``tolerance`` of the activations' scale."""
    error, _, _ = worst_error(reference, candidate, *inputs)
    if not error <= tolerance:
        msg = f"outputs differ by {error:.3g} of the activations' scale; allowed {tolerance:.3g}"
        raise AssertionError(msg)


def assert_no_dearer(reference: nn.Module, candidate: nn.Module, *inputs: torch.Tensor) -> None:
    """Raise if the candidate runs more layers or multiply-adds, or stores more numbers.

    A pass over the values may be paid for with biases: one number an output channel.
    """
    _, before = count(reference, *inputs)
    _, after = count(candidate, *inputs)
    passes_went = after.others.total() < before.others.total()
    paid = _biases(candidate) if passes_went else 0
    pairs = {
        "convolutions and linears": (before.convs + before.linears, after.convs + after.linears),
        "norms": (before.norms, after.norms),
        "multiply-adds": (before.macs, after.macs),
        "stored numbers": (stored_numbers(reference) + paid, stored_numbers(candidate)),
    }
    for what, (old, new) in pairs.items():
        assert new <= old, f"{what} went up from {old} to {new}"


def _biases(model: nn.Module) -> int:
    biases = (getattr(module, "bias", None) for module in model.modules())
    return sum(bias.numel() for bias in biases if isinstance(bias, torch.Tensor))


def _skeleton(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        return (tuple(tree.shape), tree.dtype)
    if isinstance(tree, dict):
        return {key: _skeleton(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [type(tree).__name__, *(_skeleton(value) for value in tree)]
    return tree


def _distance(left: torch.Tensor, right: torch.Tensor) -> float:
    difference = (left.detach().double() - right.detach().double()).abs()
    return float(difference.max()) if difference.numel() else 0.0


@dataclass(frozen=True)
class Snapshot:
    """Everything of a model that a reader could see, taken before it is handed out."""

    state: dict[str, torch.Tensor]
    identities: dict[str, tuple[int, int, bool]]
    attributes: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """Record tensors (values, identity, version) and plain attributes of every module."""
        state = {k: v.detach().clone() for k, v in model.state_dict(keep_vars=True).items()}
        return cls(state, _identities(model), _attributes(model))

    def assert_unchanged(self, model: nn.Module) -> None:
        """Raise unless the model is bit for bit, attribute for attribute, what it was."""
        now = model.state_dict(keep_vars=True)
        assert list(now) == list(self.state)
        for key, value in now.items():
            assert torch.equal(value, self.state[key]), f"{key} has other numbers"
            assert value.dtype == self.state[key].dtype, f"{key} has another type"
        assert _identities(model) == self.identities, "a tensor was replaced or written to"
        assert _attributes(model) == self.attributes, "an attribute was changed"


def _identities(model: nn.Module) -> dict[str, tuple[int, int, bool]]:
    state = model.state_dict(keep_vars=True)
    return {k: (id(v), v._version, v.requires_grad) for k, v in state.items()}


def _attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    inner = {"_parameters", "_buffers", "_modules"}
    found: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        plain = {k: copy.copy(v) for k, v in vars(module).items() if k not in inner}
        members = {k: id(v) for k, v in module._modules.items()}
        found[name] = {
            **{k: v for k, v in plain.items() if not isinstance(v, torch.Tensor)},
            "(class)": type(module),
            "(children)": members,
        }
    return found
