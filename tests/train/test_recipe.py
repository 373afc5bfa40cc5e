"""Recipes are read strictly, and an optimizer decays what its recipe says."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from torch import nn

from reparam import models
from reparam.errors import InputError
from reparam.lab.data import Augment
from reparam.lab.training import Ema, Optimizer, Recipe, Schedule, load_recipe, recipe_names
from reparam.lab.training.ema import WeightAverage
from reparam.lab.training.mixing import mixing_of
from reparam.lab.training.module import loss_of
from reparam.lab.training.optimizers import KernelDecay, build_optimizer, parameter_groups


def test_the_package_brings_these_recipes() -> None:
    assert recipe_names() == ("cifar10-fast", "digits", "imagenet-repvgg")
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.summary
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert load_recipe(recipe) is recipe


def test_the_papers_recipe() -> None:
    # RepVGG (arXiv 2101.03697), section 4.1
    recipe = load_recipe("imagenet-repvgg")
    assert (recipe.epochs, recipe.batch_size) == (120, 256)
    optimizer = recipe.optimizer
    assert (optimizer.kind, optimizer.learning_rate, optimizer.momentum) == ("sgd", 0.1, 0.9)
    assert (optimizer.weight_decay, optimizer.nesterov) == (1e-4, False)
    assert recipe.schedule == Schedule("cosine", warmup_share=0.0, final_share=0.0)


def test_a_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\n[optimizer]\nkind = 'adamw'\nlearning_rate = 1\n")
    recipe = load_recipe(path)
    assert recipe.epochs == 3
    assert recipe.optimizer == Optimizer(kind="adamw", learning_rate=1.0)
    with pytest.raises(FrozenInstanceError):
        recipe.epochs = 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", r"mine\.toml: unknown key 'epoch'; did you mean 'epochs'\?"),
        ("[optimizer]\nlr = 1", "unknown key 'optimizer.lr'; known here: optimizer.kind"),
        (
            "[optimizer]\nlearning_rat = 1",
            "'optimizer.learning_rat'; did you mean 'optimizer.learning_rate'",
        ),
        ("[optimizer]\nkind = 'sdg'", r"optimizer\.kind is 'sdg'; .*did you mean 'sgd'"),
        ("[optimizer]\nno_decay = ['biases']", r"no_decay\[0\] is 'biases'; .*'bias'"),
        ("[optimizer]\nno_decay = 'bias'", "no_decay is 'bias'; it must be a list"),
        ("[optimizer]\nbetas = [0.9]", "a list of 2"),
        ("optimizer = 'sgd'", r"optimizer is 'sgd'; it must be a table \[optimizer\]"),
        ("epochs = 'ten'", "epochs is 'ten'; it must be of type int"),
        ("epochs = true", "epochs is True; it must be of type int"),
        ("epochs = 0", r"mine\.toml: epochs is 0; it must be at least 1"),
        ("label_smoothing = 1.0", "label_smoothing is 1.0"),
        ("[schedule]\nwarmup_share = 1.0", r"warmup_share is 1.0; it must be in \[0, 1\)"),
        ("epochs = ", "is not TOML"),
    ],
)
def test_bad_recipes_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(path)


def test_unknown_recipe() -> None:
    with pytest.raises(InputError, match=r"no recipe 'cifar10-fas'.*did you mean 'cifar10-fast'"):
        load_recipe("cifar10-fas")


def test_override() -> None:
    recipe = load_recipe("digits").override(epochs=2, ema__decay=0.5)
    assert (recipe.epochs, recipe.ema) == (2, Ema(decay=0.5))
    with pytest.raises(InputError, match=r"unknown key 'ema\.decai'; did you mean 'ema\.decay'"):
        load_recipe("digits").override(ema__decai=0.5)
    with pytest.raises(InputError, match="unknown key 'emma'"):
        load_recipe("digits").override(emma__decay=0.5)


def test_schedule_warms_up_and_falls_like_a_cosine() -> None:
    schedule = Schedule(final_share=0.1)
    factors = [schedule.factor(step, 13, 4) for step in range(13)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    for step in range(4, 13):
        expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 4) / 8))
        assert factors[step] == pytest.approx(expected, abs=1e-12)
    straight = Schedule("linear")
    assert straight.factor(6, 9, 4) == pytest.approx(0.5)
    assert straight.factor(8, 9, 4) == 0


def test_the_binary_loss_asks_of_each_class_by_itself() -> None:
    recipe = Recipe(loss="binary", label_smoothing=0.2)
    logits, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])
    target = 0.8 * torch.eye(4, dtype=torch.float64)[labels] + 0.05
    yes, no = logits.sigmoid().log(), (-logits).sigmoid().log()
    expected = -(target * yes + (1 - target) * no).mean()
    torch.testing.assert_close(loss_of(recipe, logits, labels), expected, rtol=1e-12, atol=0)
    shares = torch.eye(4, dtype=torch.float64)[labels]
    torch.testing.assert_close(loss_of(recipe, logits, shares), expected, rtol=1e-12, atol=0)
    assert abs(float(loss_of(recipe, logits, labels.flip(0)) - expected)) > 1e-2
    with pytest.raises(InputError, match=r"loss is 'focal'; .*'binary'"):
        Recipe.from_dict({"loss": "focal"})


def decaying(model: nn.Module, optimizer: Optimizer) -> set[str]:
    groups = build_optimizer(model, optimizer).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(names)
    return {names[p] for group in groups if group["weight_decay"] for p in group["params"]}


def test_the_papers_exclusions_on_repvgg() -> None:
    spec = models.RepVGGSpec(depths=(2,), widths=(4,), stem_width=4, stem_stride=1)
    model = models.RepVGG(spec, num_classes=10)
    found = decaying(model, load_recipe("imagenet-repvgg").optimizer)
    convolutions = {
        f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d)
    }
    identities = {
        f"{name}.weight"
        for name, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d) and name.endswith("identity")
    }
    assert len(identities) == 1
    assert found == convolutions | identities | {"head.weight"}


def test_exclusions_on_a_resnet_like_net() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4))
    weights = {"0.weight", "1.weight", "3.weight"}
    biases = {"0.bias", "1.bias", "3.bias"}
    for no_decay, expected in [
        ((), weights | biases),
        (("bias",), weights),
        (("bias", "conv_norm"), {"0.weight", "3.weight"}),
        (("bias", "norm"), {"0.weight"}),
    ]:
        assert decaying(model, Optimizer(weight_decay=0.1, no_decay=no_decay)) == expected


def test_biases_of_norms_learn_at_their_own_rate() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4))
    options = Optimizer(weight_decay=0.1, no_decay=("bias",), norm_bias_rate=64.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["rate"], group["weight_decay"])
        for group in parameter_groups(model, options)
        for parameter in group["params"]
    }
    assert found == {
        "0.weight": (1.0, 0.1), "0.bias": (1.0, 0.0),
        "1.weight": (1.0, 0.1), "1.bias": (64.0, 0.0),
        "3.weight": (1.0, 0.1), "3.bias": (64.0, 0.0),
    }  # fmt: skip


def test_average_of_weights() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, 0.5)
    for value in (1.0, 4.0):
        nn.init.constant_(model.weight, value)
        model.num_batches_tracked += 1
        average.update(model)
    # decays min(0.5, 1/10) and min(0.5, 2/11), from weight 1
    first = 0.1 * 1 + 0.9 * 1.0
    second = 2 / 11 * first + 9 / 11 * 4.0
    torch.testing.assert_close(average.weights["weight"], torch.tensor([second]))
    assert int(average.weights["num_batches_tracked"]) == 2
    with average.shown(model):
        torch.testing.assert_close(model.weight.data, torch.tensor([second]))
    assert model.weight.item() == 4.0


def test_mixing_mixes_targets_as_it_mixes_images() -> None:
    torch.manual_seed(0)
    labels = torch.arange(4)
    images = torch.eye(4)[:, :, None, None].expand(-1, -1, 8, 8)  # channel c is 1 for class c
    for augment in (Augment(mixup=1.0), Augment(cutmix=1.0), Augment(mixup=1.0, cutmix=1.0)):
        mixed, targets = mixing_of(augment, 4)(images, labels)
        assert not torch.equal(mixed, images)
        torch.testing.assert_close(mixed.mean(dim=(2, 3)), targets, rtol=0, atol=1e-6)
    same, unchanged = mixing_of(Augment(), 4)(images, labels)
    assert same is images
    assert unchanged is labels


def test_kernel_decay_is_the_norm_of_the_equivalent_kernels() -> None:
    torch.manual_seed(0)
    spec = models.RepVGGSpec(depths=(2,), widths=(4,), stem_width=4, stem_stride=1)
    model = models.RepVGG(spec, num_classes=10).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    decay = KernelDecay(model, 0.3)
    assert decay.blocks == ("stem.branches", "stages.0.0.branches", "stages.0.1.branches")
    penalty = decay(model)
    expected = 0.0
    for name in decay.blocks:
        block = model.get_submodule(name)
        kernel = block.kxk0[0].weight * _scale(block.kxk0[1])
        kernel[..., 1:2, 1:2] += block.pointwise[0].weight * _scale(block.pointwise[1])
        if hasattr(block, "identity"):
            kernel[..., 1, 1] += torch.diag(_scale(block.identity).flatten())
        expected += 0.15 * kernel.square().sum().item()
    assert penalty.item() == pytest.approx(expected, rel=1e-6)
    penalty.backward()
    assert all(parameter.grad is not None for parameter in decay.parameters)
    assert model.head.weight not in decay.parameters


def _scale(norm: nn.BatchNorm2d) -> torch.Tensor:
    return (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1, 1)


def test_kernel_decay_needs_blocks() -> None:
    with pytest.raises(InputError, match="kernel_decay needs multi-branch blocks"):
        KernelDecay(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 0.1)
