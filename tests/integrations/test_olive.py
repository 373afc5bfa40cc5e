"""The pass of Olive, run by Olive; `make test-libraries` installs it."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import TensorProto

from onnx_graphs import Graph, counts, largest_error, run_in_ort, sample

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def run():
    pytest.importorskip("olive")
    from olive.workflows import run

    return run


def branched() -> onnx.ModelProto:
    g = Graph("n", 8, 16, 16, dtype=TensorProto.FLOAT)
    start = g.relu(g.x)
    wide = g.norm(g.conv(start, pads=[1, 1, 1, 1]))
    return g.model(g.relu(g.op("Add", wide, g.norm(g.conv(start, size=1)))))


@pytest.mark.parametrize("beside", [False, True])
def test_a_workflow_with_the_pass_folds_a_file(run, beside, tmp_path, monkeypatch) -> None:
    from reparam.integrations.olive import CONFIG

    monkeypatch.chdir(tmp_path)
    model, source = branched(), tmp_path / "net.onnx"
    onnx.save_model(model, source, save_as_external_data=beside, location="w.bin", size_threshold=0)
    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": str(source)},
        "passes": {"fold": {"type": "ReparamFuse"}},
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
    }
    run(workflow, package_config=CONFIG)
    (made,) = (tmp_path / "out").rglob("*.onnx")
    fused = onnx.load(made)
    assert counts(fused) == {"Relu": 2, "Conv": 1}
    x = sample(model)
    assert largest_error(run_in_ort(branched(), x), run_in_ort(fused, x)) < 1e-5
    assert json.dumps(CONFIG)  # what `olive run --package-config` reads
