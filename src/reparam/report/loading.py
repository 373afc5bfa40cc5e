"""Stored results of every kind, read into the records that a page is drawn from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam._support.records import decode
from reparam.errors import InputError
from reparam.report import benchmarks, from_training
from reparam.report.older import FIRST, from_first
from reparam.report.results import SCHEMA, Results

if TYPE_CHECKING:
    from collections.abc import Sequence

Source = Results | Mapping[str, object] | str | Path
"""Results, their JSON object, or the path of a file that holds it."""


def load_results(source: Source) -> Results:
    """Read results from a file, or from the object that `json.loads` made of it.

    Raises:
        InputError: the file cannot be read, is not JSON, or is not a results file.
    """
    if isinstance(source, Results):
        return source
    if isinstance(source, Mapping):
        return _from_object(dict(source), "results")
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"found a {type(source).__name__}, needed Results (which from_benchmark, from_quantize "
            "and from_prune make of what the library returns), their JSON object, or a path"
        )
    path = Path(source)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a plain file; give a results.json")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a results.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); give a results.json") from error
    return _from_object(value, str(path))


def _from_object(value: object, where: str) -> Results:
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(value, dict) and schema == FIRST:
        value, schema = _upgraded(value, where), SCHEMA
    if schema == SCHEMA:
        results = decode(Results, value, where)
    elif isinstance(value, dict) and schema == benchmarks.SCHEMA:
        results = benchmarks.from_json(value, where)
    elif isinstance(value, dict) and schema == from_training.SCHEMA:
        results = from_training.from_training(value, where)
    else:
        known = f"{SCHEMA!r}, {benchmarks.SCHEMA!r} or {from_training.SCHEMA!r}"
        found = repr(schema)
        raise InputError(
            f"{where}: found the schema {found[:80]}, needed {known}; give a results file "
            "that `reparam demo`, `train`, `bench`, `diff`, `quantize` or `prune` wrote"
        )
    _check_references(results)
    return results


def _upgraded(value: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        return from_first(value, SCHEMA)
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"{where}: a pruned net in it lacks what such files hold ({error}); was this file "
            "written by another tool?"
        ) from error


def _check_references(results: Results) -> None:
    """Raise for a record that names a model nobody listed, before a page is half drawn."""
    named = [record.model for record in results.training]
    named += [record.model for record in results.accuracy]
    named += [key for record in results.agreement for key in (record.reference, record.candidate)]
    groups = (*results.latency, *results.benchmarks)
    named += [row.model for record in groups for row in record.rows]
    named += [trace.model for record in results.memory for trace in record.traces if trace.model]
    for key in named:
        results.model(key)


def merge(parts: Sequence[Results]) -> Results:
    """Put the results of several runs on one page; what only one can be is the first one's.

    Models are told apart by the number of their run, so that two runs may use the same keys.

    Raises:
        InputError: there is nothing to put together.
    """
    if not parts:
        raise InputError("no results were given; name at least one results file")
    if len(parts) == 1:
        return parts[0]
    renamed = [_renamed(part, f"{number}.") for number, part in enumerate(parts)]
    joined: dict[str, Any] = {
        name: tuple(record for part in renamed for record in getattr(part, name))
        for name in (
            "models", "training", "accuracy", "agreement", "checks", "latency", "benchmarks",
            "memory", "quantizations", "prunings", "differences",
        )
    }  # fmt: skip
    for name in ("data", "twins", "plan", "block"):
        joined[name] = next((v for part in renamed if (v := getattr(part, name))), None)
    return replace(
        renamed[0],
        title=" · ".join(dict.fromkeys(part.title for part in parts)),
        command="; ".join(dict.fromkeys(part.command for part in parts if part.command)),
        created="; ".join(dict.fromkeys(part.created for part in parts if part.created)),
        files={name: what for part in reversed(parts) for name, what in part.files.items()},
        environment=_environments(parts),
        **joined,
    )


def _environments(parts: Sequence[Results]) -> dict[str, str]:
    """What all runs share stands once; where they differ, each value in the order of the runs."""
    keys = dict.fromkeys(key for part in parts for key in part.environment)
    return {
        key: " / ".join(dict.fromkeys(part.environment.get(key, "–") for part in parts))
        for key in keys
    }


def _renamed(results: Results, prefix: str) -> Results:
    """The same results with `prefix` before the key of every model."""

    def key(record: Any, *names: str) -> Any:
        given = {name: getattr(record, name) for name in names}
        return replace(record, **{name: prefix + value for name, value in given.items() if value})

    def group(record: Any, rows: str) -> Any:
        return replace(record, **{rows: tuple(key(r, "model") for r in getattr(record, rows))})

    return replace(
        results,
        models=tuple(key(record, "key") for record in results.models),
        training=tuple(key(record, "model") for record in results.training),
        accuracy=tuple(key(record, "model") for record in results.accuracy),
        agreement=tuple(key(record, "reference", "candidate") for record in results.agreement),
        plan=key(results.plan, "model") if results.plan else None,
        latency=tuple(group(record, "rows") for record in results.latency),
        benchmarks=tuple(group(record, "rows") for record in results.benchmarks),
        memory=tuple(group(record, "traces") for record in results.memory),
    )
