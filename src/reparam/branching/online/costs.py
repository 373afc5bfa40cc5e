"""What a training step of a block costs, by counted work, for each way to run it.

The unit is a multiply-add of a large matrix product; forward and backward count together. The rates
below turn passes over memory into that unit. They were measured on an x86-64 CPU. What many small
operations take does not get less with more threads, as everything else does, so it counts once for
each thread. Merging has to save a margin, as no count is time.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace

from reparam.algebra import Geometry, parallel
from reparam.branching.online.moments import is_single_tap, is_toeplitz, reads_one_tap
from reparam.branching.online.shifts import lag_windows
from reparam.branching.online.steps import Kind, Step

_NORM = 140.0
"""A batch norm, for each number that it normalises: eight passes, and slow ones."""
_COMPILED = 75.0
"""The same in compiled passes, its part of a sum included."""
_ADD = 25.0
"""An addition of two tensors, for each number, and of their gradients where both are one input."""
_PASS = 10.0
"""Reading a tensor and writing another, for each number."""
_DEPTHWISE_TAP = 5.0
"""A tap of a depthwise convolution: bound by memory, not by arithmetic."""
_STRIDED = 95.0
"""What a native convolution with a stride takes besides, depthwise or of one tap, for each number
that it reads."""
_GATHER = 55.0
"""Writing one tap of a patch out, or adding it back."""
_SMALL = 1e8
"""The many small operations that single taps and gathered patches need, on each thread."""
_SMALL_DEPTHWISE = 2e8
"""Those of depthwise patches at stride 1, borders included."""
_SMALL_COMPILED = 4e7
"""Those of calling compiled passes."""
_MARGIN = 1.3
"""How many times less merging has to cost than the branches."""
_CLEAR = 1.15
"""How many times less branches have to cost than merging them, where that pays."""
_FORM = 1.3
"""A multiply-add of a product of kernels with a covariance: small matrices are slower."""


@dataclass(frozen=True)
class Costs:
    """The cheapest way to run a block.

    Attributes:
        merged: Norms taken from the moments of the input; None: the block runs as it was.
        work: Multiply-adds of a step, or what takes as long, that way.
        branches: The same for running every branch by itself.
        plain: The same for one convolution and one norm.
        passes: Compiled passes that it takes: how many tensors are normalised, and how many added.

    """

    merged: frozenset[int] | None
    work: float
    branches: float
    plain: float
    passes: frozenset[tuple[int, int]] = frozenset()


@functools.lru_cache(maxsize=4096)
def cheapest(
    steps: tuple[Step, ...], shape: tuple[int, ...], threads: int, *, compiled: bool = False
) -> Costs:
    """Choose for an input of a shape which norms to merge on so many threads.

    With ``compiled``, those that do not merge are computed in compiled passes.
    """
    norms = [i for i, step in enumerate(steps) if step.kind is Kind.NORM]
    last = steps[-1].geometry
    branches = _Count(steps, shape, frozenset(), threads, is_native=True).total()
    plain = _layer(last, shape) + _NORM * last.out_channels * positions(last, shape)
    best = Costs(None, branches, branches, plain)
    if any(positions(steps[i].geometry, shape) < 2 for i in norms):
        return best
    for merged in [*choices(steps), frozenset[int]()]:
        count = _Count(steps, shape, merged, threads, compiled=compiled)
        work = count.total()
        pays = best.work < branches
        margin = (1.0 if pays else _MARGIN) if merged else _CLEAR if pays else 1.0
        if work * margin < best.work:
            best = replace(best, merged=merged, work=work, passes=frozenset(count.passes))
    return best


def choices(steps: tuple[Step, ...]) -> list[frozenset[int]]:
    """The sets of norms worth trying: those of values with few taps, then those with more."""
    norms = [i for i, step in enumerate(steps) if step.kind is Kind.NORM]
    found = []
    for most in sorted({steps[i].geometry.taps for i in norms}):
        chosen = frozenset(i for i in norms if steps[i].geometry.taps <= most)
        found.append(frozenset(i for i in chosen if _upstream(steps, i) <= chosen))
    return found


def positions(geometry: Geometry, shape: tuple[int, ...]) -> int:
    """Output positions of an operator over a batch."""
    return shape[0] * math.prod(geometry.output_size(shape[2:]))


@functools.lru_cache(maxsize=4096)
def common_patch(geometries: tuple[Geometry, ...]) -> Geometry:
    """The patch that holds those of several operators with one set of output positions."""
    first, *others = (replace(g, out_channels=g.in_channels, bias=False) for g in geometries)
    return functools.reduce(parallel, others, first)


def _upstream(steps: tuple[Step, ...], index: int) -> set[int]:
    """The norms that a norm's input depends on."""
    found: set[int] = set()
    waiting = list(steps[index].inputs)
    while waiting:
        step = waiting.pop()
        if steps[step].kind is Kind.NORM:
            found.add(step)
        waiting.extend(steps[step].inputs)
    return found


def _layer(geometry: Geometry, shape: tuple[int, ...], *, is_native: bool = True) -> float:
    if geometry.is_diagonal:
        return 3 * _PASS * geometry.out_channels * positions(geometry, shape)
    outside = 2 * _PASS * geometry.out_channels * positions(geometry, shape)
    count: float = 3 * geometry.weights * positions(geometry, shape)
    is_depthwise = geometry.groups == geometry.in_channels > 1
    if is_depthwise:
        count *= _DEPTHWISE_TAP
    is_slow = is_native and (is_depthwise or reads_one_tap(geometry))
    if is_slow and any(step > 1 for step in geometry.stride):
        count += _STRIDED * math.prod(shape)
    return count + outside


def _moments(patch: Geometry, shape: tuple[int, ...], threads: int) -> float:
    channels = patch.in_channels
    size = math.prod(shape)
    width = channels // patch.groups * patch.taps
    if is_single_tap(patch):
        return size * (2 * width + 5 * _PASS) + _SMALL * threads
    if is_toeplitz(patch):
        return size * _shifted(patch, shape) + _SMALL_DEPTHWISE * threads
    gathered = positions(patch, shape) * channels * patch.taps
    return gathered * (2 * width + 3 * _GATHER) + _SMALL * threads


def _shifted(patch: Geometry, shape: tuple[int, ...]) -> float:
    """For each number of the input: correlations of its phases, the way back, and the frame."""
    high, wide = ([1, *map(len, patch.offsets)])[-2:]
    down, right = ([1, *patch.stride])[-2:]
    phases = min(high, down) * min(wide, right)
    shifts = [1] + [
        taps[-1] // step - taps[0] // step + 1
        for taps, step in zip(patch.offsets, patch.stride, strict=True)
    ]
    calls = lag_windows(shifts[-1], both=phases > 1) * phases * (phases + 1) / 2
    lags = calls * (2 * shifts[-2] - 1) * 3 / (down * right)
    back = (2 * high - 1) * (2 * wide - 1) * phases / (down * right)
    border = 2 * (high + wide) / min(shape[2:])
    passes = 12 + 15 * border if phases == 1 else 10 + 6 * border
    return _DEPTHWISE_TAP * (lags + back / 2) + _PASS * passes


@dataclass
class _Sim:
    affine: Geometry | None
    tensors: int = 0
    is_input: bool = False
    normed: int = 0
    """How many of the tensors compiled passes normalise and add up."""


@dataclass
class _Count:
    """Follows the steps as they are run, and adds up."""

    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    merged: frozenset[int]
    threads: int
    compiled: bool = False
    is_native: bool = False
    work: float = 0.0
    patches: dict[tuple[object, ...], list[Geometry]] = field(default_factory=dict)
    passes: set[tuple[int, int]] = field(default_factory=set)

    def total(self) -> float:
        values: list[_Sim] = []
        for index, step in enumerate(self.steps):
            values.append(self._value(index, step, [values[i] for i in step.inputs]))
        self._written(values[-1])
        for geometries in self.patches.values():
            patch = common_patch(tuple(geometries))
            width = patch.in_channels // patch.groups * patch.taps
            self.work += _moments(patch, self.shape, self.threads)
            self.work += sum(2 * _FORM * g.out_channels * width**2 for g in geometries)
        return self.work

    def _value(self, index: int, step: Step, inputs: list[_Sim]) -> _Sim:
        if step.kind is Kind.INPUT:
            return _Sim(step.geometry, is_input=True)
        if step.kind is Kind.NORM:
            return self._norm(index, step, inputs[0])
        if step.kind is Kind.SUM:
            affine = any(v.affine is not None for v in inputs)
            return _Sim(
                step.geometry if affine and all(v.tensors == 0 for v in inputs) else
                _sum_of(inputs) if affine else None,
                sum(v.tensors for v in inputs), normed=sum(v.normed for v in inputs),
            )  # fmt: skip
        if step.kind is Kind.SCALE:
            self.work += inputs[0].tensors * 2 * _ADD * self._size(step.geometry)
            return replace(inputs[0], is_input=False, normed=0)
        assert step.layer is not None  # noqa: S101 (LAYER and FIXED have one)
        if inputs[0].tensors or (not inputs[0].is_input and not self.merged):
            self._written(inputs[0])
            self.work += self._layer_on(step)
            return _Sim(None, 1)
        if not inputs[0].is_input:
            self.work += 4 * step.layer.weights * step.geometry.in_channels
        return _Sim(step.geometry)

    def _layer_on(self, step: Step) -> float:
        count = positions(step.geometry, self.shape)
        layer = step.layer
        assert layer is not None  # noqa: S101 (as above)
        if not layer.groups == layer.in_channels > 1:
            return count * layer.weights * 3
        strided = _STRIDED * any(s > 1 for s in layer.stride) * math.prod(layer.stride)
        return count * (layer.weights * 3 * _DEPTHWISE_TAP + strided * layer.in_channels)

    def _norm(self, index: int, step: Step, inner: _Sim) -> _Sim:
        if index in self.merged and inner.affine is not None and not inner.tensors:
            self.patches.setdefault(_positions_of(inner.affine), []).append(inner.affine)
            return _Sim(inner.affine)
        self._written(inner)
        self.work += (_COMPILED if self.compiled else _NORM) * self._size(step.geometry)
        return _Sim(None, 1, normed=int(self.compiled))

    def _written(self, value: _Sim) -> None:
        parts = value.tensors
        if value.affine is not None:
            parts += 1
            if not value.is_input:
                is_native = self._is_native(value.affine)
                self.work += _layer(value.affine, self.shape, is_native=is_native)
        if value.normed:
            self.passes.add((value.normed, parts - value.normed))
            self.work += _SMALL_COMPILED * self.threads
        if parts > 1 or (value.is_input and parts):
            size = self._size(self.steps[-1].geometry)
            added = parts - 1 + (value.is_input and 1) * 0.5
            self.work += (_PASS / 2 if value.normed else _ADD) * size * added

    def _is_native(self, geometry: Geometry) -> bool:
        """Whether a convolution is PyTorch's, and not on the way of the moments."""
        if reads_one_tap(geometry):
            return self.is_native
        patches = self.patches.get(_positions_of(geometry))
        return not patches or common_patch(tuple(patches)).offsets != geometry.offsets

    def _size(self, geometry: Geometry) -> int:
        return geometry.out_channels * positions(geometry, self.shape)


def _positions_of(geometry: Geometry) -> tuple[object, ...]:
    """What convolutions have in common whose moments are of one patch."""
    return geometry.stride, geometry.extent, geometry.out_channels


def _sum_of(values: list[_Sim]) -> Geometry:
    found = [v.affine for v in values if v.affine is not None]
    return functools.reduce(parallel, found)
