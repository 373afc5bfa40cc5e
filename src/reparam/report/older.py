"""Results files of earlier versions, as today's would be."""

from __future__ import annotations

from typing import Any

FIRST = "reparam.results/1"
"""Pruned nets stood in records of their own: a number for each channel count, milliseconds."""

_SIDES = ("inputs", "outputs")


def from_first(value: dict[str, Any], schema: str) -> dict[str, Any]:
    """Return a file of the first schema as one of `schema`; what is malformed stays so."""
    found = value.get("prunings", ())
    prunings = [_pruning(each) if isinstance(each, dict) else each for each in found]
    return value | {"schema": schema, "prunings": prunings}


def _pruning(value: dict[str, Any]) -> dict[str, Any]:
    changed = {"layers": [_layer(layer) for layer in value.get("layers", ())]}
    changed["trials"] = [_timed({"steps": 0} | trial) for trial in value.get("trials", ())]
    return _timed(value | changed)


def _layer(value: dict[str, Any]) -> dict[str, Any]:
    channels = {
        when: [value[f"{side}_{when}"] for side in _SIDES if f"{side}_{when}" in value]
        for when in ("before", "after")
    }
    return value | channels


def _timed(value: dict[str, Any]) -> dict[str, Any]:
    timed = value.get("latency")
    if not isinstance(timed, dict):
        return value
    seconds = {when: timed[f"{when}_ms"] / 1e3 for when in ("before", "after")}
    return value | {"latency": timed | seconds | {"quartiles": [timed["low"], timed["high"]]}}
