"""A file that somebody spoilt is refused with a reason, or drawn: never a traceback."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reparam.errors import InputError
from reparam.report import load_results, merge, page_html, to_json

from . import compressed_cases, difference_cases

if TYPE_CHECKING:
    from reparam.deploy.benchmarking import BenchmarkResult
    from reparam.report.results import Results

PARTED = difference_cases.page(difference_cases.parted("weight"))
ODD = (0, 1, -1, 2.5, 1e18, "", "x", "nan", [], {}, None, True, [1], ["a"], [0, 0])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything that a JSON object holds."""
    if isinstance(value, dict):
        found = list(value.items())
    else:
        found = list(enumerate(value[:3])) if isinstance(value, list) else []
    inner = [way for key, held in found for way in places(held, (*path, key))]
    return [path, *inner] if path else inner


def spoil(stored: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    spoilt = held = json.loads(json.dumps(stored))
    for key in path[:-1]:
        held = held[key]
    held[path[-1]] = value
    return spoilt


@pytest.mark.parametrize("kind", ["forms", "compressed", "difference", "benchmark"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_spoilt_file_is_refused_or_drawn(
    kind: str, results: Results, benchmark: BenchmarkResult, data: st.DataObject
) -> None:
    compressed = merge([compressed_cases.quantization_page(), compressed_cases.pruning_page()])
    stored = json.loads(
        {
            "forms": lambda: to_json(results),
            "compressed": lambda: to_json(compressed),
            "difference": lambda: to_json(PARTED),
            "benchmark": benchmark.to_json,
        }[kind]()
    )
    path = data.draw(st.sampled_from(places(stored)))
    spoilt = spoil(stored, path, data.draw(st.sampled_from(ODD)))
    try:
        loaded = load_results(spoilt)
    except InputError:
        return
    assert page_html(loaded).endswith("</html>\n")
