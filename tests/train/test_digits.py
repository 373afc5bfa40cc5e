"""A small multi-branch net learns the digits, reproducibly, and what was given is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reparam.errors import InputError
from reparam.lab.data import ImageData, open_data
from reparam.lab.training import Progress, load_recipe, train


class TwoBranches(nn.Module):
    """A 3x3 and a 1x1 branch, normalised and added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.wide = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.point = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.wide(x) + self.point(x))


def small_net(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        TwoBranches(3, 8, 1),
        TwoBranches(8, 16, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16, classes),
    )


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("digits")


SHORT = load_recipe("digits").override(epochs=3)


def test_learns_reports_and_leaves_files(digits: ImageData, tmp_path: Path) -> None:
    model = small_net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[Progress] = []
    result = train(model, digits, recipe=SHORT, out=tmp_path, on_progress=seen.append)

    assert result.accuracy > 0.2  # chance: 0.1 with a standard deviation of 0.016
    assert result.accuracy == result.test_accuracy
    assert [record.epoch for record in result.history] == [1, 2, 3]
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert result.history[-1].validation_accuracy == result.validation_accuracy
    assert len(seen) == 3 * (len(digits.train) // 64 + 1)
    assert [entry.record.epoch for entry in seen if entry.record] == [1, 2, 3]
    for path in (result.best, result.last, result.resume, tmp_path / "result.json"):
        assert path.stat().st_size > 0
    assert not result.model.training
    assert model.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_same_seed_same_weights_and_global_random_state_untouched(
    digits: ImageData, tmp_path: Path
) -> None:
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        model = small_net()
        torch.manual_seed(5)
        result = train(model, digits, recipe=SHORT, out=tmp_path / name, seed=seed)
        drawn = torch.rand(1)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(1))
        states.append(result.model.state_dict()["5.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_wrong_number_of_classes_is_found_before_training(
    digits: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"returns \(2, 7\).*needed \(2, 10\)"):
        train(small_net(classes=7), digits, recipe=SHORT, out=tmp_path)


def test_wrong_image_size_is_found_before_training(digits: ImageData, tmp_path: Path) -> None:
    rigid = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    with pytest.raises(InputError, match=r"does not take images of shape \(3, 8, 8\)"):
        train(rigid, digits, recipe=SHORT, out=tmp_path)
