r"""Count the memory that a model's activations take while it runs, exactly.

Every tensor storage is followed from the operator that makes it to its release, so the count is the
same on every run and every machine. Scratch memory inside one operator is not a tensor and is not
counted; neither are parameters and buffers.

Two executors are shown side by side.

*Eager* is PyTorch as it ran: a tensor lives as long as a Python variable refers to it. The caller
of a model, and every ``forward`` on the way down, refers to its input until it returns.

*Planned* is the same list of operators run by an executor that releases a tensor after its last
use, as graph engines do. This is the one that the memory argument for a single path is about:
between two operators a single path holds one map, while a residual block of two branches holds two,
the block's input and the first branch's result (RepVGG, arXiv 2101.03697, section 3.1 and figure
3). See :func:`predicted_held_maps`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from reparam.deploy.benchmarking.execution import Bytes, Execution, Op, execute

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import torch
    from torch import nn


@dataclass(frozen=True)
class MemoryTrace:
    """The life of a model's activations over one inference.

    Attributes:
        steps: The executed operators, in order.
        input_bytes: Bytes of the model's inputs.
        output_bytes: Bytes of its outputs.
        parameter_bytes: Bytes of its parameters and buffers, which the steps leave out.
    """

    steps: tuple[Op, ...]
    input_bytes: int
    output_bytes: int
    parameter_bytes: int

    @property
    def peak(self) -> int:
        """Largest eager ``working`` total: activations and the model's input, in bytes."""
        return max((step.working.total for step in self.steps), default=self.input_bytes)

    @property
    def peak_activations(self) -> int:
        """Largest eager ``working`` without the model's input, in bytes."""
        return max((step.working.activations for step in self.steps), default=0)

    @property
    def planned_peak(self) -> int:
        """Largest ``planned_working`` total, in bytes: what a graph engine needs at least."""
        return max((step.planned_working.total for step in self.steps), default=self.input_bytes)

    @property
    def planned_peak_held(self) -> int:
        """Largest ``planned_held`` total, in bytes: the paper's count, taken between operators."""
        return max((step.planned_held.total for step in self.steps), default=self.input_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Return the trace as a dictionary that JSON can hold, peaks included."""
        return {
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "parameter_bytes": self.parameter_bytes,
            "peak": self.peak,
            "peak_activations": self.peak_activations,
            "planned_peak": self.planned_peak,
            "planned_peak_held": self.planned_peak_held,
            "steps": [
                {
                    "op": step.op,
                    "module": step.module,
                    "shapes": [list(shape) for shape in step.shapes],
                    "held": step.held.total,
                    "working": step.working.total,
                    "planned_held": step.planned_held.total,
                    "planned_working": step.planned_working.total,
                }
                for step in self.steps
            ],
        }


def peak_activation_memory(
    model: nn.Module, example_inputs: torch.Tensor | Sequence[torch.Tensor]
) -> MemoryTrace:
    """Run a model once and count its live tensor storages at every operator.

    Args:
        model: A module in eval mode. It is not changed.
        example_inputs: A tensor or a tuple of tensors.

    Returns:
        The timeline, with its peaks.

    Raises:
        InputError: The inputs are not tensors.
        TrainingModeError: The model is in training mode.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU()).eval()
        >>> memory = peak_activation_memory(net, torch.zeros(1, 256))
        >>> memory.planned_peak_held, memory.planned_peak, memory.peak
        (1024, 2048, 3072)
    """
    executed = execute(model, example_inputs)
    tensors = {t.untyped_storage()._cdata: t for t in (*model.parameters(), *model.buffers())}  # noqa: SLF001
    return MemoryTrace(
        steps=tuple(_planned(executed)),
        input_bytes=sum(executed.sizes[n] for n in executed.inputs),
        output_bytes=sum(executed.sizes[n] for n in executed.outputs),
        parameter_bytes=sum(t.untyped_storage().nbytes() for t in tensors.values()),
    )


def predicted_held_maps(branches: int) -> int:
    """Return how many maps a block holds between two operators, predicted from its structure.

    The block has ``branches`` branches (a shortcut counts as one) that read the same input and are
    summed, and every map in it has the input's size. Before the sum begins, each branch but the
    last has a result that waits, and the last still needs the input or has its own result: that is
    ``branches`` maps. A single path holds one. So the ratio to a single path is 2 for a residual
    block and 3 for a RepVGG block whose branches are computed before they are added.

    >>> predicted_held_maps(1), predicted_held_maps(2), predicted_held_maps(3)
    (1, 2, 3)
    """
    return max(1, branches)


def _planned(executed: Execution) -> Iterator[Op]:
    """The operators with what is held and in use around each if tensors go after their last use."""
    last = dict.fromkeys(executed.inputs, -1)
    for i, op in enumerate(executed.ops):
        last |= dict.fromkeys((*op.makes, *op.reads), i)
    last |= dict.fromkeys(executed.outputs, len(executed.ops))
    alive = set(executed.inputs)
    for i, op in enumerate(executed.ops):
        # An operator may return a storage made before it (in place), which is among its reads.
        alive = {n for n in alive if last[n] >= i}
        held = _total(executed, alive)
        alive |= op.makes
        yield replace(op, planned_held=held, planned_working=_total(executed, alive))


def _total(executed: Execution, numbers: Iterable[int]) -> Bytes:
    inputs, others = (
        sum(executed.sizes[n] for n in numbers if (n in executed.inputs) is given)
        for given in (True, False)
    )
    return Bytes(inputs, others)
