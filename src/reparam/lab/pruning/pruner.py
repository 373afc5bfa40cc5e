"""The public function: from a fused net to a smaller one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from reparam._support.arguments import (
    FLAG,
    FUNCTION,
    MODULE,
    NONE,
    TEXT,
    number,
    running_on,
    several,
    takes,
    whole,
)
from reparam._support.optional import require
from reparam._support.untouched import leaves_untouched
from reparam.deploy.engines import Settings, get_engine
from reparam.deploy.engines._inputs import as_tuple, check_eval
from reparam.errors import InputError, VerificationError
from reparam.fusing import plan
from reparam.lab.pruning import importance as criteria
from reparam.lab.pruning.graph import check_keep, find_groups
from reparam.lab.pruning.proof import compare, sound_groups
from reparam.lab.pruning.reconstruction import reconstruct as solve
from reparam.lab.pruning.result import ChannelGroup, Kept, PruneResult, layer_widths
from reparam.lab.pruning.search import Clock, PruningSchedule, Search, pruning_schedule
from reparam.lab.pruning.targets import LatencyTarget, target_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from reparam.lab.pruning.graph import Group
    from reparam.lab.pruning.importance import Batch, Data, Loss
    from reparam.lab.pruning.search import Progress

_ENGINE = "onnxruntime"
_MOST_IMAGES = 1024
"""Images on which layers are solved, at most (and the rest of their batch)."""


@takes(
    model=MODULE,
    macs=number() | NONE,
    latency=number() | TEXT | NONE,
    engine=TEXT | NONE,
    precision=TEXT,
    threads=whole(1) | NONE,
    rounds=whole(1),
    importance=TEXT,
    loss=FUNCTION | NONE,
    trained=MODULE | NONE,
    reconstruct=FLAG,
    multiple=whole(1),
    keep=several(TEXT),
    progress=FUNCTION | NONE,
)
@leaves_untouched
def prune(  # noqa: PLR0913 - each is one decision of the user
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    macs: float | None = None,
    latency: float | str | None = None,
    engine: str | None = None,
    precision: str = "fp32",
    threads: int | None = None,
    rounds: int = 9,
    importance: str = "magnitude",
    data: Data | None = None,
    loss: Loss | None = None,
    trained: nn.Module | None = None,
    reconstruct: bool = True,
    multiple: int = 8,
    keep: Sequence[str] = (),
    progress: Progress | None = None,
) -> PruneResult:
    """Remove whole channels from a fused net, down to a number of multiply-adds or a latency.

    Every convolution of a single path may have any width, so that each loses what it needs least;
    layers whose outputs are added have to lose the same channels, and the result says which. The
    new net is compared with the given one whose removed channels are masked: it computes the same.

    Args:
        model: The fused net, in eval mode; it is only read.
        example_inputs: A tensor or tuple of tensors, dimension 0 the batch: what the channels are
            followed on, what is counted, and what is timed.
        macs: Share of the multiply-adds to keep, above 0 and below 1. Either this or `latency`.
        latency: Share of the latency to keep, or a time with its unit (``"2.5ms"``). It is measured
            in the engine: bisection over how many channels go, each net in interleaved rounds with
            the given one, and the last one once more.
        engine: Where latency is measured, ``"onnxruntime"`` by default. With `macs` the latency is
            measured if an engine is named.
        precision: Of the engine, ``"fp32"`` or ``"bf16"``.
        threads: CPU threads of a call; None is the engine's own default.
        rounds: Interleaved rounds of each measurement of the search.
        importance: ``"magnitude"``: of the equivalent kernels that write and read a channel;
            ``"bn_scale"``: of the batch norms of the training form; ``"first_order"``: the change
            of the loss on data, to first order. See :mod:`reparam.lab.pruning.importance`.
        data: A pair of inputs and targets, or several pairs. Needed for ``"first_order"``, and used
            with every importance to make up for what went (see `reconstruct`).
        loss: For ``"first_order"``: mean loss of outputs and targets; cross-entropy by default.
        trained: For ``"bn_scale"``: the net that `model` was fused from.
        reconstruct: With data, solve the layers that lost inputs anew, so that they give what they
            gave before as far as they can (:mod:`reparam.lab.pruning.reconstruction`). Labels have
            no part in that.
        multiple: Widths become multiples of this, as the kernels of engines like them.
        keep: Paths of layers whose outputs stay as they are.
        progress: Called with what is done, what there is in all, and what comes next.

    Returns:
        The new net, and what became of every layer. Train it on with
        ``reparam.branch(result.model, "repvgg")``, and fuse it again.

    Raises:
        InputError: An argument cannot be used, the net is not fused, it does not take the inputs,
            nothing can be pruned, or the target cannot be met (the message has the smallest that
            can).
        TrainingModeError: The net is in training mode.
        UnsupportedModelError: The net cannot be copied or followed.
        VerificationError: The new net computes something else; nothing is returned. (This would be
            a defect of this package.)
        MissingExtraError: Torch-Pruning or the engine is not installed.

    Example:
        >>> import torch, reparam
        >>> from torch import nn
        >>> net = nn.Sequential(
        ...     nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 1)
        ... ).eval()
        >>> result = reparam.prune(net, torch.zeros(1, 3, 12, 12), macs=0.5)
        >>> result.widths["2"], result.multiply_adds[1] <= 0.5 * result.multiply_adds[0]
        ((24, 16), True)
    """
    inputs = as_tuple(example_inputs)
    target = target_of(macs, latency)
    by_clock = isinstance(target, LatencyTarget)
    clock = _clock(engine, precision, threads, rounds, needed=by_clock)
    _check_criterion(importance, data, trained)
    _check_model(model, inputs)
    check_keep(model, keep)
    require("torch_pruning", extra="prune", purpose="Pruning")

    groups, kept = find_groups(model, inputs, keep)
    batches = list(criteria.batches(data)) if data is not None else []
    scores = _scores(importance, model, groups, inputs, batches, loss, trained)
    schedule = pruning_schedule(groups, scores, multiple=multiple)
    schedule, unfit = _only_sound(model, inputs, groups, schedule, multiple)
    kept += unfit
    if not schedule.steps:
        raise InputError(_nothing_to_remove(model, kept, multiple))
    search = Search(model, inputs, schedule, progress)
    found = search.reach(target, clock if by_clock else None)
    removed = schedule.removed(found.steps)
    pruned, solved = search.net(found.steps), tuple[str, ...]()
    verdict = compare(model, pruned, groups, removed, inputs)
    if not verdict.ok:
        raise VerificationError(f"the pruned net is not what it should be: {verdict}")
    if reconstruct and batches:
        pruned, solved = solve(model, pruned, groups, removed, _some(batches))
    timed = found.latency
    if not by_clock and clock is not None:
        timed = clock.compare(model, pruned, inputs, 2)
    layers = layer_widths(model, pruned)
    now = {layer.name: layer.after[1] for layer in layers}
    writers = [(group, tuple(m.name for m in group.having("out"))) for group in groups]
    return PruneResult(
        model=pruned.eval(),
        importance=importance,
        target=target,
        layers=layers,
        groups=tuple(ChannelGroup(n, g.width, now[g.root]) for g, n in writers if len(n) > 1),
        kept=tuple(kept),
        multiply_adds=(search.full, found.multiply_adds),
        parameters=(_parameters(model), _parameters(pruned)),
        latency=timed,
        solved=solved,
        trials=tuple(search.trials),
    )


def _only_sound(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    groups: Sequence[Group],
    schedule: PruningSchedule,
    multiple: int,
) -> tuple[PruningSchedule, list[Kept]]:
    """Leave out the steps of groups that cannot shrink, and say why they stay."""
    lowest = schedule.removed(len(schedule))
    wide = [group for group in groups if group.root in lowest]
    sound, kept = sound_groups(model, wide, inputs, lowest)
    kept += [
        Kept(group.root, f"its {group.width} channels are too few for steps of {multiple}")
        for group in groups
        if group.root not in lowest
    ]
    roots = {group.root for group in sound}
    steps = tuple(step for step in schedule.steps if step[0] in roots)
    return replace(schedule, steps=steps), kept


def _nothing_to_remove(model: nn.Module, kept: Sequence[Kept], multiple: int) -> str:
    reasons = "; ".join(f"{entry.where}: {entry.why}" for entry in kept)
    return (
        f"no channel of this {type(model).__name__} can go in steps of {multiple}: "
        f"{reasons or 'it has no convolution'}"
    )


def _clock(
    engine: str | None, precision: str, threads: int | None, rounds: int, *, needed: bool
) -> Clock | None:
    """Check where latency is to be measured, before anything is built."""
    name = engine or (_ENGINE if needed else None)
    if name is None:
        return None
    get_engine(name).require()
    Settings(threads, precision)
    return Clock(name, precision, threads, rounds)


def _check_criterion(importance: str, data: Data | None, trained: nn.Module | None) -> None:
    if importance not in criteria.CRITERIA:
        known = ", ".join(criteria.CRITERIA)
        raise InputError(f"importance is {importance!r}; it must be one of {known}")
    if importance == "first_order" and data is None:
        raise InputError(
            "importance 'first_order' asks what the loss makes of each channel, and there are no "
            "data: give data=(inputs, targets), or several such pairs"
        )
    if importance == "bn_scale" and trained is None:
        raise InputError(
            "importance 'bn_scale' reads the batch norms of the training form, which the fused net "
            "no longer has: give trained=, the net that it was fused from"
        )
    if trained is not None:
        check_eval(trained, "reading the scales of the training form")


def _check_model(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a net that is not fused, or does not take the inputs."""
    check_eval(model, "pruning")
    with torch.no_grad(), running_on(f"the {type(model).__name__}", inputs):
        model(*inputs)
    regions = plan(model, inputs).regions
    if regions:
        raise InputError(
            f"the {type(model).__name__} is not fused: {len(regions)} regions would fold, the "
            f"first at {regions[0].where} ({regions[0].what}). Branches that are added have to "
            f"keep the same channels, and fused they need not: prune reparam.fuse(model)"
        )


def _scores(
    importance: str,
    model: nn.Module,
    groups: Sequence[Group],
    inputs: tuple[Tensor, ...],
    batches: Sequence[Batch],
    loss: Loss | None,
    trained: nn.Module | None,
) -> list[Tensor]:
    if importance == "first_order":
        return criteria.first_order(model, groups, batches, loss)
    if importance == "bn_scale" and trained is not None:
        return criteria.bn_scale(model, groups, trained, inputs)
    return criteria.magnitude(model, groups)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _some(batches: Sequence[Batch]) -> list[Any]:
    """Return the inputs of the first batches, enough for the equations of any layer."""
    chosen, count = [], 0
    for inputs, _ in batches:
        chosen.append(inputs)
        count += len(inputs) if isinstance(inputs, torch.Tensor) else 1
        if count >= _MOST_IMAGES:
            break
    return chosen
