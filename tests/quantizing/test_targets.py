"""Files for processors whose eight-bit sums saturate, and for those where they do not.

OpenVINO computes as on a processor without VNNI where ``ONEDNN_MAX_CPU_ISA`` says so, which it
reads once: those tests run in a process of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantized_child
import reparam
from quantizing.nets import inputs, single_path
from reparam.deploy.engines.int8 import TARGETS, find_target, sums_saturate
from reparam.errors import InputError, MachineWarning
from reparam.lab.quantizing import Arithmetic, diagnose
from reparam.lab.quantizing.simulation import lost_to_saturation

pytest.importorskip("nncf")

X = inputs()
ENGINES = {"net.xml": "openvino", "net.onnx": "onnxruntime"}
NO_VNNI = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def in_child(folder: Path, **environment: str) -> dict[str, Any]:
    """Quantize for OpenVINO in a process of its own, in every way; see ``quantized_child``."""
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, quantized_child.__file__, str(folder)],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def without_vnni(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return in_child(tmp_path_factory.mktemp("avx2"), **NO_VNNI)


def test_a_processor_without_vnni_is_noticed_and_gets_weights_that_cannot_saturate(without_vnni):
    assert without_vnni["saturates"] is True
    auto = without_vnni["auto"]
    assert (auto["target"], auto["weight_bits"], auto["warned"]) == ("avx2", 7, False)
    assert auto["output_db"] == pytest.approx(auto["simulated_db"], abs=2.5)


def test_saturation_is_foretold(without_vnni):
    eight, auto = without_vnni["eight bits"], without_vnni["auto"]
    assert eight["output_db"] == pytest.approx(eight["simulated_db"], abs=1.0)
    # It costs more than the bit that it was to save.
    assert eight["output_db"] < auto["output_db"] - 6


def test_a_file_for_vnni_that_is_judged_without_comes_with_a_warning(without_vnni):
    vnni = without_vnni["vnni"]
    assert (vnni["target"], vnni["weight_bits"], vnni["warned"]) == ("vnni", 8, True)
    # Its diagnosis is that of the processors it is for.
    assert vnni["simulated_db"] > vnni["output_db"] + 6
    assert without_vnni["loading warned"] == {"auto": False, "eight bits": True, "vnni": True}


@pytest.mark.parametrize("name", ENGINES)
def test_auto_is_this_processor(name: str, tmp_path: Path):
    saturates = sums_saturate(ENGINES[name])
    result = reparam.quantize(single_path(), tmp_path / name, X, diagnose=False)
    assert TARGETS[result.target].saturates == saturates
    assert result.weight_bits == (7 if saturates else 8)
    about = reparam.read_metadata(result.path)
    assert (about["target"], about["weight_bits"]) == (result.target, str(result.weight_bits))
    assert about["right_on"] == result.right_on


def largest_weights(path: Path) -> list[int]:
    """Return the largest integer of each weight of a file."""
    if path.suffix == ".onnx":
        import onnx

        constants = onnx.load(path).graph.initializer
        arrays = [onnx.numpy_helper.to_array(constant) for constant in constants]
    else:
        import openvino

        nodes = openvino.Core().read_model(path).get_ops()
        arrays = [node.get_data() for node in nodes if node.get_type_name() == "Constant"]
    wide = [array for array in arrays if str(array.dtype) == "int8" and array.ndim > 1]
    return [int(abs(array.astype("int32")).max()) for array in wide]


@pytest.mark.parametrize("target", ["any", "avx2", "avx512"])
@pytest.mark.parametrize("name", ENGINES)
def test_no_pair_of_products_can_saturate(name: str, target: str, tmp_path: Path):
    result = reparam.quantize(single_path(), tmp_path / name, X, target=target, diagnose=False)
    found = largest_weights(result.path)
    assert len(found) == 4
    assert all(32 <= largest <= 64 for largest in found)
    assert "any processor" in result.right_on


@pytest.mark.parametrize("name", ENGINES)
def test_weights_keep_eight_bits_for_processors_that_add_in_32(name: str, tmp_path: Path):
    warned = sums_saturate(ENGINES[name])
    for target in ("vnni", "arm"):
        with pytest.warns(MachineWarning) if warned else nullcontext():
            result = reparam.quantize(
                single_path(), tmp_path / name, X, target=target, diagnose=False
            )
        assert max(largest_weights(result.path)) > 100
        assert "VNNI" in result.right_on


def test_eight_bits_for_a_processor_that_saturates_are_warned_of(tmp_path: Path):
    with pytest.warns(MachineWarning, match="saturate"):
        result = reparam.quantize(single_path(), tmp_path / "net.onnx", X, target="avx2",
                                  weight_bits=8)  # fmt: skip
    assert result.diagnosis is not None
    exact = diagnose(single_path(), X)
    assert result.diagnosis.output_db < exact.output_db - 6


def test_an_unknown_target_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"'mmx'.*auto, any, avx2"):
        reparam.quantize(single_path(), tmp_path / "net.onnx", X, target="mmx")
    assert not list(tmp_path.iterdir())
    assert find_target("arm", "onnxruntime").saturates is False


LAYERS = [
    (nn.Conv1d(6, 4, 3, padding=1), (6, 9)),
    (nn.Conv2d(5, 6, 3, padding=(1, 0), stride=2), (5, 7, 6)),
    (nn.Conv2d(8, 6, (3, 1), groups=2, dilation=2, padding="same"), (8, 7, 6)),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (4, 7, 6)),
    (nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 4, 5, 4)),
    (nn.Linear(7, 3), (30, 7)),
    (nn.Linear(6, 3), (5, 6, 6)),
]


def taken_by_saturation(layer: nn.Module, x: Tensor, zero: int, *, joins_taps: bool) -> Tensor:
    """Compute every product by itself, and what clipping their sums in pairs takes away."""
    if isinstance(layer, nn.Linear):
        return excess(x.unsqueeze(-2) * layer.weight)
    fill = {"value": float(zero)} if layer.padding_mode == "zeros" else {"mode": "reflect"}
    x = nn.functional.pad(x, layer._reversed_padding_repeated_twice, **fill)
    width, outputs = layer.weight.shape[1], layer.out_channels // layer.groups
    one = type(layer)(1, 1, layer.kernel_size, layer.stride, dilation=layer.dilation, bias=False)
    found = []
    for output, kernel in enumerate(layer.weight.flatten(2)):
        first = output // outputs * width
        taps = []
        for tap in range(kernel.shape[1]):
            one.weight = nn.Parameter(torch.zeros_like(one.weight, dtype=x.dtype))
            one.weight.flatten()[tap] = 1
            read = [one(x[:, first + i, None])[:, 0] * kernel[i, tap] for i in range(width)]
            taps.append(torch.stack(read, -1))
        rows = [torch.cat(taps, -1)] if joins_taps else taps
        found.append(sum(map(excess, rows)))
    return torch.stack(found, 1)


def excess(products: Tensor) -> Tensor:
    """Return the sum over pairs, along the last axis, of what does not fit in sixteen bits."""
    pairs = products[..., : products.shape[-1] // 2 * 2].unflatten(-1, (-1, 2)).sum(-1)
    return (pairs - pairs.clamp(-(2**15), 2**15 - 1)).sum(-1)


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
@torch.no_grad()
def test_what_saturation_takes_is_what_pairs_lose(layer: nn.Module, shape: tuple[int, ...]):
    layer.weight.data = torch.randint(-127, 128, layer.weight.shape).double()
    x = torch.randint(0, 256, (2, *shape)).double()
    for joins_taps in (False, True):
        lost = lost_to_saturation(layer, x, 3, layer.weight, joins_taps=joins_taps)
        assert lost is not None
        expected = taken_by_saturation(layer, x, 3, joins_taps=joins_taps)
        assert float(expected.abs().max()) > 0
        assert torch.equal(lost, expected)


def test_depthwise_layers_and_seven_bits_lose_nothing():
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    x = torch.full((1, 4, 5, 5), 255.0)
    assert lost_to_saturation(depthwise, x, 0, torch.full((4, 1, 3, 3), 127.0)) is None
    dense = nn.Conv2d(4, 4, 3)
    assert lost_to_saturation(dense, x, 0, torch.full((4, 4, 3, 3), 64.0)) is None
    assert lost_to_saturation(dense, x, 0, torch.full((4, 4, 3, 3), -64.0)) is None
    assert lost_to_saturation(dense, x, 0, torch.full((4, 4, 3, 3), 65.0)) is not None


def test_weights_of_six_bits_are_refused():
    with pytest.raises(InputError, match="weight_bits is 6"):
        Arithmetic(6)
