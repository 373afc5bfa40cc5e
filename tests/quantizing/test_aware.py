from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from quantizing.nets import badly_scaled, inputs, single_path
from reparam.errors import InputError
from reparam.lab.quantizing import diagnose, finish_qat, prepare_qat
from reparam.lab.quantizing.samples import Samples
from reparam.lab.quantizing.simulation import Simulation, observe

pytest.importorskip("torchao")

X = inputs()


def test_a_prepared_net_rounds_as_the_simulation_does():
    net = single_path()
    simulation = Simulation(net, observe(net, Samples("x", X)))
    prepared = prepare_qat(net, X).eval()
    with torch.no_grad(), simulation.rounded(*simulation.layers) as rounded:
        # A range is float32 in one and float64 in the other: a few values round the other way.
        difference = (prepared(X) - rounded(X)).abs().max()
        assert float(difference) < 0.02 * float((rounded(X) - net(X)).abs().max()) + 1e-3


def test_finishing_gives_the_plain_net_back():
    net = single_path()
    plain = finish_qat(prepare_qat(net, X))
    assert [type(m) for m in plain.modules()] == [type(m) for m in net.modules()]
    assert list(plain.state_dict()) == list(net.state_dict())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in plain.state_dict().items())
    with torch.no_grad():
        assert torch.equal(plain(X), net(X))
    assert not plain.training


def test_training_teaches_a_net_to_round():
    net = badly_scaled(single_path(), 30.0)
    with torch.no_grad():
        target = net(X)
    prepared = prepare_qat(net, X)
    before = copy.deepcopy(prepared.state_dict())
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        loss = (prepared(X) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    after = prepared.state_dict()
    assert not torch.equal(after["2.parametrizations.weight.original"],
                           before["2.parametrizations.weight.original"])  # fmt: skip
    plain = finish_qat(prepared)
    assert diagnose(plain, X).output_db > 0


def test_ranges_follow_in_training_mode_only():
    prepared = prepare_qat(single_path(), X)
    prepared.eval()
    before = copy.deepcopy(prepared.state_dict())
    with torch.no_grad():
        prepared(100 * X)
    key = "0.input_rounding.activation_post_process.max_val"
    assert torch.equal(prepared.state_dict()[key], before[key])
    prepared.train()
    prepared(100 * X)
    assert float(prepared.state_dict()[key]) > float(before[key])


def test_copies_have_ranges_of_their_own():
    prepared = prepare_qat(single_path(), X)
    twin = copy.deepcopy(prepared)
    twin.train()
    twin(100 * X)
    key = "0.input_rounding.activation_post_process.max_val"
    assert float(twin.state_dict()[key]) > float(prepared.state_dict()[key])


def test_layers_in_float_are_left_alone():
    prepared = prepare_qat(single_path(), X, keep_float=["2"])
    assert not hasattr(prepared[2], "input_rounding")
    assert hasattr(prepared[0], "input_rounding")


def test_only_what_was_prepared_can_be_finished():
    with pytest.raises(InputError, match="prepare_qat"):
        finish_qat(nn.Sequential(nn.Conv2d(3, 4, 3)))
