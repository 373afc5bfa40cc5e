"""A part of a block that runs as one convolution: its steps, and the ways to run them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

from reparam.algebra import Geometry, layer_arguments, parallel
from reparam.branching.online.compiled import Normed, is_normed_here, normed_sum
from reparam.branching.online.costs import cheapest, common_patch, positions
from reparam.branching.online.kernels import Affine, composed, fitted
from reparam.branching.online.moments import Way, plain_types, reads_one_tap, with_outputs
from reparam.branching.online.norms import (
    Branch,
    Normalisation,
    frozen_scale,
    normalised,
    sync_group,
    uses_batch,
)
from reparam.branching.online.steps import Kind, Step
from reparam.branching.online.ways import Handed, convolved, way_of

Mode = Literal["batch", "running", "branches"]


@dataclass
class Region:
    """Steps from one input to one output, callable in their place.

    Attributes:
        steps: The steps; the first is the input, the last the output.
        mode: ``"batch"`` merges branches by the statistics of the batch where that is cheaper,
            ``"running"`` merges everything by the running ones, ``"branches"`` merges nothing.
        merged: Norms to take from the moments of the input, whatever that costs; None for the
            cheapest choice for the shape of the input.
        compiled: Norms that do not merge are computed and added up in compiled passes.

    """

    steps: tuple[Step, ...]
    mode: Mode = "batch"
    merged: frozenset[int] | None = None
    compiled: bool = False

    @_disable_dynamo  # the public one imports the compiler at once
    def __call__(self, x: Any, *operands: Any) -> Any:
        """Run on an input with the present tensors and modules of the block."""
        mode, merged, compiled = self.mode, self.merged, self.compiled and _pays_compiled(x)
        if self._runs_as_it_was(x):
            mode = "branches"
        elif mode == "batch" and merged is None:
            threads = torch.get_num_threads()
            merged = cheapest(self.steps, tuple(x.shape), threads, compiled=compiled).merged
            mode = "branches" if merged is None else mode
        return _Run(
            self.steps, operands, x, mode, merged or frozenset(), compiled=compiled
        ).output()

    def _runs_as_it_was(self, x: Any) -> bool:
        if self.mode == "branches" or isinstance(x, fx.Proxy) or x.is_meta:
            return True
        if (
            torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            or torch._C._are_functorch_transforms_active()  # noqa: SLF001
            or forward_ad._current_level >= 0  # noqa: SLF001
        ):
            return True  # these go through PyTorch's own functions alone
        return bool(x.dim() != self.steps[-1].geometry.dims + 2 or x.numel() == 0)


@dataclass(frozen=True)
class _Value:
    """The value of a step: a convolution of the input, and what is added to it."""

    affine: Affine | None
    tensors: tuple[Any, ...] = ()
    """Tensors, and tensors that are still to be normalised."""


@dataclass
class _Run:
    """One call. Norms of one level are normalised together, so that they share moments."""

    steps: tuple[Step, ...]
    operands: Sequence[Any]
    x: Any
    mode: Mode
    merged: frozenset[int]
    compiled: bool = False
    last: tuple[Geometry, Way, Handed] | None = None
    """The patches whose moments were taken last."""

    def output(self) -> Any:
        values: dict[int, _Value] = {}
        readers = Counter(i for step in self.steps for i in step.inputs)
        ordered = sorted(range(len(self.steps)), key=lambda i: self.steps[i].level)
        for _, group in itertools.groupby(ordered, key=lambda i: self.steps[i].level):
            level = list(group)
            norms = [i for i in level if self.steps[i].kind is Kind.NORM]
            inputs = {i: values[self.steps[i].inputs[0]] for i in norms}
            together = {i: inputs[i].affine for i in norms if self._merges(i, inputs[i])}
            values.update(self._normalised(together))
            for i in level:
                if i not in values:
                    value = self._value(self.steps[i], [values[j] for j in self.steps[i].inputs])
                    # What is read twice is normalised once.
                    values[i] = _settled(value) if readers[i] > 1 else value
        return self._written(values[len(self.steps) - 1])

    def _operand(self, step: Step, place: int = 0) -> Any:
        index = step.operands[place]
        return None if index is None else self.operands[index]

    def _tensor(self, step: Step, place: int = 0) -> Any:
        """A weight, in the type that small calculations are made in."""
        value = self._operand(step, place)
        if value is None or self.mode == "branches":
            return value
        return value.to(torch.promote_types(self.x.dtype, torch.float32))

    # ---------------------------------------------------------------- the steps

    def _value(self, step: Step, inputs: list[_Value]) -> _Value:
        match step.kind:
            case Kind.INPUT:
                return _Value(Affine(step.geometry, ((None, None, step.geometry),)))
            case Kind.SUM:
                return self._sum(step, inputs)
            case Kind.SCALE:
                return self._scaled(step, inputs[0])
            case Kind.NORM:
                return self._normalised_alone(step, inputs[0])
            case Kind.LAYER:
                return self._layer(step, inputs[0])
            case Kind.FIXED:
                return self._layer(step, inputs[0])

    def _layer(self, step: Step, inner: _Value) -> _Value:
        layer, affine = step.layer, inner.affine
        assert layer is not None  # noqa: S101 (LAYER and FIXED have one)
        if step.kind is Kind.FIXED:
            weight, bias = self._fixed(step, layer), None
        else:
            weight, bias = self._tensor(step), self._tensor(step, 1)
        if affine is None or inner.tensors or (self.mode == "branches" and not affine.is_input):
            arguments, _ = layer_arguments(layer)
            return _Value(None, (arguments(self._written(inner), weight, bias),))
        if affine.is_input:
            return _Value(Affine(layer, ((None, weight, layer),), bias))
        with plain_types(self.x):
            return _Value(composed(weight, bias, layer, affine))

    def _fixed(self, step: Step, layer: Geometry) -> Tensor:
        like = self.operands[0] if isinstance(self.x, fx.Proxy) else self.x
        dtype = like.dtype if self.mode == "branches" else self._like().dtype
        return torch.full(layer.kernel_shape, step.value, dtype=dtype, device=like.device)

    def _sum(self, step: Step, inputs: list[_Value]) -> _Value:
        pairs = list(zip(inputs, step.coefficients, strict=True))
        if self.mode == "branches":
            parts = [_times(self._written(value), factor) for value, factor in pairs]
            return _Value(None, (reduce(torch.add, parts),))
        affine = [
            value.affine.scaled(c) if c != 1 else value.affine for value, c in pairs if value.affine
        ]
        tensors = tuple(_times(t, factor) for value, factor in pairs for t in value.tensors)
        return _Value(_added(affine) if affine else None, tensors)

    def _scaled(self, step: Step, inner: _Value) -> _Value:
        channels, dims = step.geometry.out_channels, step.geometry.dims
        factor = self._tensor(step).reshape(-1).expand(channels)
        if self.mode == "branches" or inner.affine is None:
            value = self._written(inner)
            return _Value(None, (value * factor.to(value.dtype).view(-1, *(1,) * dims),))
        found = _settled(inner).tensors
        tensors = tuple(t * factor.to(t.dtype).view(-1, *(1,) * dims) for t in found)
        return _Value(inner.affine.scaled(factor), tensors)

    # ---------------------------------------------------------------- norms

    def _merges(self, index: int, inner: _Value) -> bool:
        norm = self._operand(self.steps[index])
        batch = self.mode == "batch" and uses_batch(norm) and index in self.merged
        return batch and inner.affine is not None and not inner.tensors

    def _normalised_alone(self, step: Step, inner: _Value) -> _Value:
        norm, affine = self._operand(step), inner.affine
        by_batch = self.mode == "branches" or uses_batch(norm)
        if by_batch and (self.mode != "running" or norm.running_var is None):
            written = self._written(inner)
            if self.compiled and self.mode == "batch" and is_normed_here(norm, written):
                return _Value(None, (Normed(norm, written),))
            return _Value(None, (norm(written),))
        scale, shift = frozen_scale(norm, self._like())
        if affine is not None and not inner.tensors:
            return _Value(affine.scaled(scale).shifted(shift))
        value = self._written(inner)
        by_channel = (-1, *(1,) * step.geometry.dims)
        return _Value(
            None,
            (
                value * scale.to(value.dtype).view(by_channel)
                + shift.view(by_channel).to(value.dtype),
            ),
        )

    def _like(self) -> Tensor:
        x: Tensor = self.x
        return x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))

    def _normalised(self, together: dict[int, Affine | None]) -> dict[int, _Value]:
        """Normalise values by the moments of the input, those at the same positions at once."""
        groups: dict[tuple[Any, ...], list[tuple[int, Affine]]] = {}
        for index, affine in together.items():
            if affine is not None:
                geometry, group = affine.geometry, sync_group(self._operand(self.steps[index]))
                key = (geometry.stride, geometry.extent, geometry.out_channels, group)
                groups.setdefault(key, []).append((index, affine))
        found = {}
        for (*_, processes), members in groups.items():
            found.update(self._group(members, processes))
        return found

    def _group(self, members: list[tuple[int, Affine]], processes: Any) -> dict[int, _Value]:
        patch = common_patch(tuple(affine.geometry for _, affine in members))
        members = sorted(members, key=lambda member: member[1].is_input)
        with plain_types(self.x):
            branches = tuple(self._branch(index, affine, patch) for index, affine in members)
        count = positions(patch, tuple(self.x.shape))
        what, way = Normalisation(patch, branches, count, processes), way_of(self.x.detach(), patch)
        self.last = patch, way, what.handed
        self.x, pairs = normalised(self.x, what, way)
        with plain_types(self.x):
            return {
                index: _Value(affine.scaled(scale).shifted(shift))
                for (index, affine), (scale, shift) in zip(members, pairs, strict=True)
            }

    def _branch(self, index: int, affine: Affine, patch: Geometry) -> Branch:
        norm = self._operand(self.steps[index])
        if affine.is_input:
            return Branch(norm, None, ())
        grid = with_outputs(patch, affine.geometry.out_channels)
        scale, kernel, geometry = affine.terms[0]
        if len(affine.terms) > 1 or scale is not None or kernel is None:
            kernel, geometry = affine.kernel(grid, self._like()), grid
        places, kernel = fitted(kernel, geometry, grid)
        return Branch(norm, kernel, places, affine.bias)

    # ---------------------------------------------------------------- tensors

    def _written(self, value: _Value) -> Any:
        """Compute a value: at most one convolution, and sums."""
        parts = list(value.tensors)
        if value.affine is not None:
            parts.insert(0, self.x if value.affine.is_input else self._convolved(value.affine))
        return _total(parts)

    def _convolved(self, affine: Affine) -> Any:
        arguments, full = layer_arguments(affine.geometry)
        if self.mode == "branches":
            ((_, weight, _),) = affine.terms
            assert weight is not None  # noqa: S101 (the input itself is not convolved)
            return arguments(self.x, weight, affine.bias)
        with plain_types(self.x):
            kernel, bias = affine.kernel(full, self.x.new_empty(0)), affine.bias
        kind = self.x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.x.dtype
        kernel = kernel.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        if dtype == self.x.dtype and kind == "cpu":
            if self.last is not None:
                patch, way, handed = self.last
                if way.reads(full):
                    return convolved(self.x, kernel, bias, patch, way, handed)
            # Native convolutions of one tap with a stride are several times slower.
            if reads_one_tap(full):
                return convolved(self.x, kernel, bias, full, way_of(self.x.detach(), full))
        return arguments(self.x, kernel, bias)


def _pays_compiled(x: Any) -> bool:
    """Whether compiled passes are faster than PyTorch's own: on CPUs not in half precision."""
    if isinstance(x, fx.Proxy) or x.device.type != "cpu":
        return True
    return x.dtype not in {torch.bfloat16, torch.float16} and not torch.is_autocast_enabled("cpu")


def _times(value: Any, factor: float) -> Any:
    return value if factor == 1 else _total([value]) * factor


def _total(parts: Sequence[Any]) -> Any:
    """Add tensors up, those first normalised that are still to be."""
    normed = [part for part in parts if isinstance(part, Normed)]
    added = [part for part in parts if not isinstance(part, Normed)]
    return normed_sum(normed, added) if normed else reduce(torch.add, added)


def _settled(value: _Value) -> _Value:
    return _Value(value.affine, tuple(_total([part]) for part in value.tensors))


def _added(values: list[Affine]) -> Affine:
    """Add values that are convolutions of one input."""
    biases = [value.bias for value in values if value.bias is not None]
    return Affine(
        reduce(parallel, [value.geometry for value in values]),
        tuple(term for value in values for term in value.terms),
        reduce(torch.add, biases) if biases else None,
    )
