"""Cross-layer equalisation: the same function, with channels that share a step better."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from reparam.errors import InputError, UnsupportedModelError
from reparam.frontends.torch.copying import own_copy
from reparam.frontends.torch.trace import Trace, TraceFailure, straight_trace
from reparam.lab.quantizing.layers import KINDS, Layer, spread
from reparam.lab.quantizing.samples import Source
from reparam.lab.quantizing.simulation import Calibrated, Traffic, calibrated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_LARGEST = 2.0**12
"""No factor is beyond this or its inverse: a channel that is nearly silent stays so."""


@dataclass(frozen=True)
class Equalisation:
    """What happened between one layer and those that read it.

    Attributes:
        source: Path of the layer whose output channels were divided.
        readers: Paths of the layers whose input channels were multiplied.
        spread_before: How many times the largest activation of the widest channel exceeded that of
            the median one.
        spread_after: The same afterwards.
    """

    source: str
    readers: tuple[str, ...]
    spread_before: float
    spread_after: float


def equalize(
    model: nn.Module, calibration: Source | Calibrated, *, strength: float = 0.5, samples: int = 300
) -> tuple[nn.Module, tuple[Equalisation, ...]]:
    r"""Move a factor for each channel from a layer into the next, so that both round better.

    ReLU commutes with positive factors, so for any :math:`s_i > 0`

    .. math:: W_2 \, \mathrm{relu}(W_1 x + b_1)
        = (W_2 \,\mathrm{diag}\,s) \, \mathrm{relu}(\mathrm{diag}(s)^{-1} (W_1 x + b_1))

    which is exact (Nagel et al., ICCV 2019, arXiv 1906.04721, section 4.1). There the ranges of the
    two weights are made equal. The engines here have a step for each output channel of a weight,
    which makes the weight of the first layer indifferent to ``s``; what shares a step is the
    activation between the two, with largest values ``a``, and each row of ``W_2``, with ``w_i`` the
    largest of its column ``i`` in units of its rows' largest. So

    .. math:: s_i = a_i^{\alpha} / w_i^{1 - \alpha}

    and ``alpha = 1`` gives all channels of the activation one range, ``alpha = 0`` all columns of
    the weight, 1/2 the balance (the same trade as in SmoothQuant, arXiv 2211.10438, equation 4).
    Factors are computed in float64 and have geometric mean 1.

    Args:
        model: A net in eval mode; it is not changed. A fused single path is equalised everywhere;
            in a residual net, sums with a shortcut stay as they are.
        calibration: The data that ``a`` is read off, see :data:`reparam.lab.quantizing.Source`.
        strength: ``alpha``, 0 to 1.
        samples: How many samples are used.

    Returns:
        A copy of the net that computes the same, and what was done to it.

    Raises:
        InputError: ``strength`` is not in that range, or the net does not run on the data.
        DataError: There is no calibration data.
        TrainingModeError: The net is in training mode.
        UnsupportedModelError: The net cannot be traced.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval().double()
    >>> x = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    >>> equal, done = equalize(net, x)
    >>> bool((equal(x) - net(x)).abs().max() < 1e-12), [place.source for place in done]
    (True, ['0'])
    """
    traffic = calibrated(model, calibration, samples, "equalising").traffic
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {strength}; it must be from 0 to 1")
    equal = own_copy(model)
    with torch.no_grad():
        done = [
            _equalize(equal, place, traffic, strength)
            for place in neighbours(model)
            if all(name in traffic for name in place.readers)
        ]
    return equal, tuple(done)


def _equalize(
    model: nn.Module, place: Neighbours, traffic: Mapping[str, Traffic], strength: float
) -> Equalisation:
    source = _layer(model, place.source)
    readers = [_layer(model, name) for name in place.readers]
    channels = source.weight.shape[0]
    # The readers see the same value, pooled or not; what one step has to cover is the largest.
    activation = _largest([_per_channel(traffic[n].channels, channels) for n in place.readers])
    columns = _largest([_columns(reader, channels) for reader in readers])
    factors = _factors(activation, columns, strength)
    _divide_outputs(source, factors)
    for reader in readers:
        _multiply_inputs(reader, factors)
    after = spread(activation / factors)
    return Equalisation(place.source, place.readers, spread(activation), after)


def _layer(model: nn.Module, path: str) -> Layer:
    layer: Layer = model.get_submodule(path)  # type: ignore[assignment] # found as one
    return layer


def _factors(activation: Tensor, columns: Tensor, strength: float) -> Tensor:
    """Return the factors, 1 for channels that carry nothing, with geometric mean 1."""
    used = (activation > 0) & (columns > 0)
    logs = torch.zeros_like(activation)
    logs[used] = strength * activation[used].log() - (1 - strength) * columns[used].log()
    if used.any():
        logs[used] -= logs[used].mean()
    return logs.exp().clamp(1 / _LARGEST, _LARGEST)


def _largest(ranges: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(ranges)).amax(0)


def _per_channel(values: Tensor, channels: int) -> Tensor:
    """Return the largest value of each channel where flattening made several features of one."""
    return values.double().view(channels, -1).amax(1)


def _columns(layer: Layer, channels: int) -> Tensor:
    """Return the largest weight that reads each channel, in units of its row's largest."""
    weight = layer.weight.detach().double().abs()
    rows = weight.flatten(1).amax(1).clamp_min(torch.finfo(torch.float64).tiny)
    relative = weight.flatten(2).amax(2) if weight.dim() > 2 else weight
    relative = relative / rows[:, None]
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    by_input = relative.view(groups, -1, relative.shape[1]).amax(1).flatten()
    return _per_channel(by_input, channels)


def _divide_outputs(layer: Layer, factors: Tensor) -> None:
    shape = (-1, *(1 for _ in layer.weight.shape[1:]))
    layer.weight.copy_(layer.weight.double() / factors.view(shape))
    if layer.bias is not None:
        layer.bias.copy_(layer.bias.double() / factors)


def _multiply_inputs(layer: Layer, factors: Tensor) -> None:
    """Multiply the columns of a weight, shape ``(O, I / groups, ...)``, group by group."""
    weight = layer.weight.detach().double()
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    inputs = weight.shape[1] * groups
    columns = factors.repeat_interleave(inputs // len(factors)).view(groups, 1, weight.shape[1], 1)
    scaled = weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1) * columns
    layer.weight.copy_(scaled.view_as(weight))


# What commutes with a positive factor for each channel: f(s x) = s f(x), channel by channel.
_MODULES = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
)  # fmt: skip
_FUNCTIONS = frozenset(
    {
        torch.relu, torch.relu_, functional.relu, functional.relu_, functional.leaky_relu,
        functional.dropout, functional.max_pool1d, functional.max_pool2d, functional.max_pool3d,
        torch.max_pool1d, torch.max_pool2d, torch.max_pool3d,
        functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d,
        functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d,
        functional.adaptive_avg_pool3d,
    }
)  # fmt: skip
_METHODS = frozenset({"relu", "relu_", "contiguous"})


@dataclass(frozen=True)
class Neighbours:
    """A layer, and all layers that read it, through maps that a scale of its channels passes.

    Attributes:
        source: Path of the layer that writes.
        readers: Paths of the layers that read.
    """

    source: str
    readers: tuple[str, ...]


def neighbours(model: nn.Module) -> tuple[Neighbours, ...]:
    """Return all places where a scale can move from one layer into the next, in running order.

    Between the two there may be ReLU, pooling, dropout, flattening and zero padding. Where anything
    else reads the value too (a sum with a shortcut, an output), or a layer is called more than
    once, there is no such place.

    Raises:
        UnsupportedModelError: The model cannot be traced.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    >>> [(place.source, *place.readers) for place in neighbours(net.eval())]
    [('0', '2'), ('2', '3')]
    """
    try:
        traced = straight_trace(model)
    except TraceFailure as failure:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be traced ({failure}), so it is not known which layer "
            "reads which; quantize it without equalisation"
        ) from failure
    calls = Counter(str(node.target) for node in traced.graph.nodes if _is_layer(traced, node))
    owners = _owners(traced.root)
    found = []
    for node in traced.graph.nodes:
        if not _is_layer(traced, node):
            continue
        readers = list(_readers(traced, node))
        paths = [str(node.target), *(str(reader.target) for reader in readers if reader)]
        alone = all(calls[path] == 1 and owners[id(_weight(traced, path))] == 1 for path in paths)
        if readers and None not in readers and alone:
            found.append(Neighbours(paths[0], tuple(dict.fromkeys(paths[1:]))))
    return tuple(found)


def _readers(traced: Trace, node: fx.Node) -> Iterator[fx.Node | None]:
    """Yield the layers that read a value, and None for everything else that does."""
    for user in node.users:
        if _is_layer(traced, user):
            yield user
        elif _passes(traced, user, node):
            yield from _readers(traced, user)
        else:
            yield None
    if not node.users:
        yield None


def _is_layer(traced: Trace, node: fx.Node) -> bool:
    return node.op == "call_module" and type(traced.module(node)) in KINDS


def _passes(traced: Trace, user: fx.Node, value: fx.Node) -> bool:
    """Say whether an operation commutes with positive factors for the channels of its input."""
    if not user.args or user.args[0] is not value or user.all_input_nodes != [value]:
        return False
    if user.op == "call_module":
        module = traced.module(user)
        return isinstance(module, _MODULES) or (
            isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
        )
    if user.op == "call_function":
        return user.target in _FUNCTIONS or (user.target is torch.flatten and _from_one(user))
    return user.target in _METHODS or (user.target == "flatten" and _from_one(user))


def _from_one(node: fx.Node) -> bool:
    """Say whether a flatten joins all dimensions behind the batch: channel after channel."""
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
    end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    return (start, end) == (1, -1)


def _owners(root: nn.Module) -> Counter[int]:
    """Count by how many layers each weight is held; a tied one belongs to several."""
    layers = (module for module in root.modules() if type(module) in KINDS)
    return Counter(id(layer.weight) for layer in layers)


def _weight(traced: Trace, path: str) -> object:
    return traced.root.get_submodule(path).weight
