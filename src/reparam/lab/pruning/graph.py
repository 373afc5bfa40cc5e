"""Which channels of a net have to go together, and a smaller copy without some of them.

Torch-Pruning's dependency graph (Fang et al., CVPR 2023, arXiv 2301.12900) says which layers see
the same channels; what is chosen among them, and the proof that the right ones went, are ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from reparam._support.optional import require
from reparam.errors import InputError, UnsupportedModelError
from reparam.frontends.torch.copying import own_copy
from reparam.lab.pruning.result import Kept
from reparam.verifying import call

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Removed: TypeAlias = Mapping[str, Tensor]
"""For the root of each group, the channels of the root that go (int64)."""


@dataclass(frozen=True, eq=False)
class Member:
    """A layer of a group.

    Attributes:
        name: Path of the module (of the parameter, where it belongs to no known layer).
        role: ``"out"``: the channels are its outputs; ``"in"``: its inputs; ``"along"``: both, as
            in a norm or a depthwise convolution.
        roots: Channels of the group's root, int64, shape (n,).
        own: The channels of this layer that go with them, int64, shape (n,).
    """

    name: str
    role: Literal["out", "in", "along"]
    roots: Tensor
    own: Tensor

    def of(self, removed: Tensor) -> Tensor:
        """Return the layer's own channels that go with these of the root."""
        return self.own[torch.isin(self.roots, removed)]

    def gather(self, values: Tensor, width: int) -> Tensor:
        """Add up what this layer says of its own channels, for each channel of the root."""
        return values.new_zeros(width).index_add_(0, self.roots, values[self.own])


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that several layers share, so that they can only be removed from all of them.

    Attributes:
        root: Path of a convolution that produces them; it names the group.
        width: Number of channels.
        folds: How many channels go at a time: one in each group of a grouped convolution.
        members: The layers, in the order in which the net registers them.
    """

    root: str
    width: int
    folds: int
    members: tuple[Member, ...]

    def having(self, role: str) -> tuple[Member, ...]:
        """Return the members with that role."""
        return tuple(member for member in self.members if member.role == role)


def find_groups(
    model: nn.Module, inputs: Any, keep: Sequence[str]
) -> tuple[list[Group], list[Kept]]:
    """Return the groups whose channels may go, and those that stay, with the reason.

    Args:
        model: The net; it is only read.
        inputs: What it is called with.
        keep: Paths of layers whose outputs are to stay as they are.
    """
    shadow = own_copy(model)
    graph = _dependencies(shadow, inputs)
    paths = {id(module): name for name, module in shadow.named_modules()}
    order = {name: position for position, name in enumerate(paths.values())}
    groups: list[Group] = []
    kept: list[Kept] = []
    seen: set[str] = set()
    for root, layer in shadow.named_modules():
        if not isinstance(layer, _ConvNd) or layer not in graph.module2node or root in seen:
            continue
        try:
            found = _followed(graph, layer, range(layer.out_channels))
        except Exception as error:  # noqa: BLE001 (Torch-Pruning's arithmetic on indices of any net)
            kept.append(Kept(root, f"{_UNFOLLOWED}: {str(error).partition(chr(10))[0]}"))
            continue
        group = _read(graph, found, paths, order)
        seen |= {member.name for member in group.members if member.role != "in"}
        why = _objection(shadow, found, group, keep)
        if why:
            kept.append(Kept(group.root, why))
        else:
            groups.append(group)
    return groups, kept


_UNFOLLOWED = "its channels cannot be followed through what reads them"


def _followed(graph: Any, layer: _ConvNd, channels: Iterable[int]) -> Any:
    """What has to go with channels of a layer, as Torch-Pruning's dependency graph says."""
    function = graph.get_pruner_of_module(layer).prune_out_channels
    return graph.get_pruning_group(layer, function, list(channels))


def cut(model: nn.Module, inputs: Any, removed: Removed) -> nn.Module:
    """Return a copy of the net without those channels; ``model`` is only read."""
    smaller = own_copy(model)
    graph = _dependencies(smaller, inputs)
    for root, channels in removed.items():
        layer = smaller.get_submodule(root)
        assert isinstance(layer, _ConvNd)  # noqa: S101 (roots of groups are convolutions)
        _followed(graph, layer, channels.tolist()).prune()
    for name, parameter in model.named_parameters():
        smaller.get_parameter(name).requires_grad_(parameter.requires_grad)
    return smaller


@torch.no_grad()
def masked(model: nn.Module, groups: Sequence[Group], removed: Removed) -> nn.Module:
    """Return a copy of the net, of the same size, that reads nothing from those channels.

    The weights with which the layers behind look at them are zero. Without any knowledge of what
    stands between, this is the function that the smaller net has to have.
    """
    silent = own_copy(model)
    for group in groups:
        for member in group.having("in") if group.root in removed else ():
            _silence(silent.get_submodule(member.name), member.of(removed[group.root]))
    return silent


def _silence(layer: nn.Module, channels: Tensor) -> None:
    weight = layer.get_parameter("weight")
    if not isinstance(layer, _ConvNd):
        weight[:, channels] = 0
        return
    if layer.transposed:
        weight[channels] = 0
        return
    columns, rows = weight.shape[1], weight.shape[0] // layer.groups
    for channel in channels.tolist():
        group, column = divmod(channel, columns)
        weight[group * rows : (group + 1) * rows, column] = 0


def _dependencies(model: nn.Module, inputs: Any) -> Any:
    """Trace a copy of a net; its parameters need gradients, for autograd is what is followed."""
    pruning = require("torch_pruning", extra="prune", purpose="Pruning")
    model.requires_grad_(True)
    graph = pruning.DependencyGraph()
    with torch.enable_grad(), _without_warnings():
        try:
            return graph.build_dependency(model, inputs, forward_fn=call, verbose=False)
        except Exception as error:
            if getattr(graph, "module2node", None):
                # All is known but how some operations move channels: whoever meets these stays.
                _map_indices(graph)
                return graph
            raise UnsupportedModelError(
                f"the channels of this {type(model).__name__} cannot be followed: {error}; needed "
                f"is a net that autograd can trace on the example inputs"
            ) from error


def _map_indices(graph: Any) -> None:
    """Say how operations move channels, each by itself, where saying it of all at once fails.

    Those of which it cannot be said count as moving none; what reads channels through them is then
    found to lose others than it has, or to compute something else.
    """
    mapping = require("torch_pruning.dependency.index_mapping", extra="prune", purpose="Pruning")
    for node in graph.module2node.values():
        update = getattr(mapping, f"update_{node.type.name.lower()}_index_mapping", None)
        try:
            if update is not None:
                update(graph, node)
        except Exception:  # noqa: BLE001 (arithmetic on whatever the net's operations saved)
            node.type = type(node.type).ELEMENTWISE


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _target(item: Any) -> nn.Module:
    module: nn.Module = item.dep.target.module
    return module


def _read(graph: Any, found: Any, paths: Mapping[int, str], order: Mapping[str, int]) -> Group:
    """Copy what is needed of a group into our own record."""
    root = paths[id(_target(found[0]))]
    members = []
    for item in found:
        module, function = _target(item), item.dep.handler
        name = paths.get(id(module)) or graph._param_to_name.get(module)  # noqa: SLF001
        if name is None:  # an operation without parameters
            continue
        into, out = (
            graph.is_in_channel_pruning_fn(function),
            graph.is_out_channel_pruning_fn(function),
        )
        role: Literal["out", "in", "along"] = "along" if into and out else "out" if out else "in"
        roots, own = torch.tensor(list(item.root_idxs)), torch.tensor(list(item.idxs))
        members.append(Member(name, role, roots, own))
    members.sort(key=lambda member: order.get(member.name, -1))
    width = len(found[0].idxs)
    return Group(root, width, _folds(found), tuple(members))


def _folds(found: Any) -> int:
    """Return how many channels go at a time, for grouped convolutions to keep equal groups."""
    convs = (_target(item) for item in found)
    grouped = (c.groups for c in convs if isinstance(c, _ConvNd) and c.groups < c.out_channels)
    return math.lcm(*grouped)


def _objection(shadow: nn.Module, found: Any, group: Group, keep: Sequence[str]) -> str:
    """Say why the channels of a group have to stay; empty if they need not."""
    outputs = require("torch_pruning.ops", extra="prune", purpose="Pruning")
    ends = any(isinstance(_target(item), outputs._OutputOp) for item in found)  # noqa: SLF001
    if ends or not group.having("in"):
        return "its channels are an output of the net"
    modules = dict(shadow.named_modules())
    for member in group.members:
        wide = _width(modules.get(member.name), member.role)
        if wide is not None and not _covers(member, group.width, wide):
            return (
                f"{_UNFOLLOWED}: those that {member.name} has ({wide}) are not the ones it would "
                f"lose (as behind unequal splits, gated units, and channels moved into positions)"
            )
    named = [m.name for m in group.members if m.role != "in" and m.name in keep]
    if named:
        return f"{named[0]} is to be kept"
    if group.width % group.folds:
        return f"its {group.width} channels do not split into {group.folds} groups"
    for member in group.members:
        module = modules.get(member.name)
        grouped = isinstance(module, _ConvNd) and 1 < module.groups < module.out_channels
        if grouped and not torch.equal(member.roots, member.own):
            return f"the grouped convolution {member.name} sees them in another order"
    return ""


def _width(module: nn.Module | None, role: str) -> int | None:
    """The channels of a layer on the side that a group has hold of."""
    if isinstance(module, _ConvNd):
        return module.in_channels if role == "in" else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if role == "in" else module.out_features
    return getattr(module, "num_features", None)


def _covers(member: Member, width: int, own: int) -> bool:
    """Whether a member speaks of channels that there are, each of its own once."""
    known = member.roots.max() < width and member.own.max() < own if len(member.own) else False
    return bool(known) and len(member.own.unique()) == len(member.own)


def check_keep(model: nn.Module, keep: Sequence[str]) -> None:
    """Refuse names of layers to keep that the net does not have."""
    known = {name for name, _ in model.named_modules()}
    for name in keep:
        if name not in known:
            raise InputError(
                f"there is no layer {name!r} to keep; the net has "
                f"{', '.join(sorted(filter(None, known))[:8])}, ..."
            )
