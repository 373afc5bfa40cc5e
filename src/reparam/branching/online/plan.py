"""Plan and make training nets whose blocks run as one convolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from reparam._support.arguments import FLAG, MODULE, NONE, SHAPES, takes
from reparam._support.modules import evaluating
from reparam.branching.online.compiled import Kind as Passes
from reparam.branching.online.compiled import compile_seconds, compiled
from reparam.branching.online.costs import Costs, cheapest
from reparam.branching.online.finding import BATCH, shapes_in, traces_of
from reparam.branching.online.placing import (
    Forward,
    blocks_of,
    has_hooks,
    place,
    regions_of,
    rewritten,
    undo,
)
from reparam.branching.online.reading import Found, regions_in
from reparam.branching.online.region import Mode
from reparam.branching.online.steps import Kind
from reparam.branching.online.table import OnlineBlock, OnlineRefusal, render
from reparam.errors import InputError
from reparam.frontends.torch.skeleton import unwrap
from reparam.frontends.torch.trace import Trace, TraceFailure

Statistics = Literal["batch", "running"]


@dataclass(frozen=True, eq=False)
class OnlinePlan:
    """Which blocks of a net run merged in training, and which stay; ``print(plan)`` is a table.

    Attributes:
        blocks: What runs merged.
        refusals: What stays, and why.
        passes: Kinds of passes that are compiled: how many tensors are normalised and added up in
            one, and how many are added as they are.

    """

    blocks: tuple[OnlineBlock, ...]
    refusals: tuple[OnlineRefusal, ...]
    _model: nn.Module = field(repr=False)
    _forwards: tuple[Forward, ...] = field(repr=False)
    _mode: Mode = field(repr=False)
    passes: frozenset[tuple[int, int]] = frozenset()
    _compiled: bool = field(repr=False, default=False)

    @property
    def is_faster(self) -> bool:
        """Whether anything runs merged, which it does only where it costs less."""
        return bool(self.blocks)

    def apply(self) -> nn.Module:
        """Make the net; the one that was planned on is only read.

        Raises:
            UnsupportedModelError: It cannot be copied, or its passes cannot be compiled here.

        """
        for kind in self._kinds():
            compiled(kind)
        return place(self._model, self._forwards, self._mode, compiled=self._compiled)

    @property
    def compile_seconds(self) -> float:
        """How long compiling its passes took this process so far; they are compiled once."""
        return compile_seconds(self._kinds())

    def _kinds(self) -> list[Passes]:
        like = next(self._model.parameters(), torch.empty(0))
        types = [((like.dtype,) * normed, (like.dtype,) * added) for normed, added in self.passes]
        return [Passes(normed, added, like.device.type) for normed, added in sorted(types, key=len)]

    def __str__(self) -> str:
        """A table of at most 100 columns."""
        table = render(self.blocks, self.refusals)
        if not self.passes:
            return table
        took = f"{self.compile_seconds:.0f} s so far"
        return f"{table}\n\nkinds of passes to compile, once each: {len(self.passes)} ({took})"


@takes(model=MODULE, example_inputs=SHAPES | NONE, compile=FLAG)
def online_plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    statistics: Statistics = "batch",
    compile: bool = False,  # noqa: A002 (as in torch)
) -> OnlinePlan:
    """Say which blocks of a training net can run as one convolution, and which stay.

    Args:
        model: Any ``nn.Module``; it is only read.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments: the shapes
            that work is counted for. Without it, 32 images of 224 pixels, if the model takes them.
        statistics: As for :func:`online`.
        compile: As for :func:`online`; nothing is compiled before :meth:`OnlinePlan.apply`.

    Raises:
        UnsupportedModelError: The model is none that can be read.
        InputError: ``statistics`` is unknown.

    >>> from reparam import models
    >>> plan = online_plan(models.mobileone_s0(num_classes=10))
    >>> plan.is_faster, plan.blocks[-1].way
    (True, 'one 1x1 convolution')

    """
    if statistics not in get_args(Statistics):
        raise InputError(f"statistics={statistics!r} is unknown; give 'batch' or 'running'")
    inner, tune = unwrap(model), statistics == "running"
    # Parametrizations may move on as they are read, as spectral norms do in training.
    lists = [m for m in inner.modules() if isinstance(m, ParametrizationList)]
    with evaluating(m for each in lists for m in each.modules()):
        return _plan(inner, example_inputs, statistics, compiles=compile and not tune)


def _plan(
    inner: nn.Module, example_inputs: Any, statistics: Statistics, *, compiles: bool
) -> OnlinePlan:
    tune = statistics == "running"
    found: list[tuple[Trace, Found, tuple[int, ...] | None]] = []
    refusals: list[OnlineRefusal] = []
    watched = {path for path, module in inner.named_modules() if has_hooks(module)}
    for traced in traces_of(inner, ""):
        shapes = shapes_in(traced, example_inputs if traced.path == "" else None)
        regions = regions_in(traced, watched, single=tune)
        found += [(traced, region, shapes.get(region.source)) for region in regions]
    paying: dict[Found, tuple[Trace, tuple[int, ...], Costs]] = {}
    for traced, region, known in found:
        shape = _nominal(region, known)
        costs = cheapest(region.steps, shape, torch.get_num_threads(), compiled=compiles)
        if tune:
            # One convolution without a norm is what a block costs then, and the least there is.
            costs = replace(costs, merged=frozenset(range(len(region.steps))), work=costs.plain)
        if costs.merged is not None:
            paying[region] = traced, shape, costs
        else:
            refusals.append(_refusal(traced, region))
    forwards: list[Forward] = []
    blocks: list[OnlineBlock] = []
    passes: set[tuple[int, int]] = set()
    for path, block in blocks_of(
        (traced, region) for region, (traced, *_) in paying.items()
    ).items():
        try:
            forwards.append(rewritten(block))
        except (TraceFailure, LookupError, RuntimeError) as error:
            why = f"its forward cannot be written anew: {error}"
            refusals.append(OnlineRefusal(path or "the model", "branches", why))
            continue
        for region in block.regions.values():
            _, shape, costs = paying[region]
            blocks.append(_record(path, region, shape, costs))
            passes |= costs.passes
    return OnlinePlan(
        tuple(blocks), tuple(dict.fromkeys(refusals)), inner, tuple(forwards), statistics,
        frozenset(passes), compiles,
    )  # fmt: skip


@takes(model=MODULE, example_inputs=SHAPES | NONE, enabled=FLAG, compile=FLAG)
def online(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    enabled: bool = True,
    statistics: Statistics = "batch",
    compile: bool = False,  # noqa: A002 (as in torch)
) -> nn.Module:
    r"""Make the same training net with blocks that run as one convolution.

    A batch norm needs the mean and the variance of its branch's output. Of a branch that is linear
    in the patch :math:`p`, with taps :math:`w`, those are :math:`w^\top\mu` and
    :math:`w^\top\Sigma\,w`, where :math:`\mu` and :math:`\Sigma` are the batch's mean and
    covariance of the patch, the same for all branches. A block computes them once, adds its
    branches up to one kernel, and convolves once. Nothing is approximated: outputs, gradients and
    running statistics are those of the branches, up to rounding.

    Classes, parameters, buffers and state-dict keys are the model's, so checkpoints and optimizer
    states go from one form to the other at any step. Which blocks are rewritten says
    :func:`online_plan`; how one runs is decided again for every shape of input, by counted work.
    That is not time: a small block may take as long as its branches, or somewhat longer.

    Args:
        model: Any ``nn.Module``; it is only read.
        example_inputs: As for :func:`online_plan`.
        enabled: False undoes it: the net with its branches run one by one again.
        statistics: ``"running"`` normalises by the running statistics, which stay as they are, to
            fine-tune at the price of a plain net: every block is then one convolution, of any kind
            and with a single branch, too.
        compile: Compute the norms that do not merge, and the sums of branches, in compiled passes
            over memory: one kind for each number of tensors in a sum, of any size. Compiling takes
            some seconds a kind, once a process, and needs a C++ compiler on CPUs, Triton on GPUs.

    Raises:
        UnsupportedModelError: The model is none that can be read or copied, or nothing can be
            compiled here.
        InputError: ``statistics`` is unknown.

    >>> import torch
    >>> from reparam import models
    >>> wide = models.mobileone_s0(num_classes=10)
    >>> net = online(wide)
    >>> type(net) is type(wide), net.state_dict().keys() == wide.state_dict().keys()
    (True, True)

    """
    plain = _plain_copy(model)
    if not enabled:
        return plain
    return online_plan(plain, example_inputs, statistics=statistics, compile=compile).apply()


@takes(net=MODULE)
@contextmanager
def online_mode(net: nn.Module, mode: Mode) -> Iterator[nn.Module]:
    """Run the rewritten blocks of a net another way for a while.

    Args:
        net: What :func:`online` returned.
        mode: ``"branches"`` runs them as they were, ``"batch"`` by the statistics of the batch,
            ``"running"`` by the running ones.

    Raises:
        InputError: ``mode`` is unknown.

    """
    if mode not in get_args(Mode):
        raise InputError(f"mode {mode!r} is unknown; give one of {', '.join(get_args(Mode))}")
    before = [(region, region.mode) for region in regions_of(net)]
    for region, _ in before:
        region.mode = mode
    try:
        yield net
    finally:
        for region, old in before:
            region.mode = old


def _plain_copy(model: nn.Module) -> nn.Module:
    copied = place(unwrap(model), (), "batch")
    undo(copied)
    return copied


def _nominal(region: Found, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape of a region's input, or one to count with where it is not known."""
    dims = region.steps[0].geometry.dims
    if shape is not None and len(shape) == dims + 2:
        return shape
    return (BATCH, region.steps[0].geometry.in_channels, *(28,) * dims)


def _refusal(traced: Trace, region: Found) -> OnlineRefusal:
    where = traced.stacks[region.nodes[-1]][-1].path or "the model"
    why = "running its branches costs less than merging them"
    return OnlineRefusal(where, _what(region), why)


def _record(path: str, region: Found, shape: tuple[int, ...], costs: Costs) -> OnlineBlock:
    return OnlineBlock(
        path or "the model", _what(region), _way(region, costs), shape,
        costs.work, costs.branches, costs.plain,
    )  # fmt: skip


def _what(region: Found) -> str:
    """Name the normalised branches of a region, equal ones counted."""
    names: Counter[str] = Counter()
    for step in region.steps:
        if step.kind is Kind.NORM:
            inner = region.steps[step.inputs[0]]
            names[_name(inner.kind, inner.geometry)] += 1
    return " + ".join(name if n == 1 else f"{n} {name}" for name, n in names.items())


def _name(kind: Kind, geometry: Any) -> str:
    if kind is Kind.INPUT:
        return "identity"
    if kind is Kind.SUM:
        return "sum"
    size = "x".join(str(len(taps)) for taps in geometry.offsets)
    return size or "linear"


def _way(region: Found, costs: Costs) -> str:
    norms = [i for i, step in enumerate(region.steps) if step.kind is Kind.NORM]
    apart = [i for i in norms if i not in (costs.merged or ())]
    size = _name(Kind.LAYER, region.steps[-1].geometry)
    if not costs.merged:
        return f"branches, {'in compiled passes' if costs.passes else '1x1 as matrix products'}"
    if not apart:
        return f"one {size} convolution" if size != "linear" else "one linear layer"
    return f"{len(norms) - len(apart)} of {len(norms)} norms merged around {len(apart)}"
