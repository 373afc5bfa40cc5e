"""Edit a model for its folded regions: which modules are replaced, which forwards rewritten."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from reparam.algebra import LayerArguments, flat_pads
from reparam.frontends.hosted import rebuilt
from reparam.frontends.torch.frames import Key, first_line
from reparam.frontends.torch.part import part_of
from reparam.frontends.torch.rewrite import Classes, Shell, build
from reparam.frontends.torch.running import is_parameter_only
from reparam.frontends.torch.trace import Trace
from reparam.fusing.fold import FoldedLayer
from reparam.fusing.place import Block, Parts, blocks_of, locate, missing
from reparam.fusing.sites import ModuleSite
from reparam.program import Affine


class CannotPlaceError(Exception):
    """A block cannot be rewritten for the regions in it (internal; its regions are left)."""

    def __init__(self, block: str, why: str) -> None:
        """Name the block."""
        super().__init__(why)
        self.block = block


def apply_regions(
    model: nn.Module, parts: Parts, folded: Iterable[tuple[ModuleSite, FoldedLayer]],
    replaced: Mapping[str, FoldedLayer], *, frozen: bool = False,
) -> nn.Module:  # fmt: skip
    """Make the new model; the old one is only read.

    Args:
        model: The old one.
        parts: Parts of the trace to rewrite; those that are, are taken out.
        folded: The regions and their layers.
        replaced: Modules that are replaced whole, by path.
        frozen: Whether forwards around a new layer are rewritten as well, as their trace went: they
            may look at what their layers are (``isinstance(self.norm, nn.BatchNorm2d)``).

    Raises:
        CannotPlaceError: The forward of a block cannot be rewritten.

    """
    edits = _Edits(model, parts)
    for found, layer in folded:
        edits.add(found, layer)
    for path, layer in replaced.items():
        edits.replace(path, make_layer(layer))
    layers, shells = edits.finish(frozen=frozen)
    return build(model, layers, shells)


def _layer_for(found: ModuleSite, folded: FoldedLayer) -> nn.Module:
    """Make the layer of a region: frozen where all that it is made of is."""
    return make_layer(folded).requires_grad_(not found.is_frozen)


def make_layer(folded: FoldedLayer) -> nn.Module:
    """Make the module of a folded layer."""
    if folded.template is not None:
        return rebuilt(folded.template, folded.weight, folded.bias)
    layer = _empty_layer(folded.arguments, folded.weight, folded.padding_mode)
    layer.weight = nn.Parameter(folded.weight, requires_grad=True)
    if folded.bias is not None:
        layer.bias = nn.Parameter(folded.bias, requires_grad=True)
    layer.eval()
    if folded.arguments.pre_pad is None:
        return layer
    pads: tuple[type[nn.Module], ...] = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
    pad = pads[folded.arguments.dims - 1](tuple(flat_pads(folded.arguments.pre_pad)))
    return nn.Sequential(pad, layer).eval()


def _empty_layer(arguments: LayerArguments, like: torch.Tensor, mode: Any) -> nn.Module:
    """Make the layer without drawing (and paying for) initial numbers."""
    kind = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[arguments.dims]
    make: Any = _UNDRAWN[kind]
    layer: nn.Module
    if arguments.dims == 0:
        layer = make(
            arguments.in_channels, arguments.out_channels, bias=arguments.bias, device="meta",
            dtype=like.dtype,
        )  # fmt: skip
    else:
        layer = make(
            arguments.in_channels, arguments.out_channels, arguments.kernel_size,
            stride=arguments.stride, padding=arguments.padding, dilation=arguments.dilation,
            groups=arguments.groups, bias=arguments.bias, device="meta", dtype=like.dtype,
            padding_mode=mode,
        )  # fmt: skip
    layer.__class__ = kind
    return layer


def _draws_nothing(_layer: nn.Module) -> None:
    """Leave a layer without initial numbers."""


_UNDRAWN = {
    kind: type(kind.__name__, (kind,), {"reset_parameters": _draws_nothing})
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
}
"""Layers that are made without these."""


class _Edits:
    def __init__(self, model: nn.Module, parts: Parts) -> None:
        self._model, self._parts = model, parts
        self._classes = Classes()
        self._layers: dict[str, nn.Module] = {}
        self._merged: dict[ModuleSite, FoldedLayer] = {}

    def add(self, found: ModuleSite, layer: FoldedLayer) -> None:
        """Note the edits of one region."""
        self._merged[found] = layer
        if found.replaced is not None:
            self._layers[found.replaced.target] = _layer_for(found, layer)
        for node in found.absorbed:
            key = ModuleSite.key_of(node)
            if key.is_module:
                self._layers[key.target] = nn.Identity().eval()

    def replace(self, path: str, layer: nn.Module) -> None:
        """Note that a module is replaced whole."""
        self._layers[path] = layer

    def finish(self, *, frozen: bool) -> tuple[dict[nn.Module, nn.Module], list[Shell]]:
        """Edit the graphs, and say what is replaced by what."""
        shells = []
        blocks = blocks_of(self._merged)
        for path, block in blocks.items():
            try:
                shells.append(self._shell(path, block))
            except (LookupError, RuntimeError) as error:
                raise CannotPlaceError(path, first_line(error)) from error
        if frozen:
            shells += self._frozen(blocks)
        layers = {self._model.get_submodule(path): new for path, new in self._layers.items()}
        return layers, shells

    def _frozen(self, blocks: Mapping[str, Block]) -> Iterator[Shell]:
        """The forwards around the new layers that are not rewritten yet, where they can be."""
        inlined = {path for block in blocks.values() for path in block.inlined}
        around = {
            (path, found.lifted.trace)
            for found in self._merged
            for node in found.region.nodes
            for path in _up_to(found.lifted.trace.path, ModuleSite.key_of(node).owner)
        }
        for path, traced in sorted(around, key=lambda pair: pair[0]):
            original = self._model.get_submodule(path)
            if path not in blocks.keys() | inlined and not isinstance(original, _RUN_AS_THEY_ARE):
                with contextlib.suppress(LookupError):  # of those that cannot be, the code is left
                    part = part_of(traced, path, set())
                    yield Shell(
                        original, part.graph, self._classes, layers={}, dropped=set(),
                        inlined=set(), buffers=part.literals,
                    )  # fmt: skip

    def _shell(self, path: str, block: Block) -> Shell:
        traced = self._parts.pop((path, block.key), None) or part_of(
            block.trace, path, block.inlined
        )
        editor = _GraphEditor(traced)
        for found in block.merges:
            editor.merge(found, _layer_for(found, self._merged[found]))
        for key, found in block.erased.items():
            editor.erase(key, found)
        for found in block.regions():
            for shift in found.region.shifts:
                editor.add_instead(shift, ModuleSite.key_of(shift), found.like)
        editor.drop_identities(self._layers)
        original = self._model.get_submodule(path)
        relative = {p: _relative(path, p) for p in block.inlined}
        return Shell(
            original,
            traced.graph,
            self._classes,
            layers=editor.layers,
            dropped=editor.dropped,
            inlined=set(relative.values()),
            buffers=editor.buffers | _read_of(traced),
        )


class _GraphEditor:
    """Edit the graph of one module."""

    def __init__(self, traced: Trace) -> None:
        self._trace = traced
        self._graph = traced.graph
        self._by_key: dict[Key, fx.Node] = {key: node for node, key in traced.keys.items()}
        self.layers: dict[str, nn.Module] = {}
        self.dropped: set[str] = set()
        self.buffers: dict[str, torch.Tensor] = {}

    def merge(self, found: ModuleSite, layer: nn.Module) -> None:
        """Put one layer in the place of the core operations of a region."""
        name = self._name(found)
        source = self._source(found)
        core = list(dict.fromkeys(locate(found, self._trace).values()))
        # At the first of them: readers of shapes in between then read the new layer's.
        with self._graph.inserting_before(core[0]):
            new = self._graph.call_module(name, (source,))
        core[-1].replace_all_uses_with(new)
        for node in reversed(core):
            node.replace_all_uses_with(new)
            self._remove(node)
        self.layers[name] = layer

    def erase(self, key: Key, found: ModuleSite | None = None) -> None:
        """Let an operation return its input, or what the region says of it, which has taken it."""
        node = self._by_key.get(key)
        if node is None:
            # Left where it is, what it does would be done twice.
            raise LookupError(missing(key))
        if node not in self._graph.nodes:
            return
        first = next(n for n in node.all_input_nodes if not is_parameter_only(n))
        slot = None if found is None else found.slot_of(key)
        first = first if slot is None else node.all_input_nodes[slot]
        node.replace_all_uses_with(first)
        self._remove(node)

    def add_instead(self, shift: Affine, key: Key, like: torch.Tensor) -> None:
        """Let an addition of constants add others, those of a node that has its place."""
        node, bias = self._by_key[key], shift.leaf.load(None).bias
        if node not in self._graph.nodes or bias is None or shift.axis is None:
            return
        read = next(n for n in node.all_input_nodes if not is_parameter_only(n))
        with self._graph.inserting_before(node):
            if bool((bias == bias[0]).all()):
                added: Any = float(bias[0])
            else:
                name = self._free("shift")
                shaped = bias.view(-1, *(1,) * (-1 - shift.axis))
                self.buffers[name] = shaped.to(like.device, like.dtype)
                added = self._graph.get_attr(name)
            new = self._graph.call_function(operator.add, (read, added))
        node.replace_all_uses_with(new)
        self._remove(node)

    def drop_identities(self, layers: dict[str, nn.Module]) -> None:
        """Erase calls of modules of inlined children that became the identity."""
        for key in list(self._by_key):
            inner = key.is_module and key.owner != self._trace.path
            if inner and isinstance(layers.get(key.target), nn.Identity):
                self.erase(key)

    def _remove(self, node: fx.Node) -> None:
        """Erase a node and what only it read of the constants."""
        inputs = list(node.all_input_nodes)
        if node.users:
            return
        self._graph.erase_node(node)
        if node.op == "call_module":
            target = str(node.target)
            if not any(n.op == "call_module" and n.target == target for n in self._graph.nodes):
                self.dropped.add(target)
        if node.op == "get_attr":
            self.dropped.add(str(node.target))
        for source in inputs:
            # Only parameter reads and what is computed from them: never an operation on the input.
            if not source.users and is_parameter_only(source):
                self._remove(source)

    def _source(self, found: ModuleSite) -> fx.Node:
        """Find, in this trace, the value that the region reads."""
        node, position = found.entry()
        return self._by_key[found.key_of(node)].all_input_nodes[position]

    def _name(self, found: ModuleSite) -> str:
        """Name the new layer after the largest layer it replaces."""
        keys = {ModuleSite.key_of(n) for n in found.core}
        key = ModuleSite.key_of(found.region.anchor)
        if not key.is_module:
            owner = _relative(self._trace.path, key.owner)
            return self._free(f"{owner}.conv" if owner else "conv")
        path = key.target
        while True:
            parent = path.rpartition(".")[0]
            if parent == self._trace.path or not self._consumed(parent, keys):
                return _relative(self._trace.path, path)
            path = parent

    def _consumed(self, path: str, keys: set[Key]) -> bool:
        """Whether everything that runs inside a module is part of the region."""
        below = f"{path}."
        inside = [
            key
            for node, key in self._trace.keys.items()
            if node.op not in {"get_attr", "placeholder", "output"}
            and (
                f"{key.owner}.".startswith(below)
                or (key.is_module and f"{key.target}.".startswith(below))
            )
        ]
        return all(key in keys for key in inside)

    def _free(self, name: str) -> str:
        taken = {str(n.target) for n in self._graph.nodes if n.op == "call_module"}
        taken |= {n for n, _ in self._trace.root.named_modules()} | set(self.layers)
        taken |= {n for n, _ in self._trace.root.named_parameters()} | set(self.buffers)
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name}{number}"
        return candidate


_RUN_AS_THEY_ARE = (nn.Sequential, fx.GraphModule)
"""Modules whose forward does not look at what they hold."""


def _read_of(part: Trace) -> dict[str, torch.Tensor]:
    """The tensors that no module holds, and that its graph still reads."""
    read = {str(n.target) for n in part.graph.nodes if n.op == "get_attr"}
    return {name: tensor for name, tensor in part.literals.items() if name in read}


def _up_to(outer: str, inner: str) -> Iterator[str]:
    """Paths of a module and of those around it, out to ``outer``."""
    path = inner
    while path != outer:
        yield path
        path = path.rpartition(".")[0]
    yield outer


def _relative(base: str, path: str) -> str:
    return path[len(base) + 1 :] if base else path
