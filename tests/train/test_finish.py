"""A run ends with a fused model of the same predictions, and options of training do their work."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import reparam
from reparam import models
from reparam.branching.rep_optimizer import RepOptimizer, default_scales, initialize_
from reparam.errors import InputError, VerificationError
from reparam.lab.data import ImageData, open_data
from reparam.lab.training import (
    Hardware,
    TrainResult,
    accuracy,
    finish,
    load_recipe,
    train,
)

SPEC = models.RepVGGSpec(depths=(1, 2), widths=(8, 16), stem_width=8, stem_stride=1, strides=(1, 2))
CPU = Hardware(accelerator="cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("digits")


@pytest.fixture(scope="module")
def result(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("run")
    recipe = load_recipe("digits").override(epochs=2)
    return train(
        models.RepVGG(SPEC, 10), digits, recipe=recipe, out=out, tensorboard=True, hardware=CPU
    )


def test_fused_verified_and_exported(
    result: TrainResult, digits: ImageData, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
    deployed = finish(result, digits, out=tmp_path, exports=["net.safetensors"])
    assert (deployed.images, deployed.different) == (len(digits.validation), 0)
    assert deployed.verdict.ok
    assert deployed.accuracy == result.validation_accuracy
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.model.modules())
    assert deployed.parameters_after < deployed.parameters_before
    assert load_file(deployed.weights).keys() == deployed.model.state_dict().keys()
    assert [export.path.name for export in deployed.exports] == ["net.safetensors"]
    record = json.loads((tmp_path / "deploy.json").read_text())
    assert record["predictions_different"] == 0
    assert "same class on 179 of 179 validation images" in str(deployed)
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_best_epoch_is_deployed_unless_the_last_is_asked_for(
    result: TrainResult, digits: ImageData, tmp_path: Path
) -> None:
    earlier = result.history[0]
    history = (dataclasses.replace(earlier, validation_accuracy=1.0), *result.history[1:])
    best = tmp_path / "best.safetensors"
    other = models.RepVGG(SPEC, 10)
    save_file(other.state_dict(), best)
    chosen = dataclasses.replace(result, history=history, best_epoch=1, best=best)
    deployed = finish(chosen, digits, out=tmp_path)
    assert deployed.epoch == 1
    images, _ = digits.tensors(digits.validation)
    reparam.verify(other.eval(), deployed.model, images).raise_if_different()
    assert deployed.accuracy == accuracy(other, digits, digits.validation)
    assert deployed.test_accuracy == accuracy(other, digits, digits.test)
    last = finish(chosen, digits, out=tmp_path, weights="last")
    assert (last.epoch, last.accuracy) == (2, result.validation_accuracy)
    with pytest.raises(InputError, match="'best' or 'last'"):
        finish(chosen, digits, out=tmp_path, weights="first")


def test_a_refused_run_leaves_no_folder(digits: ImageData, tmp_path: Path) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise InputError("not in training")
            return self.layer(x.mean((1, 2, 3))[:, None])

    recipe = load_recipe("digits").override(epochs=1)
    with pytest.raises(InputError, match="not in training"):
        train(Broken(), digits, recipe=recipe, out=tmp_path / "new" / "run", hardware=CPU)
    assert not list(tmp_path.iterdir())


def test_a_fusion_that_changes_classes_is_caught(
    result: TrainResult, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reparam.fusing import Plan

    apply = Plan.apply

    def wrong(plan: Plan) -> nn.Module:
        model = apply(plan)
        with torch.no_grad():
            next(model.parameters()).mul_(1.2)
        return model

    monkeypatch.setattr(Plan, "apply", wrong)
    with pytest.raises(VerificationError):
        finish(result, digits, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_logs(result: TrainResult) -> None:
    folder = result.last.parent
    header, *rows = (folder / "epochs.csv").read_text().splitlines()
    assert header.startswith("epoch,train_loss,validation_loss,validation_accuracy")
    assert len(rows) == 2
    assert list((folder / "tensorboard").glob("events.*"))
    assert json.loads((folder / "result.json").read_text())["test_accuracy"] == result.accuracy


def test_rep_optimizer_trains_a_plain_net(digits: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = models.RepVGG(
        models.RepVGGSpec(
            depths=(1, 2),
            widths=(8, 16),
            stem_width=8,
            stem_stride=1,
            strides=(1, 2),
            branches=models.BRANCHES["neither"],
        ),
        10,
    )
    scales = default_scales(plain)
    initialize_(plain, scales)
    found = train(
        plain,
        digits,
        recipe=load_recipe("digits").override(epochs=2),
        out=tmp_path,
        wrap_optimizer=lambda base, model: RepOptimizer(base, model, scales),
        hardware=CPU,
    )
    assert found.history[1].train_loss < found.history[0].train_loss


def test_kernel_decay_and_bf16_train(digits: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = load_recipe("digits").override(epochs=1, kernel_decay=1e-4, precision="bf16")
    found = train(models.RepVGG(SPEC, 10), digits, recipe=recipe, out=tmp_path, hardware=CPU)
    assert found.history[0].train_loss < 2.4
    assert all(p.dtype == torch.float32 for p in found.model.parameters())
    # The result is that of the float32 model, not of bf16 arithmetic.
    assert found.validation_accuracy == accuracy(found.model, digits, digits.validation)


def test_the_binary_loss_trains_on_mixed_targets(digits: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = load_recipe("digits").override(epochs=2, loss="binary", augment__mixup=0.2)
    found = train(models.RepVGG(SPEC, 10), digits, recipe=recipe, out=tmp_path, hardware=CPU)
    # Of ten classes one is right: the entropy of that is where a net that knows nothing ends.
    assert found.history[1].train_loss < found.history[0].train_loss < 0.7


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))


@pytest.mark.parametrize(
    ("recipe", "hardware", "message"),
    [
        ({"precision": "fp16"}, CPU, "'fp16' needs a GPU"),
        ({}, Hardware(accelerator="cpu", sync_batchnorm=True), "sync_batchnorm needs GPUs"),
        ({"batch_size": 2000}, CPU, "too few for one batch of 2000"),
        ({"optimizer__learning_rate": 1e30}, CPU, "diverged; lower the learning rate"),
    ],
)
def test_what_cannot_train_is_refused(
    recipe: dict[str, object],
    hardware: Hardware,
    message: str,
    digits: ImageData,
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=message):
        train(
            linear(),
            digits,
            recipe=load_recipe("digits").override(**recipe),
            out=tmp_path,
            hardware=hardware,
        )


def test_full_disk_is_found_before_training(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))(1 << 40, 1 << 40, 5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"has 5 MiB free, and writing resume\.ckpt needs"):
        train(linear(), digits, recipe="digits", out=tmp_path)


def test_output_folder_that_is_a_file(digits: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(InputError, match="file cannot be made"):
        train(linear(), digits, recipe="digits", out=path)


def test_nothing_to_train(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trainable parameters"):
        train(linear().requires_grad_(False), digits, recipe="digits", out=tmp_path)


class Watching(nn.Module):
    """Keeps the sizes of the images that it is trained and evaluated on."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.sizes: dict[bool, list[int]] = {True: [], False: []}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes[self.training].append(x.shape[-1])
        return self.net(x)


def test_images_are_small_first_in_training_alone(digits: ImageData, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    recipe = load_recipe("digits").override(
        epochs=2, batch_size=300, small_first__size=6, small_first__share=0.75
    )
    result = train(Watching(net), digits, recipe=recipe, out=tmp_path, hardware=CPU)
    steps = 2 * (len(digits.train) // 300)
    sizes = result.model.sizes
    assert sizes[True] == [6] * round(0.75 * steps) + [8] * (steps - round(0.75 * steps))
    assert set(sizes[False]) == {8}


def test_biases_of_norms_move_faster(digits: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10)
    )
    moved = {}
    for rate in (1.0, 8.0):
        recipe = load_recipe("digits").override(
            epochs=1, batch_size=len(digits.train), optimizer__norm_bias_rate=rate,
            schedule__warmup_share=0.0,
        )  # fmt: skip
        result = train(net, digits, recipe=recipe, out=tmp_path / str(rate), hardware=CPU)
        assert result.history[0].learning_rate == pytest.approx(0.1)
        moved[rate] = result.model[1].bias.detach(), result.model[0].weight.detach()
    torch.testing.assert_close(moved[8.0][0], 8 * moved[1.0][0])
    torch.testing.assert_close(moved[8.0][1], moved[1.0][1])


def test_a_net_that_fits_data_is_fitted_once_on_a_copy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = models.FastNet((8, 8, 8))
    data = open_data("digits", image_size=16)
    before = net.whiten.weight.clone()
    recipe = load_recipe("digits").override(epochs=1)
    result = train(net, data, recipe=recipe, out=tmp_path / "a", hardware=CPU)
    assert torch.equal(net.whiten.weight, before)
    assert not bool(net.fitted)
    expected = models.FastNet((8, 8, 8))
    expected.fit_data_(data.sample(2000)[0])
    assert torch.equal(result.model.whiten.weight, expected.whiten.weight)
    again = train(result.model, data, recipe=recipe, out=tmp_path / "b", hardware=CPU, seed=1)
    assert torch.equal(again.model.whiten.weight, expected.whiten.weight)
