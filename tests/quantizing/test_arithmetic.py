from __future__ import annotations

import math

import pytest
import torch

from reparam.lab.quantizing.arithmetic import Grid, decibels, ratio, round_weight


def test_weights_are_rounded_with_a_step_for_each_output_channel():
    weight = torch.randn(6, 4, 3, 3) * torch.logspace(-3, 3, 6).view(-1, 1, 1, 1)
    rounded = round_weight(weight)
    step = weight.flatten(1).abs().amax(1) / 127
    levels = rounded / step.view(-1, 1, 1, 1)
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert float(levels.abs().max()) == pytest.approx(127, abs=1e-4)
    error = (rounded - weight).flatten(1).abs().amax(1)
    assert bool((error <= 0.5001 * step).all())
    # One step for all would lose the small channels altogether.
    assert bool((rounded.flatten(1).abs().amax(1) > 0).all())


def test_weights_are_rounded_as_pytorch_does():
    weight = torch.randn(5, 7)
    scale = weight.abs().amax(1) / 127
    zeros = torch.zeros(5, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -127, 127)
    torch.testing.assert_close(round_weight(weight), expected, atol=1e-6, rtol=0)


def test_a_channel_of_zeros_stays_zero():
    weight = torch.randn(3, 4)
    weight[1] = 0
    assert torch.equal(round_weight(weight)[1], torch.zeros(4))


@pytest.mark.parametrize(("low", "high"), [(-1.3, 2.9), (0.0, 6.0), (0.5, 6.0), (-3.0, -1.0)])
def test_a_grid_holds_zero_and_its_range(low: float, high: float):
    grid = Grid.over(low, high)
    x = torch.linspace(low, high, 1001)
    rounded = grid.round(torch.cat([x, torch.zeros(1)]))
    assert float(rounded[-1]) == 0
    assert len(rounded.unique()) <= 256
    # The zero of the grid is rounded too, so an end of the range may be half a step off more.
    assert float((rounded[:-1] - x).abs().max()) <= 1.001 * grid.step
    inner = x[(x > low + grid.step) & (x < high - grid.step)]
    assert float((grid.round(inner) - inner).abs().max()) <= 0.501 * grid.step


def test_a_grid_is_that_of_pytorch():
    x = torch.randn(1000)
    grid = Grid.over(float(x.min()), float(x.max()))
    expected = torch.fake_quantize_per_tensor_affine(x, grid.step, grid.zero, 0, 255)
    torch.testing.assert_close(grid.round(x), expected, atol=1e-5, rtol=0)


def test_values_beyond_the_range_are_clipped():
    assert float(Grid.over(0.0, 1.0).round(torch.tensor([5.0]))) == pytest.approx(1.0)


def test_a_tensor_of_zeros_has_a_grid():
    assert torch.equal(Grid.over(0.0, 0.0).round(torch.zeros(3)), torch.zeros(3))


def test_a_bit_is_six_decibels():
    y, noise = torch.randn(4000), torch.rand(4000) - 0.5
    difference = decibels(y, y + noise / 64) - decibels(y, y + noise / 32)
    assert difference == pytest.approx(20 * math.log10(2), abs=1e-3)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"), [(1.0, 0.0, 200.0), (0.0, 1.0, -200.0), (0.0, 0.0, 200.0)]
)
def test_ratios_are_finite(signal: float, noise: float, expected: float):
    assert ratio(signal, noise) == expected
