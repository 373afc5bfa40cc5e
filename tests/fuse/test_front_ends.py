"""One net, five forms: its module, graph module, two programs and ONNX file fold alike."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import fx, nn

import reparam
from counting import arithmetic
from onnx_graphs import run_in_ort
from zoo import CASES

Counts = tuple[int, int, int]

LEFT_OUT = ("-stride2", "-grouped", "-5x5", "no-bias", "no-identity")
"""Variants, of which one of each kind is enough here."""

NETS = [case for case in CASES if not case.pending and not case.name.endswith(LEFT_OUT)]

APART = {
    # Padding that is no zeros is a step of its own here, which branches without it do not share.
    ("reflect-branches", "core ATen"), ("circular-branches", "core ATen"),
    ("reflect-branches", "program"), ("circular-branches", "program"),
    # Written as slices and joins; ONNX has no such padding before version 19 of its operators.
    ("circular-branches", "ONNX"),
    # The exporter makes one operation of the paddings of all branches: it is read by them all.
    ("ecbsr", "ONNX"), ("ecbsr-prelu", "ONNX"),
    # A border that only a run tells in Python, and a constant in the file: more folds there.
    ("dbb-border", "ONNX"),
}  # fmt: skip
"""Nets that fold otherwise in a form, which says other things of them than the module does."""

UNWRITABLE = {
    *((name, "graph module") for name in (
        "dbb-border", "ecbsr-written-border", "orepa", "bn-behind-cat",
    )),
    ("orepa", "ONNX"), ("spectral-norm-bn", "ONNX"),
}  # fmt: skip
"""Nets that torch.fx, or the exporter, does not write in a form at all."""


def module(model: nn.Module, x: torch.Tensor) -> tuple[Counts, Any]:
    fused = reparam.fuse(model, x)
    return arithmetic(fused, x), fused(x)


def graph_module(model: nn.Module, x: torch.Tensor) -> tuple[Counts, torch.Tensor]:
    return module(fx.symbolic_trace(model), x)


def program(model: nn.Module, x: torch.Tensor) -> tuple[Counts, torch.Tensor]:
    fused = reparam.fuse(torch.export.export(model, (x,))).module()
    return arithmetic(fused, x), fused(x)


def core_aten(model: nn.Module, x: torch.Tensor) -> tuple[Counts, torch.Tensor]:
    fused = reparam.fuse(torch.export.export(model, (x,)).run_decompositions()).module()
    return arithmetic(fused, x), fused(x)


def onnx_file(model: nn.Module, x: torch.Tensor) -> tuple[Counts, torch.Tensor]:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of itself
        torch.onnx.export(
            model.float(), (x.float(),), content, dynamo=False, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE, opset_version=17,
        )  # fmt: skip
    fused = reparam.fuse(onnx.load_from_string(content.getvalue()))
    kinds = Counter(node.op_type for node in fused.graph.node)
    counts = (
        kinds["Conv"] + kinds["ConvTranspose"],
        kinds["Gemm"] + kinds["MatMul"],
        kinds["BatchNormalization"],
    )
    results = [torch.from_numpy(y).double() for y in run_in_ort(fused, x.float().numpy())]
    return counts, results[0] if len(results) == 1 else tuple(results)


FORMS: dict[str, tuple[Callable[..., Any], float]] = {
    "graph module": (graph_module, 1e-10),
    "program": (program, 1e-10),
    "core ATen": (core_aten, 1e-10),
    "ONNX": (onnx_file, 1e-4),
}


PAIRS = [
    pytest.param(case, form, id=f"{case.name} {form}")
    for case in NETS
    for form in FORMS
    if (case.name, form) not in UNWRITABLE
]


@pytest.mark.parametrize(("case", "form"), PAIRS)
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # torch's, of the net
@torch.no_grad()
def test_every_front_end_folds_the_same(case: Any, form: str) -> None:
    model, x = case.module(), case.inputs()
    result = model(x)
    expected, _ = module(model, x)
    fold, tolerance = FORMS[form]
    counts, found = fold(model, x)
    torch.testing.assert_close(found, result, rtol=tolerance, atol=tolerance)
    if (case.name, form) in APART:
        assert counts != expected  # to be taken out of the list where this no longer holds
    else:
        assert counts == expected
