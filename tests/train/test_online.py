"""Training with merged blocks gives what training with branches gives, and hands branches back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import reparam
from reparam.branching.online.placing import regions_of
from reparam.lab.data import open_data
from reparam.lab.training import load_recipe
from reparam.models import BranchSpec, MobileOneSpec


def _model(seed: int) -> torch.nn.Module:
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
    assert not list(regions_of(right.model))
    assert type(right.model) is type(model)
    assert right.history[-1].train_loss == pytest.approx(left.history[-1].train_loss, rel=1e-3)
    for name, value in left.model.state_dict().items():
        found = right.model.state_dict()[name]
        assert torch.allclose(found.double(), value.double(), rtol=0.05, atol=0.02), name
