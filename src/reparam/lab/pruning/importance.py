"""How much each channel counts: three criteria, all over whole groups of coupled layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from reparam._support.arguments import shown
from reparam.errors import InputError
from reparam.frontends.torch.copying import own_copy
from reparam.lab.hooking import hooked
from reparam.verifying import call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reparam.lab.pruning.graph import Group, Member

CRITERIA = ("magnitude", "bn_scale", "first_order")

Batch: TypeAlias = "tuple[Any, Any]"
Data: TypeAlias = "Batch | Iterable[Batch]"
"""One pair of inputs and targets, or several."""

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""Of the net's outputs and the targets: the mean over the batch."""


@torch.no_grad()
def magnitude(model: nn.Module, groups: Sequence[Group]) -> list[Tensor]:
    r"""Return, for each group, the energy that its kernels give each channel.

    .. math:: I_c = \|K^{out}_c\|^2 \, \|K^{in}_c\|^2

    with all equivalent kernels that write channel c on the left and all that read it on the right.
    A factor that ReLU lets pass from one side to the other (fused kernels have no BN to fix it)
    leaves the product as it is, where the norm of one side alone would follow it.

    Returns:
        Float64 tensors of shape (width,).
    """
    found = []
    for group in groups:
        written = _energy(model, group, group.having("out"))
        read = _energy(model, group, group.having("in"))
        found.append(written * read)
    return found


def _energy(model: nn.Module, group: Group, members: Sequence[Member]) -> Tensor:
    total = torch.zeros(group.width, dtype=torch.float64)
    for member in members:
        layer = model.get_submodule(member.name)
        total += member.gather(_squares(layer, member.role), group.width)
    return total if members else torch.ones_like(total)


def _squares(layer: nn.Module, role: str) -> Tensor:
    """Return the squared norms of the weights that write (or read) each channel of a layer."""
    weight = layer.get_parameter("weight").detach().double().cpu()
    conv = layer if isinstance(layer, _ConvNd) else None
    rows_write = conv is None or not conv.transposed
    along = 0 if (role == "out") == rows_write else 1
    squares: Tensor = weight.square().transpose(0, along).flatten(1).sum(1)
    if conv is None or conv.groups == 1 or along == 0:
        return squares
    # In a grouped convolution the second dimension counts within one group.
    parts = weight.square().unflatten(0, (conv.groups, -1)).transpose(1, 2)
    grouped: Tensor = parts.flatten(2).sum(2).flatten()
    return grouped


@torch.no_grad()
def bn_scale(
    model: nn.Module, groups: Sequence[Group], trained: nn.Module, inputs: Any
) -> list[Tensor]:
    r"""Return, for each group, the energy of the BN scales that the training form had.

    .. math:: I_c = \sum_b \gamma_{b, c}^2

    over the batch norms whose sum (or single one whose output) the fused layer took the place of:
    the variance of the channel, were the branches independent (Liu et al., ICCV 2017, arXiv
    1708.06519, for a single one).

    Args:
        model: The fused net.
        groups: Its groups.
        trained: The net that it was fused from, in eval mode.
        inputs: What it is called with.

    Returns:
        Float64 tensors of shape (width,).

    Raises:
        InputError: The training form has no such layer, or no batch norm there.
    """
    names = {member.name for group in groups for member in group.having("out")}
    scales = _Scales(trained, inputs, names)
    found = []
    for group in groups:
        total = torch.zeros(group.width, dtype=torch.float64)
        for member in group.having("out"):
            channels = _channels(model.get_submodule(member.name))
            total += member.gather(scales.of(member.name, channels), group.width)
        found.append(total)
    return found


class _Scales:
    """The batch norms of a training form, found by which tensors pass from layer to layer."""

    def __init__(self, trained: nn.Module, inputs: Any, names: set[str]) -> None:
        self._modules = dict(trained.named_modules())
        for name in names:
            if name not in self._modules:
                raise InputError(
                    f"the training form, a {type(trained).__name__}, has no layer {name!r} as the "
                    f"fused net has; give as trained= the net that this one was fused from"
                )
        self._reads: dict[str, Tensor] = {}
        self._writes: dict[str, Tensor] = {}
        with hooked(self._modules, after=self._note):
            call(trained, inputs)

    def of(self, name: str, channels: int) -> Tensor:
        """Return the energy of the scales behind the layer that was fused into ``name``."""
        norms = self._norms(name)
        if not norms or any(norm.num_features != channels for norm in norms):
            raise InputError(
                f"the training form has no batch norm of {channels} channels in or behind "
                f"{name!r}, whose scale could say what a channel counts; use another importance"
            )
        total = torch.zeros(channels, dtype=torch.float64)
        for norm in norms:
            scale = norm.weight if norm.affine else torch.ones(channels)
            total += scale.detach().double().cpu().square()
        return total

    def _norms(self, name: str) -> list[_BatchNorm]:
        """Return the norms that decide the scale of what the layer's fused successor writes."""
        written, inside = self._writes.get(name), f"{name}." if name else ""
        norms = {p: m for p, m in self._modules.items() if isinstance(m, _BatchNorm)}
        within = {path: norm for path, norm in norms.items() if path.startswith(inside)}
        if written is not None:
            # One that ends the block, or follows the convolution, has the last word.
            ends = [n for p, n in within.items() if self._writes.get(p) is written]
            behind = [n for p, n in norms.items() if self._reads.get(p) is written]
            if ends or behind:
                return ends or behind
        read = [self._reads.get(path) for path in self._modules if path.startswith(inside)]
        return [
            norm for path, norm in within.items()
            if not any(tensor is self._writes.get(path) for tensor in read)
        ]  # fmt: skip

    def _note(self, name: str, _: nn.Module, given: Any, output: Any) -> None:
        if given and isinstance(given[0], Tensor):
            self._reads[name] = given[0]
        if isinstance(output, Tensor):
            self._writes[name] = output


def first_order(
    model: nn.Module, groups: Sequence[Group], data: Data, loss: Loss | None = None
) -> list[Tensor]:
    r"""Return, for each group, the squared first-order change of the loss without each channel.

    .. math:: I_c = \frac1N \sum_n \Big( \sum_{l, p} \frac{\partial L_n}{\partial y^l_{n, c, p}}
        \, y^l_{n, c, p} \Big)^2

    over the images n, the layers l that write channel c, and their positions p (Molchanov et al.,
    CVPR 2019, arXiv 1906.10771, with a gate on each channel).

    Args:
        model: The net; it is only read.
        groups: Its groups.
        data: Inputs and targets.
        loss: Mean loss of a batch; cross-entropy by default.

    Returns:
        Float64 tensors of shape (width,).

    Raises:
        InputError: The data are no such pairs, or the loss is no single finite number.
    """
    shadow = own_copy(model).requires_grad_(True)
    names = {member.name: None for group in groups for member in group.having("out")}
    totals = [torch.zeros(group.width, dtype=torch.float64) for group in groups]
    images = 0
    for inputs, targets in batches(data):
        gates, batch = _gates(
            shadow, list(names), inputs, targets, loss or functional.cross_entropy
        )
        images += batch
        for index, group in enumerate(groups):
            joint = torch.zeros(group.width, batch, dtype=torch.float64)
            for member in group.having("out"):
                if member.name in gates:
                    joint.index_add_(0, member.roots, gates[member.name].T[member.own])
            totals[index] += joint.square().sum(1)
    if images == 0:
        raise InputError("data holds no batch; first_order needs at least one of (inputs, targets)")
    return [total / images for total in totals]


def _gates(
    model: nn.Module, names: Sequence[str], inputs: Any, targets: Any, loss: Loss
) -> tuple[dict[str, Tensor], int]:
    """Return, for each layer, the derivative by a factor on each channel: (images, channels)."""
    gates: dict[str, Tensor] = {}

    def note(name: str, _layer: nn.Module, _inputs: Any, output: Any) -> None:
        # What follows may write over the output, so that the values are taken now.
        values = output.detach().clone()

        def multiply(gradient: Tensor) -> None:
            product = (gradient * values).double().cpu()
            found = product.flatten(2).sum(2) if product.ndim > 2 else product
            gates[name] = gates[name] + found if name in gates else found

        output.register_hook(multiply)

    modules = {name: model.get_submodule(name) for name in names}
    with torch.enable_grad(), hooked(modules, after=note):
        value = loss(call(model, inputs), targets)
        if not isinstance(value, Tensor) or value.numel() != 1 or not bool(value.isfinite()):
            raise InputError(f"the loss on data is {value!r}; needed is one finite number")
        value.backward()
    model.zero_grad(set_to_none=True)
    batch = max(map(len, gates.values()), default=0)
    # The loss is a mean over the batch; each image's own share of it is so many times as much.
    return {name: gate * batch for name, gate in gates.items()}, batch


def batches(data: Data) -> Iterator[Batch]:
    """Yield pairs of inputs and targets, of one pair or of several."""
    if not isinstance(data, Iterable) or isinstance(data, str):
        raise InputError(f"data is {shown(data)}; needed are pairs of inputs and targets")
    one = isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor)
    for batch in [data] if one else data:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError(
                f"data holds a {type(batch).__name__}; needed are pairs of inputs and targets, as "
                f"in data=(images, labels)"
            )
        yield batch[0], batch[1]


def _channels(layer: nn.Module) -> int:
    if isinstance(layer, _ConvNd):
        return layer.out_channels
    return int(layer.get_parameter("weight").shape[0])
