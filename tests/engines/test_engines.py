"""Each engine computes what PyTorch computes; the check sees it when one does not."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from deploying import fold, network, real_inputs
from reparam.deploy.engines import Settings, UnsupportedCaseError, engine_names, get_engine
from reparam.deploy.engines.parity import FACTORS, Reference
from reparam.deploy.engines.program import Conversion
from reparam.errors import InputError, MissingExtraError, VerificationError
from reparam.verifying import verify

ENGINES = [name for name in ("eager", "onnxruntime", "openvino") if get_engine(name).available()]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return network()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["train", "fused"])
def test_engine_agrees_with_the_trained_model(engine, form, net):
    x = real_inputs()
    model = net if form == "train" else fold(net)
    runner = get_engine(engine).prepare(Conversion(model, (x,)), Settings(threads=1))
    parity = Reference(net, (x,)).compare(runner.run((x,)))
    parity.raise_if_different(engine)
    assert parity.top1_agreement == 1
    assert parity.samples == 4


@pytest.mark.parametrize("engine", ["eager", "openvino"])
def test_bf16_agrees_within_the_rounding_of_bf16(engine, net):
    if engine not in ENGINES:
        pytest.skip(f"{engine} is not installed")
    x = real_inputs()
    runner = get_engine(engine).prepare(Conversion(fold(net), (x,)), Settings(1, "bf16"))
    outputs = runner.run((x,))
    reference = Reference(net, (x,))
    assert reference.compare(outputs, "bf16").ok


@pytest.mark.parametrize("engine", ENGINES)
def test_perturbed_weight_is_found(engine, net):
    x = real_inputs()
    wrong = copy.deepcopy(net)
    with torch.no_grad():
        wrong[1].conv3.weight[0] *= 1.001
    runner = get_engine(engine).prepare(Conversion(wrong, (x,)), Settings(threads=1))
    parity = Reference(net, (x,)).compare(runner.run((x,)))
    assert not parity.ok
    with pytest.raises(VerificationError, match=r"differs from the reference: .* allowed"):
        parity.raise_if_different("it")


def test_tolerance_is_a_multiple_of_the_noise_control(net):
    x = real_inputs()
    reference = Reference(net, (x,))
    with torch.no_grad():
        own = net(x)
    parity = reference.compare([own])
    assert parity.max_abs == 0
    assert 0 < parity.noise < 1e-5 * float(own.abs().max())
    assert parity.tolerance == FACTORS["fp32"] * parity.noise
    assert reference.compare([own.double() + 0.99 * parity.tolerance]).ok
    assert not reference.compare([own.double() + 1.01 * parity.tolerance]).ok


def test_parity_and_verify_agree(net):
    x, fused = real_inputs(), fold(net)
    with torch.no_grad():
        parity = Reference(net, (x,)).compare([fused(x)])
    verdict = verify(net, fused, x)
    assert parity.tolerance == pytest.approx(verdict.tolerance, rel=1e-12)
    assert parity.max_abs == verdict.max_abs


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_not_finite_is_different(net, poison):
    x = real_inputs()
    with torch.no_grad():
        y = net(x)
    y[1, 2] = poison
    assert not Reference(net, (x,)).compare([y]).ok


def test_other_shape_is_different(net):
    x = real_inputs()
    with pytest.raises(VerificationError, match=r"\(3, 5\).*\(4, 5\)"):
        Reference(net, (x,)).compare([torch.zeros(3, 5)])


def test_reference_keeps_its_dtype_and_device(net):
    Reference(net, (real_inputs(),))
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_precision_an_engine_lacks_says_which_it_has(net):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UnsupportedCaseError, match="does not run in bf16 here; it runs in: fp32"):
        get_engine("onnxruntime").prepare(Conversion(net, (real_inputs(),)), Settings(1, "bf16"))


def test_engine_says_which_files_it_loads(tmp_path):
    with pytest.raises(UnsupportedCaseError, match=r"not load '\.onnx' files; it loads: \.pt2"):
        get_engine("eager").load(tmp_path / "a.onnx", Settings())


def test_unknown_engine_lists_the_known():
    with pytest.raises(InputError, match=r"known engines: eager, .*onnxruntime"):
        get_engine("tflite")
    assert "openvino" in engine_names()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_missing_package_names_the_extra(engine, monkeypatch, net):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(MissingExtraError, match=rf"{engine}.*pip install 'reparam\[deploy\]'"):
        get_engine(engine).prepare(Conversion(net, (real_inputs(),)), Settings())


def test_several_inputs_and_outputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, a, b):
            y = self.conv(a)
            return {"sum": y + b, "pooled": y.mean((2, 3))}

    net, inputs = Two().eval(), (torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8))
    reference = Reference(net, inputs)
    for name in ENGINES:
        runner = get_engine(name).prepare(Conversion(net, inputs), Settings(threads=1))
        reference.compare(runner.run(inputs)).raise_if_different(name)
