"""MODEL strings: every form resolves, and every failure says what was found and what there is."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from torch import nn

import reparam
from reparam.errors import InputError
from reparam.models import RepVGG, resolve

pytest.importorskip("timm")
pytest.importorskip("torchvision")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with the user's own code, which is not on the path."""
    (tmp_path / "my_nets.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            class Net(nn.Linear):
                def __init__(self, num_classes=2):
                    super().__init__(3, num_classes)

            class Zoo:
                net = Net

            ready = nn.Identity()
            number = 3

            def tiny(num_classes=5, *, bias=True):
                import my_helper
                return nn.Linear(my_helper.WIDTH, num_classes, bias=bias)

            def forgetful():
                nn.Linear(1, 1)

            def clumsy():
                raise TypeError("not a matter of the arguments")
            """
        )
    )
    (tmp_path / "my_helper.py").write_text("WIDTH = 4\n")
    (tmp_path / "broken.py").write_text("import surely_not_installed\n")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = list(sys.path), set(sys.modules)
    yield tmp_path
    assert sys.path == before[0]
    for name in set(sys.modules) - before[1]:
        if name in {"my_nets", "my_helper", "broken", "wrong"}:
            del sys.modules[name]


def test_own_names():
    with torch.device("meta"):
        net = resolve("RepVGG-A0", num_classes=3, in_channels=1, form="deploy")
    assert isinstance(net, RepVGG)
    assert net.head.out_features == 3


def test_timm_is_asked_in_its_own_words():
    with torch.device("meta"):
        net = resolve("timm:resnet18", num_classes=3, in_channels=1)
    assert net.conv1.in_channels == 1
    assert net.fc.out_features == 3


def test_torchvision():
    with torch.device("meta"):
        net = resolve("torchvision:resnet18", num_classes=3)
    assert net.fc.out_features == 3


@pytest.mark.usefixtures("project")
def test_own_code():
    assert resolve("my_nets:tiny").out_features == 5
    assert resolve("my_nets:tiny", num_classes=7, bias=False).bias is None
    assert resolve("my_nets:Net", num_classes=7).out_features == 7
    assert resolve("my_nets:Zoo.net").out_features == 2
    assert isinstance(resolve("my_nets:ready"), nn.Identity)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("repvg_a0", "did you mean repvgg_a0"),
        ("resnet18", "did you mean timm:resnet18 or torchvision:resnet18"),
        ("qqqqqqqq", "there is no model 'qqqqqqqq'; a model is given as repvgg_a0, timm:NAME"),
        ("net.onnx", "looks like a file"),
        ("timm:", "lacks a name beside the colon"),
        (":net", "lacks a name beside the colon"),
        ("timm:resnet81", r"timm \S+ has no model 'resnet81' \(did you mean"),
        ("torchvision:resnet81", r"torchvision \S+ has no model 'resnet81' \(did you mean"),
        ("my_nests:tiny", "no Python module 'my_nests'"),
        ("my_nets.more:tiny", "my_nets.more"),
        ("my_nets:tinny", r"my_nets.py defines no 'tinny' \(did you mean tiny\?\)"),
        ("my_nets:number", "is of type int; needed is a function or class"),
        ("my_nets:forgetful", "returned a NoneType; needed is a torch.nn.Module"),
        ("broken:net", "importing 'broken' .* failed: No module named 'surely_not_installed'"),
        ("wrong:net", "importing 'wrong' .* failed: .*syntax"),
    ],
)
@pytest.mark.usefixtures("project")
def test_failures_are_named(name, message):
    with pytest.raises(InputError, match=message):
        resolve(name)


@pytest.mark.usefixtures("project")
def test_arguments_that_the_callable_does_not_take_are_refused_before_it_runs():
    with pytest.raises(InputError, match=r"forgetful\(\) cannot be called with num_classes"):
        resolve("my_nets:forgetful", num_classes=2)


@pytest.mark.usefixtures("project")
def test_errors_inside_the_callable_are_its_own():
    with pytest.raises(TypeError, match="not a matter of the arguments"):
        resolve("my_nets:clumsy")


def test_torchvision_has_no_choice_of_channels():
    with pytest.raises(InputError, match="fixed number of input channels"):
        resolve("torchvision:resnet18", in_channels=1)


class Attack:
    """Would write a file while it is unpickled."""

    def __reduce__(self):
        return open, ("unpickled.txt", "w")


def test_a_checkpoint_path_of_timm_is_read_as_weights_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, options = "timm:resnet10t", {"num_classes": 3}
    trained = resolve(name, **options)
    with torch.no_grad():
        for value in trained.state_dict().values():
            value.add_(1)
    average = {key: value + 1 for key, value in trained.state_dict().items()}
    both = {"state_dict": trained.state_dict(), "state_dict_ema": average}
    torch.save(both, "mine.pth.tar")
    loaded = resolve(name, checkpoint_path="mine.pth.tar", **options).state_dict()
    assert all(
        torch.equal(loaded[key], value) for key, value in average.items()
    )  # as timm takes it
    torch.save({"state_dict": trained.state_dict(), "args": Attack()}, "evil.pth.tar")
    with pytest.raises(reparam.ReparamError, match=r"evil\.pth\.tar"):
        resolve(name, checkpoint_path="evil.pth.tar", **options)
    assert not (tmp_path / "unpickled.txt").exists()
