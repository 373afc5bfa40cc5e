from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reparam
from quantizing.nets import badly_scaled, inputs, single_path
from reparam.deploy.engines import Settings, get_engine
from reparam.deploy.engines.int8 import sums_saturate
from reparam.errors import (
    DataError,
    ExportError,
    InputError,
    TrainingModeError,
    VerificationError,
)
from reparam.lab.data import ArraySplit, ImageData
from reparam.lab.quantizing import labelled_batches
from reparam.lab.quantizing.samples import read_samples
from reparam.models import BRANCHES, RepVGG, RepVGGSpec
from reparam.verifying import NothingShownWarning

pytest.importorskip("nncf")

X = inputs()
FILES = ["net.xml", "net.onnx"]


def labelled(count: int = 96) -> tuple[Tensor, Tensor]:
    """Return images and, as their classes, what the float net says."""
    images = inputs(count)
    with torch.no_grad():
        return images, single_path()(images).argmax(1)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def integer_weights(path: Path) -> int:
    """Count the convolutions and linear maps of a file that hold an int8 weight."""
    if path.suffix == ".onnx":
        import onnx

        graph = onnx.load(path).graph
        int8 = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
        nodes = [node for node in graph.node if node.op_type == "DequantizeLinear"]
        return sum(node.input[0] in int8 for node in nodes)
    import openvino

    model = openvino.Core().read_model(path)
    types = [op.get_element_type().get_type_name() for op in model.get_ops()
             if op.get_type_name() == "Constant" and len(op.get_output_shape(0)) > 1]  # fmt: skip
    return types.count("i8")


@pytest.mark.parametrize("name", FILES)
def test_a_net_is_written_in_integers_and_judged_in_its_engine(name: str, tmp_path: Path):
    data = labelled()
    result = reparam.quantize(single_path(), tmp_path / name, data, evaluation=data)
    assert result.quantized == ("0", "2", "4", "8")
    assert integer_weights(result.path) == 4
    score = result.score
    assert score.samples == 96
    assert score.float_accuracy == 1.0
    assert score.accuracy == score.agreement
    assert score.accuracy is not None
    assert score.accuracy > 0.9
    # The same, by hand, in the engine.
    runner = get_engine(result.engine).load(result.path, Settings())
    found = torch.cat([runner.run((part,))[0] for part in torch.split(data[0], 16)])
    assert float((found.argmax(1) == data[1]).double().mean()) == score.accuracy
    assert score.output_db > 20
    json.dumps(result.as_dict())
    assert str(result).startswith(name)
    about = reparam.read_metadata(result.path)
    assert about["form"] == "fused"
    assert about["precision"] == "int8"
    assert json.loads(about["remedies"])["bias_corrected"] is True


@pytest.mark.parametrize("name", FILES)
def test_the_simulation_foretells_the_engine(name: str, tmp_path: Path):
    # Its inner layers lose most: engines round the output too, which is not simulated.
    net = badly_scaled(single_path())
    result = reparam.quantize(net, tmp_path / name, X, evaluation=X, correct_bias=False)
    assert result.diagnosis is not None
    assert result.score.output_db == pytest.approx(result.diagnosis.output_db, abs=2.0)


@pytest.mark.parametrize("name", FILES)
def test_the_worst_layers_stay_in_float(name: str, tmp_path: Path):
    net = badly_scaled(single_path())
    whole = reparam.quantize(net, tmp_path / f"whole-{name}", X)
    part = reparam.quantize(net, tmp_path / name, X, keep_float=1)
    assert part.kept_float == ("2",)
    assert part.quantized == ("0", "4", "8")
    assert integer_weights(part.path) == 3
    assert part.score.output_db > whole.score.output_db + 6
    named = reparam.quantize(net, tmp_path / name, X, keep_float=["2", "8"], diagnose=False)
    assert named.kept_float == ("2", "8")
    assert named.diagnosis is None


@pytest.mark.parametrize("name", FILES)
def test_equalisation_and_bias_correction_help(name: str, tmp_path: Path):
    net = badly_scaled(single_path())
    plain = reparam.quantize(net, tmp_path / name, X, correct_bias=False)
    helped = reparam.quantize(net, tmp_path / name, X, equalize=True, correct_bias=False)
    corrected = reparam.quantize(net, tmp_path / name, X)
    assert [place.source for place in helped.equalised] == ["0", "2", "4"]
    assert helped.score.output_db > plain.score.output_db + 6
    assert corrected.score.output_db > plain.score.output_db + 3
    assert corrected.bias_corrected
    assert not helped.bias_corrected


@pytest.mark.parametrize("name", FILES)
def test_seven_bits_are_fewer(name: str, tmp_path: Path):
    eight = reparam.quantize(single_path(), tmp_path / name, X, weight_bits=8)
    seven = reparam.quantize(single_path(), tmp_path / name, X, weight_bits=7)
    # Where sums of eight-bit products saturate, that costs more than the bit.
    saturates = sums_saturate(eight.engine)
    assert (seven.score.output_db > eight.score.output_db) == saturates


def test_a_fixed_batch_is_run_one_by_one(tmp_path: Path):
    for name in FILES:
        result = reparam.quantize(single_path(), tmp_path / name, X, dynamic=False)
        assert result.dynamic_axes == ({},)
        assert result.score.samples == len(X)


def test_nothing_of_the_users_is_changed(tmp_path: Path):
    net = single_path()
    before = copy.deepcopy(net.state_dict())
    reparam.quantize(net, tmp_path / "net.onnx", X, equalize=True)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert names(tmp_path) == ["net.onnx"]


def test_a_reference_may_be_the_training_form(tmp_path: Path):
    spec = RepVGGSpec(depths=(2,), widths=(8,), stem_width=8, branches=BRANCHES["qarepvgg"])
    train = RepVGG(spec, num_classes=5)
    for _ in range(3):
        train(X)
    train.eval()
    fused = reparam.fuse(train)
    result = reparam.quantize(fused, tmp_path / "net.onnx", X, reference=train, equalize=True)
    assert len(result.quantized) == 4
    assert result.score.output_db > 20


# What is refused -------------------------------------------------------------------------------


def multi_branch() -> nn.Module:
    return RepVGG(RepVGGSpec(depths=(1,), widths=(4,), stem_width=4), num_classes=3).eval()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"fused": multi_branch()}, InputError, "is not fused.*reparam fuse"),
        ({"fused": single_path().train()}, TrainingModeError, "eval"),
        ({"calibration": []}, DataError, "no calibration data"),
        ({"calibration": iter(())}, DataError, "no calibration data"),
        ({"calibration": X[:, :2]}, InputError, r"does not run.*\(2, 12, 12\)"),
        ({"calibration": X[0]}, InputError, "does not run"),
        ({"calibration": X.long()}, DataError, "int64"),
        ({"calibration": X * torch.nan}, DataError, "not finite"),
        ({"calibration": "no/such/folder"}, DataError, "no data"),
        ({"calibration": 7}, DataError, "no data"),
        ({"calibration": [X[:4], X[:4, :, :8]]}, DataError, "unequal shapes"),
        ({"samples": 0}, InputError, "samples is 0"),
        ({"keep_float": 4}, InputError, "from 0 to 3"),
        ({"keep_float": ["nine"]}, InputError, "'nine'"),
        ({"keep_float": ["0", "2", "4", "8"]}, InputError, "every layer"),
        ({"weight_bits": 4}, InputError, "weight_bits is 4"),
        ({"engine": "openvino"}, InputError, "takes .xml files"),
        ({"engine": "abacus"}, InputError, "abacus"),
        ({"path": "net.pt2"}, InputError, r"net\.pt2"),
        ({"path": "missing/net.onnx"}, InputError, "not a folder"),
        ({"evaluation": []}, ExportError, "nothing to judge"),
        ({"max_drop": -100.0}, VerificationError, "nothing was written"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    arguments: dict, error: type[Exception], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    usual = {"fused": single_path(), "path": "net.onnx", "calibration": X}
    with pytest.raises(error, match=message):
        reparam.quantize(**{**usual, **arguments})
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_there_survives_a_failure(name: str, tmp_path: Path):
    (tmp_path / name).write_text("the last good one")
    with pytest.raises(VerificationError, match="loses"):
        reparam.quantize(single_path(), tmp_path / name, X, max_drop=-1.0)
    assert (tmp_path / name).read_text() == "the last good one"
    assert names(tmp_path) == [name]


class Overflowing(nn.Module):
    """Finite on the calibration samples and not on others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(self.conv(x).abs().mean(dim=(2, 3)) * 1e6)


def test_an_output_that_is_not_finite_is_not_written(tmp_path: Path):
    with pytest.raises(ExportError, match="not finite"):
        reparam.quantize(Overflowing().eval(), tmp_path / "net.onnx", X)
    assert names(tmp_path) == []


def sorted_data() -> ImageData:
    """Return a data set whose images are sorted by class, as files in folders are."""
    labels = torch.arange(4).repeat_interleave(50)
    images = torch.randint(0, 255, (200, 3, 12, 12), dtype=torch.uint8)
    split = ArraySplit(images, labels)
    return ImageData(
        "sorted", tuple("abcd"), (3, 12, 12), (0.5,) * 3, (0.2,) * 3, split, split, None, "x"
    )


def test_a_sorted_data_set_is_sampled_over_all_classes():
    data = sorted_data()
    held = read_samples(data, 40)
    assert held.labels is not None
    assert len(held) == 40
    assert held.labels.bincount().min() >= 4
    assert torch.equal(held.inputs, read_samples(data, 40).inputs)


def test_held_out_images_are_spread_and_named():
    judged = labelled_batches(sorted_data(), limit=20)
    labels = torch.cat([labels for _, labels in judged.batches])
    assert labels.bincount().tolist() == [5, 5, 5, 5]
    assert judged.name == "20 validation images of sorted"


def test_batches_may_be_of_many_forms():
    labels = torch.zeros(48, dtype=torch.int64)
    forms = [X, [X], (X[:24], X[24:]), [(X, labels)], (X, labels), ((x, None) for x in [X])]
    for form in forms[:-1]:
        assert torch.equal(read_samples(form, 20).inputs, X[:20])
    assert read_samples((X, labels), 20).labels is not None
    with pytest.raises(DataError, match="tuple"):
        read_samples(forms[-1], 20)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize(("dims", "groups"), [(1, 2), (2, 1), (2, 2), (2, 4), (2, 8)])
def test_transposed_convolutions_of_any_groups_are_quantized(dims, groups, suffix, tmp_path):
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d)[dims - 1](8, 8, 2, 2, groups=groups)
    conv = (nn.Conv1d, nn.Conv2d)[dims - 1](3, 8, 3, padding=1)
    net = nn.Sequential(conv, nn.ReLU(), transposed).eval()
    samples = torch.randn(16, 3, *(8,) * dims)
    result = reparam.quantize(net, tmp_path / f"net{suffix}", samples)
    assert result.score.output_db > 25


@pytest.mark.parametrize("name", FILES)
def test_agreement_of_an_output_that_never_changes_shows_nothing(name: str, tmp_path: Path):
    net = single_path()
    with torch.no_grad():
        net[-1].weight.mul_(1e-9)
    with pytest.warns(NothingShownWarning):
        reparam.quantize(net, tmp_path / name, X, evaluation=X, diagnose=False)
