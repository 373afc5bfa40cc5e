"""What the operations of torch are, for the planner: the rules of ``rules_*.py``, see ``table``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from reparam.algebra import AffineConv
from reparam.frontends.hosted import is_hosted
from reparam.frontends.torch import (  # noqa: F401 (each enters its rules)
    rules_functions,
    rules_layers,
    rules_layouts,
    rules_moves,
    rules_products,
    rules_routes,
    rules_scales,
    rules_stacks,
)
from reparam.frontends.torch.builtin import is_builtin
from reparam.frontends.torch.lift import Lifted, Lifter, Rule
from reparam.frontends.torch.rules_layers import hosted_module, probed_module
from reparam.frontends.torch.table import ANY_ARGUMENTS, FUNCTIONS, METHODS, MODULES
from reparam.frontends.torch.trace import Trace


def lift(
    trace: Trace,
    *,
    training: bool = False,
    vectors: bool = False,
    probed: dict[str, AffineConv] | None = None,
) -> Lifted:
    """Lift a trace by the rules for its operations.

    Args:
        trace: What was traced.
        training: Read the running statistics of BN layers in training mode too.
        probed: Operators of modules that could not be traced, by path.
        vectors: Take the outputs of linear layers for ``(N, C)`` where nothing says otherwise.

    """
    return Lifter(trace, training=training, vectors=vectors, probed=probed or {}).run(rule_for)


def function_called(name: str) -> Callable[..., Any] | None:
    """The function of torch of that name that a rule reads, or None."""
    found = (getattr(space, name, None) for space in (torch.nn.functional, torch))
    return next((function for function in found if function in FUNCTIONS), None)


def has_method(name: str) -> bool:
    """Whether a rule reads the method of tensors of that name."""
    return name in METHODS


def rule_for(lifter: Lifter, node: fx.Node) -> Rule | None:
    """Find the rule of an operation, or None where there is none."""
    rule = _rule_of(lifter, node)
    if rule is None or rule in ANY_ARGUMENTS:
        return rule
    first = node.args[0] if node.args else node.kwargs.get("input")
    return rule if lifter.is_value(first) else None


@functools.lru_cache(maxsize=512)
def _rule_of_kind(kind: Any) -> Rule | None:
    return next((rule for base, rule in MODULES.items() if issubclass(kind, base)), None)


def _rule_of(lifter: Lifter, node: fx.Node) -> Rule | None:
    if node.op == "call_module":
        module = lifter.module(node)
        if lifter.trace.keys[node].target in lifter.probed:
            return probed_module
        if not is_builtin(module):
            return hosted_module if is_hosted(module) else None
        kind: Any = type(module)
        return _rule_of_kind(kind)
    if node.op == "call_function":
        return FUNCTIONS.get(node.target)
    if node.op == "call_method":
        return METHODS.get(str(node.target))
    return None
