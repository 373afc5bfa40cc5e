"""Live activations are counted exactly, and the paper's prediction for branches is met."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from deploying import Block, SinglePath, fold, network, real_inputs
from reparam.deploy.benchmarking import peak_activation_memory
from reparam.deploy.benchmarking.memory import predicted_held_maps
from reparam.errors import InputError, TrainingModeError

X = torch.zeros(2, 8, 12, 12)
MAP = X.numel() * 4


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.conv(x) + x


def single():
    return SinglePath(nn.Conv2d(8, 8, 3, padding=1))


@pytest.mark.parametrize(
    ("block", "branches"),
    [(single, 1), (Residual, 2), (lambda: Block(8), 3)],
    ids=["single path", "residual", "repvgg"],
)
def test_maps_held_between_operators_are_as_many_as_branches(block, branches):
    memory = peak_activation_memory(block().eval(), X)
    assert memory.planned_peak_held == branches * MAP
    assert predicted_held_maps(branches) == branches


def test_multi_branch_block_holds_three_times_the_single_path():
    net = network()
    x = real_inputs()
    ratio = (
        peak_activation_memory(net[1], net[0](x)).planned_peak_held
        / peak_activation_memory(fold(net)[1], net[0](x)).planned_peak_held
    )
    assert ratio == 3


def test_eager_timeline_of_a_residual_block_by_hand():
    memory = peak_activation_memory(Residual().eval(), X)
    conv, add = memory.steps
    assert (conv.op, conv.module) == ("convolution", "conv")
    assert (add.op, add.module) == ("add", "")
    # Before the convolution there is the input; after it, its result too; the sum makes a third.
    assert (conv.held.input, conv.held.activations) == (MAP, 0)
    assert (conv.working.input, conv.working.activations) == (MAP, MAP)
    assert add.working.total == 3 * MAP == memory.peak
    assert memory.peak_activations == 2 * MAP
    assert memory.input_bytes == memory.output_bytes == MAP


def test_storage_is_counted_once_however_many_views_it_has():
    class Views(nn.Module):
        def forward(self, x):
            y = x * 2
            return y.flatten(1).view(2, -1)[:, :4].transpose(0, 1) + 1

    memory = peak_activation_memory(Views().eval(), X)
    assert memory.planned_peak == 2 * MAP
    assert memory.steps[-1].op == "add"
    assert memory.steps[-1].planned_working.total == MAP + 2 * 4 * 4


def test_released_in_eager_at_once_and_in_plan_after_the_last_use():
    class Keeps(nn.Module):
        def forward(self, x):
            a = x + 1
            b = a + 1
            c = b + 1
            del b
            return c + 1

    first, second, third, fourth = peak_activation_memory(Keeps().eval(), X).steps
    assert first.held.activations == 0
    assert second.held.activations == MAP
    assert third.held.activations == 2 * MAP
    assert fourth.held.activations == 2 * MAP  # a and c; b was deleted
    assert fourth.planned_held.activations == MAP  # c alone


def test_parameters_and_buffers_are_left_out_and_reported():
    net = network()
    memory = peak_activation_memory(net, real_inputs())
    stored = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))
    assert memory.parameter_bytes == stored
    assert memory.steps[0].held.activations == 0


def test_count_repeats_exactly():
    net, x = network(), real_inputs()
    first = peak_activation_memory(net, x).as_dict()
    junk = [torch.zeros(1000) for _ in range(100)]
    gc.collect()
    assert peak_activation_memory(net, x).as_dict() == first
    del junk


def test_model_and_input_are_untouched():
    net, x = network(), real_inputs()
    before, state = x.clone(), {k: v.clone() for k, v in net.state_dict().items()}
    peak_activation_memory(net, x)
    assert torch.equal(x, before)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_hooks_are_gone_after_a_model_fails():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError(x.shape)

    with pytest.raises(ValueError, match="12"):
        peak_activation_memory(nn.Sequential(Fails()).eval(), X)
    assert not nn.modules.module._global_forward_pre_hooks


def test_training_mode_is_an_error():
    with pytest.raises(TrainingModeError, match=r"eval mode.*call model\.eval\(\)"):
        peak_activation_memory(network().train(), real_inputs())


def test_inputs_must_be_tensors():
    with pytest.raises(InputError, match=r"example_inputs\[1\] is a str"):
        peak_activation_memory(network(), (X, "x"))
