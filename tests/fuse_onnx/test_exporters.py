"""Nets as the exporters of PyTorch write them, branches unfused: as few convolutions as in torch.

Both exporters fold batch norms by themselves; what keeps them from it is, for the older one,
``training=PRESERVE`` with ``do_constant_folding=False``, and for the newer one ``optimize=False``.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter

import onnx
import pytest
import torch
from torch import nn

import reparam
from deploying import network
from onnx_graphs import run_in_ort
from reparam.fusing import fuse_onnx_file

SLOW = pytest.mark.slow
EXPORTERS = ("older", "newer")
SCREEN = 50
"""Lines of a terminal; a plan of the longest file takes two of them at the most."""


def exported(net, x, path, exporter):
    """Write a net with its branches, batch and size variable."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporters warn of themselves
        if exporter == "older":
            torch.onnx.export(
                net, (x,), path, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False, opset_version=17, **names,
                dynamic_axes={"image": {0: "n", 2: "h", 3: "w"}, "logits": {0: "n"}},
            )  # fmt: skip
        else:
            auto = torch.export.Dim.AUTO
            torch.onnx.export(
                net, (x,), path, dynamo=True, optimize=False, verbose=False, **names,
                dynamic_shapes=({0: auto, 2: auto, 3: auto},),
            )  # fmt: skip
    return onnx.load(path)


def timm_model(name):
    def make():
        return pytest.importorskip("timm").create_model(name, num_classes=10)

    return make


def resnet18():
    return pytest.importorskip("torchvision").models.resnet18(num_classes=10)


NETS = [
    pytest.param(network, id="small repvgg"),
    pytest.param(lambda: reparam.models.repvgg_a0(num_classes=10), id="repvgg_a0", marks=SLOW),
    *(
        pytest.param(timm_model(name), id=f"timm {name}", marks=SLOW)
        for name in ("repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m0_9")
    ),
    pytest.param(resnet18, id="resnet18", marks=SLOW),
]


def torch_counts(net):
    kinds = Counter(type(module) for module in net.modules())
    return kinds[nn.Conv2d], kinds[nn.Linear]


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("make", NETS)
def test_an_exported_net_folds_as_the_module_does(make, exporter, tmp_path):
    net = calibrated(make())
    x = torch.randn(2, 3, 64, 64)
    model = exported(net, x, tmp_path / "net.onnx", exporter)
    convs, linears = torch_counts(reparam.fuse(net))
    stored = Counter(node.op_type for node in model.graph.node)
    assert stored["Conv"] > convs or stored["BatchNormalization"] > 0, "it was exported fused"

    result = fuse_onnx_file(tmp_path / "net.onnx", tmp_path / "fused.onnx")

    assert len(str(result.plan).splitlines()) <= 2 * SCREEN  # the longest files of the tests
    assert result.after["Conv"] == convs
    assert result.after["Gemm"] <= linears
    assert "BatchNormalization" not in result.after
    assert result.verdict.ok, result.verdict
    onnx.checker.check_model(tmp_path / "fused.onnx", full_check=True)
    fused = onnx.load(tmp_path / "fused.onnx")
    assert [v.name for v in fused.graph.input] == ["image"]
    assert fused.graph.input == model.graph.input
    assert fused.graph.output == model.graph.output
    # Another batch and another size still run, and agree with the module itself.
    y = torch.randn(3, 3, 96, 64)
    [found] = run_in_ort(fused, y.numpy())
    with torch.no_grad():
        verdict = reparam.verify(
            net, lambda v: torch.from_numpy(run_in_ort(fused, v.numpy())[0]), y
        )
    assert found.shape[0] == 3
    assert verdict.ok, verdict


def calibrated(net):
    """Give every batch norm statistics that fit its input, the rest of its numbers at random."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.eps = float(torch.empty(()).uniform_(1e-5, 1e-2))
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        net(torch.randn(8, 3, 64, 64))
    return net.eval()
