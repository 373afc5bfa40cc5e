"""LiteRT: files that its own interpreter runs; `make test-phones` has what they need."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from deploying import fold, network, real_inputs
from reparam.deploy.engines import Settings, UnsupportedCaseError, declared_sizes_of, get_engine
from reparam.deploy.engines.int8 import find_target
from reparam.deploy.engines.parity import Reference
from reparam.deploy.exporting import export, read_metadata
from reparam.errors import ExportError, InputError, MissingExtraError
from reparam.lab.quantizing import quantize

# Importing the converter warns of torch's own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


class Maps(nn.Module):
    """Two inputs of one shape, and outputs of which two have the shape of the inputs."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return a - 2 * b, (a + b).mean((2, 3)), b * b


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return network()


@pytest.fixture
def litert():
    if not get_engine("litert").available():
        pytest.skip("litert-torch is not installed")
    return get_engine("litert")


@pytest.mark.slow
def test_file_agrees_and_a_perturbed_weight_is_found(litert, net, tmp_path, capfd):
    path = tmp_path / "net.tflite"
    result = export(fold(net), path, real_inputs(), reference=net)
    assert result.parity.ok
    assert result.parity.samples == 4  # of a file that takes one at a time
    about = read_metadata(path)
    assert (about["form"], about["layout"]) == ("fused", "NCHW")
    assert capfd.readouterr() == ("", "")
    wrong = copy.deepcopy(net)
    with torch.no_grad():
        wrong[1].conv3.weight[0] *= 1.001
    found = litert.load(path, Settings(threads=1)).run((real_inputs(),))
    assert not Reference(wrong, (real_inputs(),)).compare(found).ok


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["fp16", "nhwc", "nhwc-fp16"])
def test_half_weights_and_channels_last(litert, backend, net, tmp_path):
    path, x = tmp_path / "net.tflite", real_inputs(2, 16)
    result = export(fold(net), path, x, reference=net, backend=backend)
    assert result.parity.ok
    assert (result.parity.noise > 1e-5) == ("fp16" in backend)  # judged by float16's own rounding
    (taken,) = (d["shape_signature"].tolist() for d in litert.load(path, Settings()).inputs)
    assert taken == ([1, 16, 16, 3] if "nhwc" in backend else [1, 3, 16, 16])
    assert declared_sizes_of(path) == [1, 3, 16, 16]  # channels first, whichever way it takes them
    assert read_metadata(path).get("precision", "fp32") == ("fp16" if "fp16" in backend else "fp32")
    wrong = copy.deepcopy(fold(net))
    with torch.no_grad():
        wrong[1].conv.weight[0] *= 1.5
    with pytest.raises(ExportError, match="differs from the reference"):
        export(wrong, tmp_path / "wrong.tflite", x, reference=net, backend=backend)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.tflite", "net.tflite.json"]


@pytest.mark.slow
def test_variable_sizes_with_the_channels_last(litert, net, tmp_path):
    path, maps = tmp_path / "maps.tflite", fold(net)[:3].eval()
    result = export(maps, path, real_inputs(), dynamic="size", backend="nhwc")
    assert set(result.dynamic_axes[0].values()) == {"batch", "height", "width"}
    other = real_inputs(3, 24)
    found = litert.load(path, Settings(threads=1)).run((other,))
    Reference(maps, (other,)).compare(found).raise_if_different("LiteRT")


@pytest.mark.slow
def test_several_inputs_keep_their_order_and_their_shapes(litert, tmp_path):
    path, maps = tmp_path / "maps.tflite", Maps().eval()
    export(maps, path, (torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)), dynamic=False)
    other = torch.randn(2, 3, 6, 6)
    with pytest.raises(UnsupportedCaseError, match=r"takes an input of shape \(2, "):
        litert.load(path, Settings()).run((other, other))


@pytest.mark.slow
@pytest.mark.usefixtures("litert")
def test_a_batch_that_cannot_vary_says_what_to_do(net, tmp_path):
    with pytest.raises(ExportError, match="dynamic=True"):
        export(net, tmp_path / "net.tflite", real_inputs(), dynamic="batch")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("litert")
def test_eight_bits_are_as_good_as_in_onnx_runtime(net, tmp_path):
    fused, x = fold(net), real_inputs(32)
    results = {
        suffix: quantize(fused, tmp_path / f"net.{suffix}", x, target="arm")
        for suffix in ("tflite", "onnx")
    }
    assert (
        results["tflite"].quantized == results["onnx"].quantized == ("0", "1.conv", "2.conv", "5")
    )
    assert results["tflite"].score.output_db > 30
    kept = quantize(fused, tmp_path / "kept.tflite", x, keep_float=["0", "5"], diagnose=False)
    assert kept.quantized == ("1.conv", "2.conv")
    assert kept.score.output_db > results["tflite"].score.output_db
    assert read_metadata(tmp_path / "kept.tflite")["precision"] == "int8"


@pytest.mark.slow
@pytest.mark.usefixtures("litert")
def test_its_sums_do_not_saturate_and_its_weights_have_eight_bits(net, tmp_path):
    assert not find_target("avx2", "litert").saturates
    with pytest.raises(InputError, match="8 bits"):
        quantize(fold(net), tmp_path / "net.tflite", real_inputs(), weight_bits=7)


def test_missing_converter_names_the_extra(monkeypatch, net, tmp_path):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(MissingExtraError, match=r"ai-edge-litert.*pip install 'reparam\[litert\]'"):
        export(net, tmp_path / "net.tflite", real_inputs())
    assert not list(tmp_path.iterdir())
