"""Quantization-aware training: a fused net that rounds while it is trained, by torchao."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reparam._support import optional
from reparam.deploy.engines._quiet import quiet
from reparam.errors import InputError
from reparam.frontends.torch.copying import own_copy
from reparam.lab.quantizing.layers import KINDS, layers_of
from reparam.lab.quantizing.samples import Samples, Source, samples_for

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import ModuleType

_PURPOSE = "Quantization-aware training"
_INPUT = "input_rounding"
"""Name of the child that rounds what a layer reads."""
_AVERAGING = 0.01
"""Weight of a batch in the moving average of the ranges of activations."""


def prepare_qat(
    fused: nn.Module,
    calibration: Source,
    *,
    samples: int = 300,
    keep_float: Collection[str] = (),
) -> nn.Module:
    r"""Return a copy of a fused net that rounds its weights and activations while it is trained.

    Weights and inputs of all convolutions and linear layers go through torchao's fake quantization:
    the forward pass rounds to the grid of eight bits, the gradient passes as if it did not
    (Jacob et al., CVPR 2018, arXiv 1712.05877, section 3). Weights have a step for each output
    channel, taken from the weight as it is; the ranges of activations begin with those of the
    calibration data and follow by moving average, in training mode only.

    The copy trains as any module does, with :func:`reparam.train` for example, best for a few
    epochs at a hundredth of the first learning rate. :func:`finish_qat` makes it a plain float net
    again, whose weights lie where they round well, for :func:`reparam.quantize` and either engine.

    Args:
        fused: A net in eval mode; it is not changed.
        calibration: The data that ranges begin with, see :data:`reparam.lab.quantizing.Source`.
        samples: How many samples are used.
        keep_float: Paths of layers that will stay in float.

    Raises:
        MissingExtraError: torchao is not installed.
        DataError: There is no calibration data.
        InputError: The net does not run on it.
        TrainingModeError: The net is in training mode.
    """
    torchao = _torchao()
    held = samples_for(fused, calibration, samples, "preparing quantization-aware training")
    model = own_copy(fused)
    for name, layer in layers_of(model, held.first(1)).items():
        if name not in keep_float:
            parametrize.register_parametrization(layer, "weight", _for_weights(torchao))
            layer.add_module(_INPUT, _for_inputs(torchao))
            layer.register_forward_pre_hook(_round_input)
    _begin_ranges(model, held)
    return model.train()


def _begin_ranges(model: nn.Module, held: Samples) -> None:
    """Read ranges off the net in float, its batch norms (if any are left) untouched."""
    layers = [module for module in model.modules() if hasattr(module, _INPUT)]
    for layer in layers:
        layer.train()
        getattr(layer, _INPUT).disable_fake_quant()
    with torch.no_grad():
        for batch in held.batches():
            model(batch)
    for layer in layers:
        getattr(layer, _INPUT).enable_fake_quant()


def finish_qat(model: nn.Module) -> nn.Module:
    """Return a plain float copy of a net from :func:`prepare_qat`, with the weights it has now.

    The weights are those that training moved, not rounded: the quantizer of the engine rounds them
    to the same grid.

    Args:
        model: The net; it is not changed.

    Returns:
        The net as it was before it was prepared, in eval mode.

    Raises:
        InputError: Nothing in it was prepared.
    """
    plain = own_copy(model).eval()
    prepared = [m for m in plain.modules() if isinstance(m, KINDS) and hasattr(m, _INPUT)]
    if not prepared:
        raise InputError(
            f"nothing in this {type(model).__name__} rounds; give a net that comes from prepare_qat"
        )
    for layer in prepared:
        weight = layer.parametrizations["weight"].original.detach()  # type: ignore[union-attr, index]
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        bias = layer.bias
        del layer.bias
        # In the order in which layers declare them, which optimizers and files follow.
        layer.weight = nn.Parameter(weight.clone())
        layer.bias = bias
        delattr(layer, _INPUT)
        hooks = layer._forward_pre_hooks  # noqa: SLF001 - a copied module has no other handle
        for key in [key for key, hook in hooks.items() if hook is _round_input]:
            del hooks[key]
    return plain


def _round_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Round what a layer reads; a function of the layer, so that copies have their own."""
    rounding: Any = getattr(layer, _INPUT)
    rounding.enable_observer(layer.training)
    return (rounding(inputs[0]), *inputs[1:])


def _for_weights(torchao: ModuleType) -> nn.Module:
    fake: nn.Module = torchao.FakeQuantize(
        observer=torchao.MovingAveragePerChannelMinMaxObserver,
        quant_min=-127,
        quant_max=127,
        dtype=torch.int8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        averaging_constant=1.0,
    )
    return fake


def _for_inputs(torchao: ModuleType) -> nn.Module:
    fake: nn.Module = torchao.FakeQuantize(
        observer=torchao.MovingAverageMinMaxObserver,
        quant_min=0,
        quant_max=255,
        dtype=torch.uint8,
        qscheme=torch.per_tensor_affine,
        averaging_constant=_AVERAGING,
    )
    return fake


def _torchao() -> ModuleType:
    """Import torchao's quantizers without what PyTorch logs about them."""
    with quiet("torch.utils.cpp_extension", "torch.utils._pytree"):
        optional.require("torchao", extra="quantize", purpose=_PURPOSE)
        return importlib.import_module("torchao.quantization.pt2e")
