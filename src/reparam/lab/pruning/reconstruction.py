"""What the layers that are left can make up for, solved by least squares on data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reparam.frontends.torch.copying import own_copy
from reparam.lab.hooking import hooked
from reparam.verifying import call

if TYPE_CHECKING:
    from reparam.lab.pruning.graph import Group, Removed

_MOST_INPUTS = 4096
"""Numbers that one output of a layer is made of, above which no system of equations is solved."""
_ROWS = 8
"""Equations for each unknown, as far as the data have them."""
_RIDGE = 1e-3
"""Weight of staying where the kernel was, relative to the mean energy of the inputs."""
_MOST_NUMBERS = 1 << 26
"""Numbers in the patches that are held at a time."""
_SEED = 0


@torch.no_grad()
def reconstruct(
    model: nn.Module,
    smaller: nn.Module,
    groups: Sequence[Group],
    removed: Removed,
    batches: Sequence[Any],
) -> tuple[nn.Module, tuple[str, ...]]:
    r"""Return a copy of a pruned net whose layers are solved for the outputs of the given one.

    Every layer that lost inputs, in the order in which they run:

    .. math:: \min_{K', b'} \sum_p \| K' x'_p + b' - y_p \|^2 + \lambda \| K' - K \|^2

    with the patches x' that the layer sees in the pruned net, the layers before it solved already,
    and the outputs y that it had in the given net (He et al., ICCV 2017, arXiv 1707.06168, section
    3). No labels are needed.

    Args:
        model: The net that was given; it is only read.
        smaller: The net without the channels; it is only read.
        groups: The groups of channels.
        removed: Which of them went.
        batches: Inputs, at least one batch.

    Returns:
        The net, and the paths of the layers that were solved.
    """
    solved = own_copy(smaller)
    names = [m.name for g in groups if g.root in removed for m in g.having("in")]
    chosen = [
        name
        for name in _in_order(solved, list(dict.fromkeys(names)), batches[0])
        if _solvable(solved.get_submodule(name))
    ]
    for name in chosen:
        _solve(model, solved, name, _outputs(model, name, groups, removed), batches)
    return solved, tuple(chosen)


def _outputs(model: nn.Module, name: str, groups: Sequence[Group], removed: Removed) -> Tensor:
    """Return the outputs of a layer that are left, in the numbering of the given net."""
    left = torch.ones(len(model.get_submodule(name).get_parameter("weight")), dtype=torch.bool)
    for group in groups:
        for member in group.having("out") if group.root in removed else ():
            if member.name == name:
                left[member.of(removed[group.root])] = False
    return left.nonzero().flatten()


def _in_order(model: nn.Module, names: Sequence[str], inputs: Any) -> list[str]:
    order: list[str] = []
    layers = {name: model.get_submodule(name) for name in names}
    with hooked(layers, before=lambda name, *_: order.append(name)):
        call(model, inputs)
    return list(dict.fromkeys(order))


def _solvable(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return layer.in_features < _MOST_INPUTS
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    return plain and layer.get_parameter("weight")[0].numel() < _MOST_INPUTS


def _solve(
    model: nn.Module, solved: nn.Module, name: str, kept: Tensor, batches: Sequence[Any]
) -> None:
    """Solve one layer in place, for the change of its weights and bias."""
    layer = solved.get_submodule(name)
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    unknowns = weight[0].numel() + (bias is not None)
    gram = torch.zeros(unknowns, unknowns, dtype=torch.float64)
    moment = torch.zeros(unknowns, len(kept), dtype=torch.float64)
    generator = torch.Generator().manual_seed(_SEED)
    for batch in batches:
        given, found = _at(solved, name, batch)
        lacking = (
            _at(model, name, batch)[1].index_select(_axis(found), kept.to(found.device)) - found
        )
        for x, y in _parts(layer, given, lacking, _ROWS * unknowns / len(batches), generator):
            known = functional.pad(x, (0, 1), value=1.0) if bias is not None else x
            gram += known.T @ known
            moment += known.T @ y
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    change = torch.linalg.solve(gram, moment).T
    weight.add_(change[:, : weight[0].numel()].reshape(weight.shape).to(weight))
    if bias is not None:
        bias.add_(change[:, -1].to(bias))


def _parts(
    layer: nn.Module, given: Tensor, lacking: Tensor, rows: float, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield equations from random positions: what an output is made of, and what it lacks.

    Few images at a time, for the patches of a convolution take as often as much memory as its
    images as its kernel has taps.
    """
    taps = layer.get_parameter("weight")[0].numel()
    numbers = lacking[0].numel() // lacking.shape[_axis(lacking)] * taps
    at_once = max(1, _MOST_NUMBERS // max(1, numbers))
    share = rows / len(given)
    for images, missing in zip(given.split(at_once), lacking.split(at_once), strict=True):
        x, y = _patches(layer, images), _rows(missing)
        count = max(1, round(share * len(images)))
        chosen = torch.randperm(len(x), generator=generator)[:count].to(x.device)
        yield x[chosen].double().cpu(), y[chosen].double().cpu()


def _at(model: nn.Module, name: str, inputs: Any) -> tuple[Tensor, Tensor]:
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_name: str, _layer: nn.Module, given: Any, output: Tensor) -> None:
        # What follows may write over the output.
        seen.append((given[0].clone(), output.clone()))

    with hooked({name: model.get_submodule(name)}, after=note):
        call(model, inputs)
    return seen[-1]


def _patches(layer: nn.Module, x: Tensor) -> Tensor:
    """Return one row for each position: the inputs that its outputs are made of."""
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2)
    if isinstance(layer.padding, str):
        pads = layer._reversed_padding_repeated_twice  # noqa: SLF001
        x = functional.pad(x, pads)
        padding: tuple[int, ...] = (0, 0)
    else:
        padding = layer.padding
    columns = functional.unfold(
        x, layer.kernel_size, dilation=layer.dilation, padding=padding, stride=layer.stride
    )
    return columns.transpose(1, 2).flatten(0, 1)


def _axis(output: Tensor) -> int:
    return 1 if output.ndim == 4 else output.ndim - 1


def _rows(output: Tensor) -> Tensor:
    """Return one row for each position."""
    if output.ndim == 4:
        return output.flatten(2).transpose(1, 2).flatten(0, 1)
    return output.flatten(0, -2)
