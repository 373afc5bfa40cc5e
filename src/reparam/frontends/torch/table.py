"""Which rule reads an operation of torch: a rule says it itself, by :func:`reads`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from reparam.frontends.torch.lift import Rule

FUNCTIONS: dict[Any, Rule] = {}
METHODS: dict[str, Rule] = {}
MODULES: dict[type[nn.Module], Rule] = {}
ANY_ARGUMENTS: set[Rule] = set()
"""Rules that look at their arguments themselves; the others expect a value as the first one."""


def reads(*operations: Any, any_arguments: bool = False) -> Callable[[Rule], Rule]:
    """Enter a rule for functions, for methods by their names, and for classes of modules.

    Args:
        operations: What the rule reads.
        any_arguments: Whether it looks at its arguments itself; see :data:`ANY_ARGUMENTS`.

    """

    def enter(rule: Rule) -> Rule:
        for operation in operations:
            if isinstance(operation, str):
                METHODS[operation] = rule
            elif isinstance(operation, type):
                MODULES[operation] = rule
            else:
                FUNCTIONS[operation] = rule
        if any_arguments:
            ANY_ARGUMENTS.add(rule)
        return rule

    return enter
