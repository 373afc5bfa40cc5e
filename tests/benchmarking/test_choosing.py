"""The fastest engine is picked among those that agree with the trained model."""

from __future__ import annotations

import copy

import pytest
import torch

from deploying import fold, network, real_inputs
from reparam.deploy.benchmarking import installed_engines, parity_table, pick
from reparam.errors import InputError

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return network()


@pytest.fixture(scope="module")
def wrong(net):
    model = fold(net)
    with torch.no_grad():
        model[1].conv.weight[0] *= 1.001
    return model


def test_table_holds_every_combination_and_finds_the_wrong_model(net, wrong):
    rows = parity_table(
        {"deploy": fold(net), "wrong": wrong},
        real_inputs(),
        references={"deploy": net, "wrong": net},
        engines=("eager", "openvino"),
    )
    assert [(r.model, r.engine, r.ok) for r in rows] == [
        ("deploy", "eager", True),
        ("deploy", "openvino", True),
        ("wrong", "eager", False),
        ("wrong", "openvino", False),
    ]
    assert all(r.parity.top1_agreement == 1 for r in rows if r.ok)


def test_what_an_engine_cannot_do_is_a_row_with_a_reason(net):
    pytest.importorskip("onnxruntime")
    (row,) = parity_table({"net": net}, real_inputs(), engines=["onnxruntime"], precisions=["bf16"])
    assert row.parity is None
    assert not row.ok
    assert "does not run in bf16" in row.why
    assert row.as_dict()["parity"] is None


def test_pick_is_the_fastest_that_agrees_and_writes_its_format(net, tmp_path):
    fused, x = fold(net), real_inputs()
    found = pick(fused, x, reference=net, engines=("eager", "openvino"), rounds=2)
    assert found.measurement == found.result.fastest()
    assert (found.measurement.case.engine, found.suffix) in {
        ("eager", ".pt2"),
        ("openvino", ".xml"),
    }
    written = found.export(fused, tmp_path / "net", x, reference=net)
    assert written.path == tmp_path / f"net{found.suffix}"
    assert written.parity.ok


def test_forms_are_compared_and_a_wrong_one_is_never_picked(net, wrong):
    x = real_inputs()
    found = pick(
        fold(net),
        x,
        reference=net,
        forms={"train": net, "wrong": wrong},
        engines=["eager"],
        rounds=3,
    )
    assert [(row.model, row.ok) for row in found.rows] == [
        ("model", True),
        ("train", True),
        ("wrong", False),
    ]
    assert found.form in {"model", "train"}
    gain = found.gain("train", "eager")
    train, model = found.measured("train", "eager"), found.measured("model", "eager")
    assert gain.values == tuple(a / b for a, b in zip(train.rounds, model.rounds, strict=True))
    assert found.gain("wrong", "eager") is None
    assert found.measured("wrong", "eager") is None
    with pytest.raises(InputError, match="another name"):
        pick(fold(net), x, forms={"model": net}, engines=["eager"])


def test_nothing_is_picked_that_disagrees(net, wrong):
    with pytest.raises(
        InputError, match=r"no engine runs the model and agrees.*eager fp32: differs"
    ):
        pick(wrong, real_inputs(), reference=net, engines=("eager", "openvino"), rounds=1)


def test_models_are_not_changed(net):
    before = copy.deepcopy(net.state_dict())
    parity_table({"net": net}, real_inputs(), engines=("eager",), precisions=("fp32", "bf16"))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_installed_engines_are_known_and_start_with_eager():
    assert installed_engines()[0] == "eager"
