"""Checkpoint files: wrappers are seen through, nothing is half loaded, and no code is run."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reparam.checkpoints import load_checkpoint, read_weights
from reparam.errors import CheckpointError
from reparam.models import RepVGG, RepVGGSpec

SPEC = RepVGGSpec(depths=(1,), widths=(8,), stem_width=8)


def make(seed: int = 1, *, spec: RepVGGSpec = SPEC, num_classes: int = 4) -> RepVGG:
    torch.manual_seed(seed)
    return RepVGG(spec, num_classes)


def state(seed: int = 0, **options) -> dict[str, Tensor]:
    return dict(make(seed, **options).state_dict())


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def assert_holds(net: nn.Module, expected: dict[str, Tensor]) -> None:
    now = net.state_dict()
    assert now.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(now[name], tensor), name


class _MakesFolder:
    """Would create a folder while it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


OTHER = {name: tensor + 1 for name, tensor in state().items()}
WRAPPED = {
    "bare": (state(), ""),
    "ordered": (OrderedDict(state()), ""),
    "state_dict": ({"state_dict": state(), "epoch": 3, "optimizer": {"state": {}}}, "state_dict"),
    "model": ({"model": state(), "ema": None}, "model"),
    "nested": ({"model": {"state_dict": state()}}, "model.state_dict"),
    "averaged": ({"model": OTHER, "model_ema": state()}, "model_ema"),
    "averaged (timm)": ({"state_dict": OTHER, "state_dict_ema": state()}, "state_dict_ema"),
    "averaged and nested": (
        {"ema_state_dict": {"state_dict": state()}},
        "ema_state_dict.state_dict",
    ),
    "ema of the official code": ({"ema": state(), "model": OTHER, "max_accuracy": 75.1}, "ema"),
    "lightning": ({"state_dict": prefixed("model.", state()), "epoch": 1}, "state_dict"),
    "data parallel": (prefixed("module.", state()), ""),
    "compiled": (prefixed("_orig_mod.", state()), ""),
    "compiled in data parallel": (prefixed("module._orig_mod.", state()), ""),
    "compiled inside": (
        {k.replace("stages.", "stages._orig_mod."): v for k, v in state().items()},
        "",
    ),
    "torch's average": ({"n_averaged": torch.tensor(5), **prefixed("module.", state())}, ""),
    **{
        f"averaged as {name}": ({"net": OTHER, name: state()}, name)
        for name in (
            "ema_net",
            "ema_model",
            "model_ema_state_dict",
            "swa_model",
            "params_ema",
            "ema.net",
            "model_averaged",
            "EMA",
        )
    },
    "averaged, with a module inside": (
        {"model": OTHER, "ema": {"module": state(), "updates": 7, "warmups": 0}},
        "ema.module",
    ),
    "averaged, with a shadow inside": (
        {"model": OTHER, "ema": {"decay": 0.9, "shadow": state()}},
        "ema.shadow",
    ),
    "settings of an average": ({"model": state(), "ema": {"decay": 0.99}}, "model"),
    "a count of averages": ({"model": state(), "n_averaged": torch.tensor(5)}, "model"),
    "arguments of the run": (
        {
            "state_dict": state(),
            "args": argparse.Namespace(lr=0.1, out=Path("run"), inner=SimpleNamespace(x=1)),
            "metric": np.float64(71.5),
        },
        "state_dict",
    ),
    "four deep": (prefixed("a.b.c.", state()), ""),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_are_seen_through(case, tmp_path):
    content, wrapper = WRAPPED[case]
    torch.save(content, tmp_path / "net.pth")
    net = make()
    report = load_checkpoint(net, tmp_path / "net.pth")
    assert report.wrapper == wrapper
    assert report.complete
    assert_holds(net, state())


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "data parallel"])
def test_wrappers_around_the_model_are_seen_through_too(wrap, tmp_path):
    torch.save(state(), tmp_path / "net.pth")
    net = make()
    load_checkpoint(wrap(net), tmp_path / "net.pth")
    assert_holds(net, state())


def test_the_entry_can_be_chosen(tmp_path):
    torch.save({"ema": OTHER, "runs": {"first": {"model": state()}}}, tmp_path / "net.pth")
    net = make()
    assert (
        load_checkpoint(net, tmp_path / "net.pth", key="runs.first").wrapper == "runs.first.model"
    )
    assert_holds(net, state())
    with pytest.raises(CheckpointError, match=r"no entry 'runs.second'; it holds .* first"):
        load_checkpoint(net, tmp_path / "net.pth", key="runs.second")


def test_files_of_old_torch_are_read(tmp_path):
    torch.save(state(), tmp_path / "net.pth.tar", _use_new_zipfile_serialization=False)
    net = make()
    load_checkpoint(net, tmp_path / "net.pth.tar")
    assert_holds(net, state())


def test_numbers_are_cast_to_the_type_of_the_model(tmp_path):
    torch.save(state(), tmp_path / "net.pth")
    net = make().double()
    load_checkpoint(net, tmp_path / "net.pth")
    assert_holds(net, {k: v.to(net.state_dict()[k].dtype) for k, v in state().items()})
    assert net.head.weight.dtype == torch.float64


def test_weights_stay_those_of_the_optimizer(tmp_path):
    torch.save(state(), tmp_path / "net.pth")
    net = make()
    before = [id(parameter) for parameter in net.parameters()]
    load_checkpoint(net, tmp_path / "net.pth")
    assert [id(parameter) for parameter in net.parameters()] == before


def test_any_other_model_is_matched_by_its_own_names(tmp_path):
    net, source = (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)) for _ in range(2))
    torch.save({"model": prefixed("module.", source.state_dict())}, tmp_path / "net.pth")
    report = load_checkpoint(net, tmp_path / "net.pth")
    assert (report.form, report.complete) == (None, True)
    assert_holds(net, source.state_dict())


def test_a_prefix_that_the_model_has_itself_is_kept(tmp_path):
    net, source = (nn.ModuleDict({"module": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "net.pth")
    load_checkpoint(net, tmp_path / "net.pth")
    assert_holds(net, source.state_dict())


def test_tied_weights_need_to_be_there_once(tmp_path):
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    wanted = torch.randn(2, 2)
    file = {"a.weight": wanted, "a.bias": torch.ones(2), "b.bias": torch.zeros(2)}
    torch.save(file, tmp_path / "net.pth")
    assert load_checkpoint(net, tmp_path / "net.pth").complete
    assert torch.equal(net["b"].weight, wanted)


def test_counters_may_be_missing(tmp_path):
    kept = {k: v for k, v in state().items() if not k.endswith("num_batches_tracked")}
    assert len(kept) < len(state())
    torch.save(kept, tmp_path / "net.pth")
    assert load_checkpoint(make(), tmp_path / "net.pth").complete


def without(*names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state().items() if name not in names}


WEIGHT = "stem.branches.kxk0.conv.weight"
MISFITS = {
    "missing": (without(WEIGHT), rf"1 not in the file: {WEIGHT}"),
    "unexpected": ({**state(), "aux.weight": torch.ones(2)}, "1 not in the model: aux.weight"),
    "shape": (
        {**state(), WEIGHT: torch.ones(8, 3, 5, 5)},
        rf"{WEIGHT} is \(8, 3, 5, 5\) in the file and \(8, 3, 3, 3\) in the model",
    ),
    "type": (
        {**state(), WEIGHT: torch.ones(8, 3, 3, 3, dtype=torch.int64)},
        rf"{WEIGHT} is torch.int64 in the file and torch.float32",
    ),
    "classes": (
        state(num_classes=9),
        r"file is for 9 classes and the model for 4: build the model with num_classes=9",
    ),
    "many": ({**state(), **{f"more.{i}": torch.ones(1) for i in range(99)}}, "and 93 more"),
    "nothing": ({"a": torch.ones(2)}, r"no name in common.* The file has a; the model has stem"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_match_is_named_and_nothing_is_loaded(case, tmp_path):
    content, message = MISFITS[case]
    torch.save(content, tmp_path / "net.pth")
    net = make()
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(net, tmp_path / "net.pth")
    assert "nothing was loaded" in str(caught.value)
    assert_holds(net, state(1))


@pytest.mark.parametrize("case", [case for case in MISFITS if case != "nothing"])
def test_without_strict_the_rest_is_loaded(case, tmp_path):
    content, _ = MISFITS[case]
    torch.save(content, tmp_path / "net.pth")
    net = make()
    report = load_checkpoint(net, tmp_path / "net.pth", strict=False)
    assert not report.complete
    left = {*report.missing, *(mismatch.name for mismatch in report.mismatched)}
    assert {*report.loaded, *left} == set(state())
    expected = {name: (state(1) if name in left else state())[name] for name in state()}
    assert_holds(net, expected)


def test_without_strict_a_file_for_something_else_is_still_refused(tmp_path):
    torch.save(MISFITS["nothing"][0], tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="no name in common"):
        load_checkpoint(make(), tmp_path / "net.pth", strict=False)


def test_other_mismatches_are_not_taken_for_classes(tmp_path):
    wider = RepVGGSpec(depths=(1,), widths=(16,), stem_width=8)
    torch.save(state(spec=wider, num_classes=9), tmp_path / "net.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(make(), tmp_path / "net.pth")
    assert "num_classes" not in str(caught.value)


@pytest.mark.parametrize("strict", [True, False])
def test_the_forms_are_told_apart(strict, tmp_path):
    torch.save(state(spec=SPEC.deploy()), tmp_path / "deploy.pth")
    torch.save(state(), tmp_path / "train.pth")
    train, deploy = make(), make(spec=SPEC.deploy())
    with pytest.raises(CheckpointError, match=r"holds the deploy form.* form='deploy'"):
        load_checkpoint(train, tmp_path / "deploy.pth", strict=strict)
    with pytest.raises(CheckpointError, match=r"holds the multi-branch train form.*reparam\.fuse"):
        load_checkpoint(deploy, tmp_path / "train.pth", strict=strict)
    assert_holds(train, state(1))
    assert_holds(deploy, state(1, spec=SPEC.deploy()))


def test_the_report_reads_well(tmp_path):
    torch.save({"model": without(WEIGHT)}, tmp_path / "net.pth")
    report = load_checkpoint(make(), tmp_path / "net.pth", strict=False)
    lines = str(report).splitlines()
    assert lines[0].endswith(
        f"net.pth, entry 'model' (names: the model's own names, train form): "
        f"{len(state()) - 1} tensors fit"
    )
    assert lines[1] == f"  1 not in the file: {WEIGHT}"


def test_a_model_without_memory_is_refused(tmp_path):
    torch.save(state(), tmp_path / "net.pth")
    with torch.device("meta"):
        net = RepVGG(SPEC, 4)
    with pytest.raises(CheckpointError, match="meta device"):
        load_checkpoint(net, tmp_path / "net.pth")


def test_code_in_a_file_is_not_run(tmp_path):
    folder = tmp_path / "made"
    torch.save({"state_dict": state(), "more": _MakesFolder(folder)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"would run code for \w+\.mkdir\. Only"):
        read_weights(tmp_path / "net.pth")
    assert not folder.exists()
    torch.load(tmp_path / "net.pth", weights_only=False)
    assert folder.exists()


def saved(content: object, path: Path, **options) -> None:
    torch.save(content, path, **options)


UNREADABLE = {
    "a whole model": (lambda p: saved(make(), p), r"RepVGG.*content.state_dict\(\)"),
    "objects": (
        lambda p: saved({"model": state(), "date": dt.date(2020, 1, 1)}, p),
        r"datetime.date.*weights_only=False",
    ),
    "objects, old torch": (
        lambda p: saved(dt.date(2020, 1, 1), p, _use_new_zipfile_serialization=False),
        "datetime.date",
    ),
    "an average without names": (
        lambda p: saved({"model": state(), "ema": {"shadow_params": list(state().values())}}, p),
        "averaged weights in 'ema', of which no names are known.*key=",
    ),
    "another entry": (
        lambda p: saved({"run": {"best": state()}, "epoch": 1}, p),
        "there are some in key='run.best'",
    ),
    "cut short": (
        lambda p: saved(state(), p) or p.write_bytes(p.read_bytes()[:-30]),
        "was cut short",
    ),
    "torchscript": (
        lambda p: torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)).save(str(p)),
        "TorchScript archive",
    ),
    "a list": (lambda p: saved([torch.ones(1)], p), "holds a list; needed are named tensors"),
    "nothing named": (lambda p: saved({"epoch": 3}, p), "a dict with the entries epoch"),
    "empty dict": (lambda p: saved({"model": {}}, p), "a dict with the entries model"),
    "empty file": (lambda p: p.write_bytes(b""), "it is empty"),
    "text": (lambda p: p.write_text("weights\n" * 99), "no checkpoint that torch.load can read"),
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "html": (lambda p: p.write_text("<!DOCTYPE html><html></html>"), "an HTML page"),
    "hdf5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "no checkpoint|a dict"),
    "folder": (lambda p: p.mkdir(), "a folder"),
    "absent": (lambda _: None, "no such file"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_files_are_named(case, tmp_path):
    write, message = UNREADABLE[case]
    write(tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(make(), tmp_path / "net.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".safetensors"])
def test_damaged_files_are_refused_whatever_is_damaged(suffix, tmp_path):
    file = tmp_path / f"net{suffix}"
    if suffix.startswith(".pth"):
        torch.save(state(), file, _use_new_zipfile_serialization=suffix == ".pth")
    else:
        pytest.importorskip("safetensors.torch").save_file(state(), file)
    whole = file.read_bytes()
    for end in (*range(100), *range(100, len(whole), len(whole) // 50)):
        file.write_bytes(whole[:end])
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(make(), file)
        assert "Errno" not in str(caught.value)
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 200):
        noise = torch.randint(256, (size,), generator=generator, dtype=torch.uint8)
        file.write_bytes(bytes(noise.tolist()))
        with pytest.raises(CheckpointError):
            read_weights(file)
