"""Every public call on inputs that nobody should give: a ReparamError, and no trace of the call."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

import reparam
from bad_inputs import MODELS, PATHS, SAMPLES, leaving_no_trace
from reparam.deploy.exporting import certify, check_certificate
from reparam.errors import InputError, ReparamError, TrainingModeError


def net() -> nn.Sequential:
    layers = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1))
    return nn.Sequential(*layers).eval()


def fused() -> nn.Module:
    return reparam.fuse(net())


def written(folder: Path) -> Path:
    """A file of the net's weights outside of a folder, which a call is not to change."""
    path = folder.parent / f"{folder.name}.safetensors"
    if not path.exists():
        reparam.export(HELD, path, X)
    return path


X = torch.randn(2, 3, 12, 12)
HELD = net()
SGD = torch.optim.SGD(net().parameters(), lr=0.1)

# Each is called with the value, and the folder it may try to write to.
WITH_MODEL = {
    "plan model": lambda m, _: reparam.plan(m),
    "fuse model": lambda m, _: reparam.fuse(m),
    "operator block": lambda m, _: reparam.operator(m),
    "branch model": lambda m, _: reparam.branch(m),
    "verify reference": lambda m, _: reparam.verify(m, net(), X),
    "verify candidate": lambda m, _: reparam.verify(net(), m, X),
    "export model": lambda m, to: reparam.export(m, to / "net.safetensors", X),
    "diff first": lambda m, _: reparam.diff(m, net(), X),
    "diff second": lambda m, _: reparam.diff(net(), m, X),
    "certify reference": lambda m, to: certify(m, written(to), X, model=HELD),
    "certify model": lambda m, to: certify(HELD, written(to), X, model=m),
    "online model": lambda m, _: reparam.online(m),
    "online_plan model": lambda m, _: reparam.online_plan(m),
    "online_mode net": lambda m, _: reparam.online_mode(m, "batch").__enter__(),
    "export reference": lambda m, to: reparam.export(net(), to / "net.onnx", X, reference=m),
    "benchmark it": lambda m, _: reparam.benchmark({"it": m}, X, rounds=1),
    "pick model": lambda m, _: reparam.pick(m, X, engines=["eager"], rounds=1),
    "pick reference": lambda m, _: reparam.pick(net(), X, reference=m, engines=["eager"], rounds=1),
    "prune model": lambda m, _: reparam.prune(m, X, macs=0.5),
    "quantize fused": lambda m, to: reparam.quantize(m, to / "net.onnx", X),
    "quantize reference": lambda m, to: reparam.quantize(fused(), to / "q.onnx", X, reference=m),
    "load_checkpoint net": lambda m, to: reparam.load_checkpoint(m, to / "net.pth"),
    "load_fused model": lambda m, to: reparam.load_fused(m, to / "net.pth"),
    "train model": lambda m, to: reparam.train(m, None, recipe="digits", out=to / "run"),
    "RepOptimizer model": lambda m, _: reparam.RepOptimizer(SGD, m, {"0": None}),
}
ALLOWED = {  # these are meant to work
    ("export reference", "None"), ("pick reference", "None"), ("quantize reference", "None"),
    ("operator block", "in training mode"), ("branch model", "in training mode"),
    ("train model", "in training mode"), ("RepOptimizer model", "in training mode"),
    ("online model", "in training mode"), ("online_plan model", "in training mode"),
    ("online_mode net", "in training mode"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "value"), sorted({*product(WITH_MODEL, MODELS)} - ALLOWED))
def test_what_is_no_model(call, value, tmp_path):
    given = MODELS[value]()
    with leaving_no_trace(tmp_path, models=(given,)), pytest.raises(ReparamError) as caught:
        WITH_MODEL[call](given, tmp_path)
    if not isinstance(caught.value, TrainingModeError):
        name = call.partition(" ")[2]
        assert name in str(caught.value) or repr("it") in str(caught.value)


WITH_SAMPLE = {
    "plan": lambda x, _: reparam.plan(net(), x),
    "fuse": lambda x, _: reparam.fuse(net(), x),
    "export": lambda x, to: reparam.export(net(), to / "net.safetensors", x),
    "benchmark": lambda x, _: reparam.benchmark({"it": net()}, x, rounds=1),
    "pick": lambda x, _: reparam.pick(net(), x, engines=["eager"], rounds=1),
    "prune": lambda x, _: reparam.prune(fused(), x, macs=0.5),
    "diff": lambda x, _: reparam.diff(net(), net(), x),
    "certify": lambda x, to: certify(HELD, written(to), x, model=HELD),
    "verify": lambda x, _: reparam.verify(net(), net(), x).raise_if_different(),
    "quantize": lambda x, to: reparam.quantize(fused(), to / "net.onnx", x),
}
ALLOWED_SAMPLES = {
    ("plan", "None"), ("fuse", "None"), ("plan", "on the meta device"),
    ("fuse", "on the meta device"), ("quantize", "two arguments"),
    ("diff", "float64"), ("certify", "float64"),  # taken in the type of the weights
}  # fmt: skip


@pytest.mark.parametrize(
    ("call", "value"), sorted({*product(WITH_SAMPLE, SAMPLES)} - ALLOWED_SAMPLES)
)
def test_what_a_net_does_not_run_on(call, value, tmp_path):
    with leaving_no_trace(tmp_path), pytest.raises(ReparamError) as caught:
        WITH_SAMPLE[call](SAMPLES[value](), tmp_path)
    if call not in {"quantize", "verify"}:
        assert "example_inputs" in str(caught.value)


WITH_PATH = {
    "export": lambda p: reparam.export(net(), p, X),
    "quantize": lambda p: reparam.quantize(fused(), p, X),
    "load_checkpoint": lambda p: reparam.load_checkpoint(net(), p),
    "read_metadata": reparam.read_metadata,
    "diff": lambda p: reparam.diff(net(), p, X),
    "certify": lambda p: certify(net(), p, X),
    "check_certificate": check_certificate,
    "benchmark": lambda p: reparam.benchmark({"it": p}, X, rounds=1),
    "train": lambda p: reparam.train(net(), None, recipe="digits", out=p),
    "train's recipe": lambda p: reparam.train(net(), None, recipe=p, out="run"),
}


@pytest.mark.parametrize("value", PATHS)
@pytest.mark.parametrize("call", WITH_PATH)
def test_what_is_no_path(call, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with leaving_no_trace(tmp_path), pytest.raises(ReparamError):
        WITH_PATH[call](PATHS[value])


def _prune(**options):
    return reparam.prune(fused(), X, **{"macs": 0.5, **options})


def _quantize(**options):
    return reparam.quantize(fused(), "net.onnx", X, **options)


def _export(**options):
    return reparam.export(net(), "net.safetensors", X, **options)


def _benchmark(**options):
    given = {"models": {"it": net()}, "example_inputs": X, "rounds": 1}
    return reparam.benchmark(**{**given, **options})


def _pick(**options):
    return reparam.pick(net(), X, **{"engines": ["eager"], "rounds": 1, **options})


def _branch(**options):
    return reparam.branch(net(), **options)


def _verify(**options):
    return reparam.verify(net(), net(), X, **options)


def _load(**options):
    return reparam.load_checkpoint(net(), "net.pth", **options)


def _reload(**options):
    return reparam.load_fused(**{"model": net(), "path": "net.pth", **options})


def _train(**options):
    given = {"model": net(), "data": None, "recipe": "digits", "out": "run"}
    return reparam.train(**{**given, **options})


def _online(**options):
    return reparam.online(net(), **options)


def _online_plan(**options):
    return reparam.online_plan(net(), **options)


def _online_mode(**options):
    with reparam.online_mode(reparam.online(net()), **options):
        pass


def _plan(**options):
    return reparam.plan(net(), X, **options)


def _optimizer(**options):
    one = net()
    given = {"base": torch.optim.SGD(one.parameters(), lr=0.1), "model": one, "scales": {}}
    return reparam.RepOptimizer(**{**given, **options})


NOT_TEXT = (3, b"a", ["a"], object)
NOT_WHOLE = ("3", 2.5, True, [3])
NOT_COUNT = (0, -1, *NOT_WHOLE)
NOT_NUMBER = ("0.5", [0.5], math.nan, math.inf)
NOT_FLAG = ("no", 2, [])
NOT_FUNCTION = ("print", 3, print.__class__)
OPTIONS = {
    (_reload, "example_inputs"): (3, "x", object()),
    (_reload, "path"): (3, None, "", "no-such-file.pth", "."),
    (_reload, "outputs"): (3.5, [], object()),
    (_reload, "fixed"): (3, "input", {3: 3}),
    (_plan, "where"): (3, b"a", [], ["a", 3], "no such part", torch.nn.Conv3d),
    (_plan, "outputs"): (2.5, True, b"a", [], {"a"}, ["a", 2.5], "nothing", 7),
    (_plan, "fixed"): (3, "input", {}, ["input"], {3: 3}, {"nothing": 3}),
    (_prune, "macs"): (None, 0, 1, -0.5, 1.5, *NOT_NUMBER),
    (_prune, "latency"): (0.5, *NOT_NUMBER[1:], "fast", "-1ms"),
    (_prune, "engine"): (*NOT_TEXT, "tflite"),
    (_prune, "precision"): (None, 3),
    (_prune, "threads"): NOT_COUNT,
    (_prune, "rounds"): NOT_COUNT,
    (_prune, "importance"): (*NOT_TEXT, "luck"),
    (_prune, "data"): ("images", 3),
    (_prune, "loss"): NOT_FUNCTION,
    (_prune, "trained"): ("net", 3, nn.Conv2d),
    (_prune, "reconstruct"): NOT_FLAG,
    (_prune, "multiple"): NOT_COUNT,
    (_prune, "keep"): ("0", 3, [3], ["nowhere"]),
    (_prune, "progress"): NOT_FUNCTION,
    (_quantize, "engine"): (*NOT_TEXT, "tflite"),
    (_quantize, "samples"): NOT_COUNT,
    (_quantize, "keep_float"): (-1, 2.5, [3], ["nowhere"], 99),
    (_quantize, "weight_bits"): (4, 16, *NOT_WHOLE),
    (_quantize, "max_drop"): NOT_NUMBER,
    (_quantize, "dynamic"): (3, "height", None),
    (_quantize, "diagnose"): NOT_FLAG,
    (_quantize, "equalize"): NOT_FLAG,
    (_quantize, "correct_bias"): NOT_FLAG,
    (_quantize, "source"): NOT_TEXT,
    (_quantize, "progress"): NOT_FUNCTION,
    (_quantize, "evaluation"): (3, torch.zeros(0, 3, 12, 12)),
    (_export, "dynamic"): (3, "height", None),
    (_export, "backend"): (*NOT_TEXT, "tflite"),
    (_export, "form"): (*NOT_TEXT, "folded"),
    (_export, "source"): NOT_TEXT,
    (_export, "notes"): ("a", 3, [("a", "b")]),
    (_benchmark, "engines"): ("eager", 3, [3], ["tflite"], []),
    (_benchmark, "precisions"): ("fp32", 3, ["fp8"], []),
    (_benchmark, "batches"): (3, [0], ["1"], []),
    (_benchmark, "threads"): (3, [0], [-1], ["1"], []),
    (_benchmark, "rounds"): NOT_COUNT,
    (_benchmark, "seconds"): (0, -1, *NOT_NUMBER),
    (_benchmark, "warmup"): (-1, *NOT_WHOLE),
    (_benchmark, "seed"): (-1, *NOT_WHOLE),
    (_benchmark, "progress"): NOT_FUNCTION,
    (_benchmark, "models"): (None, {}, [net()], net(), "it"),
    (_pick, "engines"): ("eager", 3, ["tflite"], []),
    (_pick, "precisions"): ("fp32", ["fp8"], []),
    (_pick, "forms"): (3, ["a"], {"a": 3}, {3: net()}, {"model": net()}),
    (_pick, "threads"): NOT_COUNT,
    (_pick, "rounds"): NOT_COUNT,
    (_branch, "kind"): (*NOT_TEXT, "resnet", None),
    (_branch, "where"): (3, [3], "nowhere", ["0", "nowhere"]),
    (_branch, "norms"): (*NOT_TEXT, "drop"),
    (_branch, "init"): (*NOT_TEXT, "zero"),
    (_branch, "generator"): (3, "seed"),
    (_branch, "calibrate"): ("images", 3, torch.zeros(2, 5, 12, 12)),
    (_verify, "tolerance"): NOT_NUMBER,
    (_load, "strict"): NOT_FLAG,
    (_load, "key"): NOT_TEXT,
    (_train, "data"): ("digits", None, X),
    (_train, "seed"): (-1, *NOT_WHOLE),
    (_train, "workers"): (-1, *NOT_WHOLE),
    (_train, "save_every_steps"): NOT_COUNT,
    (_train, "hardware"): ("cpu", 3),
    (_train, "online"): ("yes", 3),
    (_train, "online_compile"): NOT_FLAG,
    (_plan, "probe"): NOT_FLAG,
    (_online, "statistics"): (*NOT_TEXT, "population", None),
    (_online, "enabled"): NOT_FLAG,
    (_online, "compile"): NOT_FLAG,
    (_online_plan, "compile"): NOT_FLAG,
    (_online, "example_inputs"): (3, "x", object()),
    (_online_plan, "statistics"): (*NOT_TEXT, "population", None),
    (_online_plan, "example_inputs"): (3, "x", object()),
    (_online_mode, "mode"): (*NOT_TEXT, "plain", None),
    (_optimizer, "base"): (None, "sgd", torch.optim.SGD),
    (_optimizer, "scales"): (None, "all", [], {}),
    (_optimizer, "rule"): (3, "momentum"),
}
ROWS = [
    pytest.param(call, {name: value}, id=f"{call.__name__[1:]} {name} {k}")
    for (call, name), values in OPTIONS.items()
    for k, value in enumerate(values)
]


@pytest.mark.parametrize(("call", "options"), ROWS)
def test_what_no_option_takes(call, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with leaving_no_trace(tmp_path), pytest.raises(ReparamError) as caught:
        call(**options)
    assert isinstance(caught.value, InputError)


def test_the_table_is_long():
    models = len(MODELS) * len(WITH_MODEL) - len(ALLOWED)
    samples = len(SAMPLES) * len(WITH_SAMPLE) - len(ALLOWED_SAMPLES)
    assert models + samples + len(PATHS) * len(WITH_PATH) + len(ROWS) > 600
