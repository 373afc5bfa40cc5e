"""Which rule reads an operation of ONNX: a rule says it itself, by :func:`reads`."""

from __future__ import annotations

from collections.abc import Callable

from reparam.frontends.onnx.lift import Rule

__all__ = ["RULES", "reads"]

RULES: dict[str, Rule] = {}


def reads(*operations: str) -> Callable[[Rule], Rule]:
    """Enter a rule for operations of the default domain, by their names."""

    def enter(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, rule))
        return rule

    return enter
