from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from quantizing.nets import badly_scaled, inputs, single_path
from reparam.errors import InputError
from reparam.lab.quantizing import correct_biases, diagnose
from reparam.lab.quantizing.arithmetic import decibels, round_weight
from reparam.lab.quantizing.layers import layers_of
from reparam.lab.quantizing.samples import Samples
from reparam.lab.quantizing.simulation import Simulation, observe

X = inputs()


def test_ranges_are_those_of_weights_and_inputs():
    net = single_path()
    found = {layer.name: layer for layer in diagnose(net, X).layers}
    assert list(found) == ["0", "2", "4", "8"]
    with torch.no_grad():
        read = {"0": X, "2": net[:2](X), "4": net[:4](X), "8": net[:8](X)}
    for name, layer in found.items():
        weight = net.get_submodule(name).weight.detach()
        assert (layer.weight_low, layer.weight_high) == (float(weight.min()), float(weight.max()))
        expected = (float(read[name].min()), float(read[name].max()))
        assert (layer.input_low, layer.input_high) == pytest.approx(expected, abs=1e-6)
        assert layer.weight_db == pytest.approx(decibels(weight, round_weight(weight)))


def test_a_layer_is_judged_by_rounding_it_alone():
    net = single_path()
    few = X[:64]
    layer = next(found for found in diagnose(net, X).layers if found.name == "2")
    held = Samples("x", X)
    grid = observe(net, held)["2"].grid
    alone = copy.deepcopy(net)
    with torch.no_grad():
        alone[2].weight.copy_(round_weight(net[2].weight))
        exact, rounded = net(few), alone[2:](grid.round(alone[:2](few)))
    assert layer.output_db == pytest.approx(decibels(exact, rounded), abs=1e-3)
    assert layer.flips == float((exact.argmax(1) != rounded.argmax(1)).double().mean())


def test_the_layer_that_hurts_is_found():
    found = diagnose(badly_scaled(single_path()), X)
    assert found.worst(1)[0].name == "2"
    assert found.worst(1)[0].input_spread > 50
    assert found.output_db < found.worst(4)[-1].output_db
    assert str(found).splitlines()[1].startswith("2 ")
    json.dumps(found.as_dict())


def test_nothing_of_the_users_is_changed():
    net = single_path()
    before = copy.deepcopy(net.state_dict())
    diagnose(net, X)
    correct_biases(net, X)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(not module._forward_hooks for module in net.modules())
    assert all(not module._forward_pre_hooks for module in net.modules())


def test_a_simulation_can_be_left():
    net, held = single_path(), Samples("x", X)
    simulation = Simulation(net, observe(net, held))
    with simulation.rounded("0", "2") as rounded:
        assert not torch.equal(rounded(X), net(X))
    assert torch.equal(simulation.model(X), net(X))


def test_progress_is_told():
    told: list[tuple[int, int, str]] = []
    diagnose(single_path(), X, progress=lambda *step: told.append(step))
    assert told == [(0, 4, "0"), (1, 4, "2"), (2, 4, "4"), (3, 4, "8")]


def test_a_net_without_layers_is_refused():
    with pytest.raises(InputError, match="nothing to quantize"):
        diagnose(nn.Sequential(nn.ReLU(), nn.Flatten()).eval(), X)


def means(net: nn.Module, held: Samples, *, rounded: bool) -> list[torch.Tensor]:
    """Return the means of the output channels of every layer, all layers rounded or none."""
    simulation = Simulation(net, observe(single_path(), held))
    found: list[torch.Tensor] = []
    for layer in layers_of(simulation.model, held.first(1)).values():
        layer.register_forward_hook(
            lambda _, __, y: found.append(
                y.double().mean(dim=[d for d in range(y.dim()) if d != 1])
            )
        )
    with torch.no_grad(), simulation.rounded(*(simulation.layers if rounded else ())) as model:
        model(held.inputs)
    return found


def test_corrected_biases_restore_the_means_of_all_channels():
    net, held = single_path(), Samples("x", X)
    exact = means(net, held, rounded=False)
    shifted = means(net, held, rounded=True)
    corrected = means(correct_biases(net, X), held, rounded=True)
    for wanted, before, after in zip(exact, shifted, corrected, strict=True):
        assert float((after - wanted).abs().max()) <= 1e-6
        assert float((before - wanted).abs().max()) > 1e-5


def test_correction_reaches_layers_without_a_bias_and_spares_those_in_float():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    corrected = correct_biases(net, X)
    assert isinstance(corrected[0], nn.Conv2d)
    assert corrected[0].bias is not None
    assert net[0].bias is None
    spared = correct_biases(net, X, keep_float=["0"])
    assert spared[0].bias is None
    assert not torch.equal(spared[2].bias, net[2].bias)
