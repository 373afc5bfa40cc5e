"""Engines for phones and compiled packages, where they are installed: slow to convert for."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from deploying import fold, network, real_inputs
from reparam.deploy.engines import Settings, UnsupportedCaseError, get_engine
from reparam.deploy.engines.parity import Reference
from reparam.deploy.engines.program import Conversion
from reparam.deploy.exporting import export, read_metadata
from reparam.errors import ExportError, MissingExtraError

MOBILE = ["executorch", "ncnn"]
FILES = {"executorch": "net.pte", "ncnn": "net.ncnn.param", "aoti": "net.pt2"}
# Their packages warn of torch's own deprecations while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return network()


def need(engine):
    if not get_engine(engine).available():
        pytest.skip(f"{engine} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*MOBILE, "aoti"])
def test_export_is_checked_and_takes_other_shapes(engine, net, tmp_path):
    need(engine)
    backend = "aoti" if engine == "aoti" else None
    path = tmp_path / FILES[engine]
    result = export(fold(net), path, real_inputs(), reference=net, backend=backend)
    assert result.parity.ok
    assert {"height", "width"} <= set(result.dynamic_axes[0].values())
    assert read_metadata(path)["form"] == "fused"
    x = torch.randn(5, 3, 20, 28)
    runner = get_engine(engine).load(path, Settings(threads=1))
    Reference(net, (x,)).compare(runner.run((x,))).raise_if_different(engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*MOBILE, "aoti"])
def test_perturbed_weight_is_found_and_nothing_is_written(engine, net, tmp_path):
    need(engine)
    wrong = copy.deepcopy(fold(net))
    with torch.no_grad():
        wrong[1].conv.weight[0] *= 1.001
    backend = "aoti" if engine == "aoti" else None
    with pytest.raises(ExportError, match=r"differs from the reference"):
        export(
            wrong,
            tmp_path / FILES[engine],
            real_inputs(),
            reference=net,
            backend=backend,
            dynamic=False,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["compile", "aoti"])
def test_compiled_model_agrees(engine, net):
    x = real_inputs()
    runner = get_engine(engine).prepare(Conversion(fold(net), (x,)), Settings(threads=1))
    Reference(net, (x,)).compare(runner.run((x,))).raise_if_different(engine)


def test_ncnn_says_that_it_has_no_batch(net, tmp_path):
    need("ncnn")
    with pytest.raises(ExportError, match="no batch dimension"):
        export(net, tmp_path / "net.ncnn.param", real_inputs(), dynamic="batch")
    runner = get_engine("ncnn").prepare(Conversion(net, (real_inputs(),)), Settings(threads=1))
    with pytest.raises(UnsupportedCaseError, match=r"one sample at a time"):
        runner.bind((real_inputs(),))


@pytest.mark.parametrize(("engine", "package"), [("executorch", "executorch"), ("ncnn", "ncnn")])
def test_missing_mobile_package_names_the_extra(engine, package, monkeypatch, net, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*pip install 'reparam\[mobile\]'"):
        export(net, tmp_path / FILES[engine], real_inputs())
    assert not list(tmp_path.iterdir())


def test_tensorrt_says_what_it_needs(net, tmp_path):
    if get_engine("tensorrt").available():
        pytest.skip("TensorRT and a GPU are here")
    message = r"reparam\[tensorrt\]|needs an NVIDIA GPU"
    with pytest.raises((MissingExtraError, UnsupportedCaseError), match=message):
        export(net, tmp_path / "net.engine", real_inputs())
    assert not list(tmp_path.iterdir())


def test_file_of_another_engine_says_which_runs_it(net, tmp_path):
    path = tmp_path / "net.pt2"
    export(net, path, real_inputs(), dynamic=False)
    with pytest.raises(UnsupportedCaseError, match="the engine 'eager' runs it"):
        get_engine("aoti").load(path, Settings())
