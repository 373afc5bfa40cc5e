"""Core ML packages, read back: `make test-phones` has what they need."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from deploying import fold, network, real_inputs
from reparam.deploy.engines import Settings, UnsupportedCaseError, get_engine
from reparam.deploy.engines.parity import Reference
from reparam.deploy.exporting import export, read_metadata
from reparam.errors import ExportError, InputError, MissingExtraError

# coremltools warns of what it uses of torch.
pytestmark = pytest.mark.filterwarnings("ignore")
OPERATIONS = {
    "pools": nn.Sequential(
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(2, 2, ceil_mode=True),
    ),
    "activations": nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=(1, 2), dilation=2, bias=False),
        nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.LeakyReLU(0.1), nn.PReLU(), nn.ReLU6(),
        nn.Softmax(1),
    ),
    "transposed": nn.Sequential(nn.ConvTranspose2d(3, 6, 3, 2, 1, 1, groups=3), nn.ELU()),
    "norms": nn.Sequential(nn.BatchNorm2d(3), nn.GroupNorm(1, 3), nn.LayerNorm(16), nn.Tanh()),
    "moves": nn.Sequential(
        nn.PixelShuffle(1), nn.ZeroPad2d((1, 2, 3, 0)), nn.Upsample(scale_factor=2.0),
        nn.Flatten(2), nn.Linear(1444, 4),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return network()


@pytest.fixture
def coreml():
    pytest.importorskip("coremltools")
    return get_engine("coreml")


@pytest.mark.slow
@pytest.mark.parametrize("backend", [None, "fp16", "int8"])
def test_package_is_read_back_and_a_perturbed_weight_is_found(coreml, backend, net, tmp_path):
    path, x = tmp_path / "net.mlpackage", real_inputs()
    result = export(fold(net), path, x, reference=net, backend=backend)
    assert result.parity.ok
    assert result.parity.samples == 4
    assert (result.parity.noise > 1e-5) == (backend is not None)
    about = read_metadata(path)
    precision = "int8-weights" if backend == "int8" else backend
    assert (about["form"], about.get("precision")) == ("fused", precision)
    assert coreml.load(path, Settings()).run((x,))[0].shape == (4, 5)
    before = (path / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    wrong = copy.deepcopy(fold(net))
    with torch.no_grad():
        wrong[1].conv.weight[0] *= 1.5
    with pytest.raises(ExportError, match="differs from the reference"):
        export(wrong, path, x, reference=net, backend=backend)
    assert [p.name for p in tmp_path.iterdir()] == ["net.mlpackage"]
    assert (path / "Data/com.apple.CoreML/weights/weight.bin").read_bytes() == before
    export(network().eval(), path, x, backend=backend)  # a package is replaced as a whole
    assert (path / "Data/com.apple.CoreML/weights/weight.bin").read_bytes() != before
    assert path.stat().st_mode & 0o777 == path.joinpath("Data").stat().st_mode & 0o777


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.usefixtures("coreml")
def test_operations_are_computed_as_core_ml_defines_them(name, tmp_path):
    model = copy.deepcopy(OPERATIONS[name]).eval()
    result = export(model, tmp_path / "net.mlpackage", torch.randn(2, 3, 16, 16))
    assert result.parity.ok


@pytest.mark.slow
def test_sizes_may_vary_and_time_is_not_told(coreml, net, tmp_path):
    path, maps = tmp_path / "net.mlpackage", fold(net)[:3].eval()
    result = export(maps, path, real_inputs(), dynamic="size")
    assert {"height", "width"} <= set(result.dynamic_axes[0].values())
    other = real_inputs(3, 24)
    runner = coreml.load(path, Settings())
    Reference(maps, (other,)).compare(runner.run((other,))).raise_if_different("Core ML")
    if not coreml.available():
        with pytest.raises(UnsupportedCaseError, match="Apple's systems alone"):
            runner.bind((other,))


def test_missing_converter_names_the_extra(monkeypatch, net, tmp_path):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingExtraError, match=r"coremltools.*pip install 'reparam\[coreml\]'"):
        export(net, tmp_path / "net.mlpackage", real_inputs())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("coreml")
def test_a_folder_that_is_no_package_is_kept(net, tmp_path):
    (tmp_path / "net.mlpackage").mkdir()
    (tmp_path / "net.mlpackage" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises((ExportError, InputError), match="a folder"):
        export(net, tmp_path / "net.mlpackage", real_inputs())
    assert (tmp_path / "net.mlpackage" / "notes.txt").read_text(encoding="utf-8") == "mine"
