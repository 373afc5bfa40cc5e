"""Multiply-adds, parameters and bytes are counted from what is executed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deploying import fold, network, real_inputs
from reparam.deploy.benchmarking import profile


class Call(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def zeros(*shape):
    return torch.zeros(*shape)


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        (lambda x, w: F.conv2d(x, w, padding=1), (zeros(2, 4, 5, 7), zeros(6, 4, 3, 3)),
         2 * 6 * 5 * 7 * 4 * 9),
        (lambda x, w: F.conv2d(x, w, groups=4, stride=2), (zeros(1, 4, 9, 9), zeros(8, 1, 3, 3)),
         8 * 4 * 4 * 9),
        (F.conv1d, (zeros(1, 3, 10), zeros(5, 3, 4)), 5 * 7 * 3 * 4),
        (F.conv3d, (zeros(1, 2, 4, 4, 4), zeros(3, 2, 2, 2, 2)), 3 * 27 * 2 * 8),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2), (zeros(1, 4, 5, 5), zeros(4, 6, 2, 2)),
         4 * 25 * 6 * 4),
        (F.linear, (zeros(2, 7, 3), zeros(5, 3)), 2 * 7 * 3 * 5),
        (F.linear, (zeros(2, 3), zeros(5, 3), zeros(5)), 2 * 3 * 5),
        (torch.matmul, (zeros(2, 3, 4), zeros(2, 4, 5)), 2 * 3 * 4 * 5),
        (torch.mv, (zeros(3, 4), zeros(4)), 12),
        (torch.dot, (zeros(4), zeros(4)), 4),
        (lambda q, k: F.scaled_dot_product_attention(q, k, k),
         (zeros(1, 2, 5, 8), zeros(1, 2, 3, 8)),
         2 * 5 * 3 * (8 + 8)),
        (torch.relu, (zeros(4),), 0),
    ],
    ids=["conv2d", "grouped", "conv1d", "conv3d", "transposed", "linear", "linear+bias", "matmul",
         "mv", "dot", "attention", "relu"],
)  # fmt: skip
def test_multiply_adds_by_hand(function, inputs, expected):
    assert profile(Call(function).eval(), inputs).multiply_adds == expected


def test_bytes_moved_by_hand():
    x = zeros(2, 3, 4, 4)
    found = profile(Call(lambda a: (a + 1).flatten(1).relu()).eval(), x)
    assert found.bytes_moved == 4 * x.numel() * 4  # two operators, one read and one write each


def test_expanded_operand_is_read_once():
    found = profile(Call(lambda a, b: a + b.expand(100, 8)).eval(), (zeros(100, 8), zeros(8)))
    assert found.bytes_moved == 4 * (800 + 8 + 800)


def test_deploy_form_computes_and_moves_less():
    net, x = network(), real_inputs()
    train, deploy = profile(net, x), profile(fold(net), x)
    # 2 blocks, 8 channels, 4 images of 8x8: the 1x1 branch goes.
    assert train.multiply_adds - deploy.multiply_adds == 2 * 4 * 64 * 8 * 8
    assert deploy.bytes_moved < train.bytes_moved
    assert deploy.parameters < train.parameters
    assert train.operators["convolution"] == 5
    assert deploy.operators["convolution"] == 3


def test_inference_tensors_are_counted_like_others():
    x = real_inputs()
    expected = profile(network(), x)
    with torch.inference_mode():
        net = network()
    assert profile(net, x) == expected


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4)
    assert profile(nn.Sequential(layer, layer).eval(), zeros(1, 4)).parameters == 20
