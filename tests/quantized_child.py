"""Quantize a small net for OpenVINO for several targets and print what came of it, as JSON.

python tests/quantized_child.py FOLDER
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import reparam
from quantizing.nets import inputs, single_path
from reparam.deploy.engines import Settings, get_engine
from reparam.deploy.engines.int8 import sums_saturate
from reparam.errors import MachineWarning

WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "eight bits": {"weight_bits": 8},
    "vnni": {"target": "vnni"},
}


def main(folder: Path) -> None:
    x = inputs()
    found: dict[str, Any] = {"saturates": sums_saturate("openvino"), "loading warned": {}}
    for way, arguments in WAYS.items():
        path = folder / f"{way}.xml"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = reparam.quantize(
                single_path(), path, x, evaluation=x, correct_bias=False, **arguments
            )
        assert result.diagnosis is not None
        found[way] = {
            "target": result.target,
            "weight_bits": result.weight_bits,
            "output_db": result.score.output_db,
            "simulated_db": result.diagnosis.output_db,
            "warned": of_machine(caught),
        }
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            get_engine("openvino").load(path, Settings())
        found["loading warned"][way] = of_machine(caught)
    print(json.dumps(found))  # noqa: T201 - the answer


def of_machine(caught: list[warnings.WarningMessage]) -> bool:
    return any(issubclass(warning.category, MachineWarning) for warning in caught)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
