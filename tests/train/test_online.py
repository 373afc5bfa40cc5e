"""Training with merged blocks gives what training with branches gives, and hands branches back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import reparam
from reparam.branching.online.placing import regions_of
from reparam.lab.data import open_data
from reparam.lab.training import OnlineRun, load_recipe
from reparam.models import BranchSpec, MobileOneSpec


def _model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    spec = MobileOneSpec(
        depths=(1,), widths=(32,), stem_width=32, strides=(1,), branches=BranchSpec(kernels=4)
    )
    return reparam.models.MobileOne(spec, num_classes=10)


def test_online_training_gives_the_curve_of_the_branches(tmp_path: Path) -> None:
    data = open_data("digits", image_size=32)
    recipe = load_recipe("digits").override(epochs=1, batch_size=256)
    model = _model(0)
    assert reparam.online_plan(model, torch.empty(256, *data.image_shape)).is_faster
    results = {
        online: reparam.train(model, data, recipe=recipe, out=tmp_path / str(online), online=online)
        for online in (False, True)
    }
    left, right = results[False], results[True]
    assert left.online is None
    assert right.online == OnlineRun(blocks=3)
    assert not list(regions_of(right.model))
    assert type(right.model) is type(model)
    assert right.history[-1].train_loss == pytest.approx(left.history[-1].train_loss, rel=1e-3)
    for name, value in left.model.state_dict().items():
        found = right.model.state_dict()[name]
        assert torch.allclose(found.double(), value.double(), rtol=0.05, atol=0.02), name


def test_passes_are_compiled_where_that_is_asked_for(tmp_path: Path) -> None:
    data = open_data("digits", image_size=32)
    recipe = load_recipe("digits").override(epochs=1, batch_size=512)
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
    model = nn.Sequential(
        *reparam.branch(dense, "repvgg", norms="absorb", init="fresh"),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )
    plan = reparam.online_plan(model, torch.empty(512, *data.image_shape), compile=True)
    assert plan.passes
    result = reparam.train(
        model, data, recipe=recipe, out=tmp_path / "run", online=None, online_compile=True
    )
    assert result.online == OnlineRun(len(plan.blocks), plan.compile_seconds)
    assert plan.compile_seconds > 0
    stored = json.loads((tmp_path / "run" / "result.json").read_text())["online"]
    assert stored == {"blocks": len(plan.blocks), "compile_seconds": plan.compile_seconds}
