"""A Lightning callback that deploys at the end of a fit: fuse, compare, export."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from reparam._support.arguments import NONE, PATH, SHAPES, TEXT, several, takes
from reparam._support.files import check_destination
from reparam._support.optional import require
from reparam.checkpoints.files import read_weights
from reparam.deploy.exporting import export
from reparam.deploy.exporting.formats import find_format
from reparam.errors import CheckpointError, InputError
from reparam.frontends.torch.copying import own_copy
from reparam.fusing import plan
from reparam.verifying import verify

require("lightning.pytorch", extra="train", purpose="The Lightning callback")

# ruff: noqa: E402 - the import comes behind the question whether it can be made
import lightning.pytorch as pl
from lightning.pytorch import strategies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reparam.deploy.exporting import ExportResult
    from reparam.fusing import Plan
    from reparam.verifying import Verdict

_SHARDED = (
    strategies.FSDPStrategy,
    strategies.DeepSpeedStrategy,
    strategies.ModelParallelStrategy,
)
_SAMPLES = 4
"""Of a batch, for the comparison and the exports."""


class FuseAtEnd(pl.Callback):
    """Fuse the trained net when the fit ends, compare both, and export what was fused.

    The module that is trained is only read. What callbacks put into it at the end of training is
    what is fused, such as the averages of ``EMAWeightAveraging`` and
    ``StochasticWeightAveraging``; an average that the module keeps itself is named by ``net``.

    Args:
        out: Files to write, as ``"deploy.onnx"``; the suffix picks the format, as for
            :func:`reparam.export`. None are written in a ``fast_dev_run``.
        net: The net inside of the LightningModule, as ``"model"`` or ``"ema.module"``. By default
            its only child with weights, or else the LightningModule itself.
        example_inputs: For the plan, the comparison and the exports. By default the module's
            ``example_input_array``, or else the first of what the first batch holds.
        weights: ``"last"``, or ``"best"`` for those of the checkpoint that ``ModelCheckpoint``
            holds for the best. Averages that Lightning saves in it are what is read.

    Attributes:
        fused: The fused net on the CPU, in eval mode; None before the fit has ended.
        plan: What was folded, and what was left and why.
        verdict: The comparison.
        exports: What was written.

    Raises:
        InputError: Before the training: a file cannot be written, there is no such net, or the
            strategy keeps its weights in parts. At its end: there is no example or checkpoint.
        MissingExtraError: What reads a format back is not installed.

    Example:
        >>> from reparam.integrations.lightning import FuseAtEnd
        >>> trainer = pl.Trainer(callbacks=[FuseAtEnd("deploy.onnx")])  # doctest: +SKIP

    """

    @takes(out=PATH | several(PATH), net=TEXT | NONE, example_inputs=SHAPES | NONE, weights=TEXT)
    def __init__(
        self,
        out: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        *,
        net: str | None = None,
        example_inputs: Any = None,
        weights: str = "last",
    ) -> None:
        files = [out] if isinstance(out, str | os.PathLike) else [*out]
        if weights not in ("best", "last"):
            raise InputError(f"the weights to fuse are {weights!r}; they are 'best' or 'last'")
        self._out = [Path(file) for file in files]
        self._net, self._example, self._weights = net, example_inputs, weights
        self.fused: nn.Module | None = None
        self.plan: Plan[Any] | None = None
        self.verdict: Verdict | None = None
        self.exports: tuple[ExportResult, ...] = ()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse at once what would fail after hours of training."""
        if stage != "fit":
            return
        if isinstance(trainer.strategy, _SHARDED):
            raise InputError(
                f"{type(trainer.strategy).__name__} keeps the weights in parts; fuse what its "
                f"checkpoint holds, once that is put together"
            )
        self._find(pl_module)
        for file in self._out:
            find_format(file)
            check_destination(file)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fuse, compare, export; on the first process alone."""
        if not trainer.is_global_zero:
            return
        prefix, net = self._find(pl_module)
        trained = own_copy(net).cpu().eval()
        if self._weights == "best":
            _load_best(trained, trainer, prefix)
        example = self._example
        example = _example(trainer, pl_module) if example is None else example
        example = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), example)
        self.plan = plan(trained, example)
        self.fused = self.plan.apply()
        self.verdict = verify(trained, self.fused, example)
        self.verdict.raise_if_different()
        self.exports = tuple(
            export(self.fused, file, example, reference=trained)
            for file in (() if getattr(trainer, "fast_dev_run", False) else self._out)
        )
        logging.getLogger(__name__).info("%s", self)

    def __str__(self) -> str:
        """Say what became of the net."""
        if self.plan is None or self.verdict is None:
            return "the fit has not ended"
        counts = f"{len(self.plan.regions)} regions folded, {len(self.plan.refusals)} left"
        return "\n".join([counts, str(self.verdict), *map(str, self.exports)])

    def _find(self, module: pl.LightningModule) -> tuple[str, nn.Module]:
        """The net inside of a LightningModule, and what its weights begin with there."""
        if self._net is None:
            inner = [
                (name, child)
                for name, child in module.named_children()
                if any(True for _ in child.parameters())
            ]
            own = any(True for _ in module.parameters(recurse=False))
            return (f"{inner[0][0]}.", inner[0][1]) if len(inner) == 1 and not own else ("", module)
        try:
            return f"{self._net}.", module.get_submodule(self._net)
        except AttributeError as error:
            children = ", ".join(name for name, _ in module.named_children()) or "none"
            raise InputError(
                f"{type(module).__name__} has no module {self._net!r}; its children are: {children}"
            ) from error


def _load_best(net: nn.Module, trainer: pl.Trainer, prefix: str) -> None:
    saved = trainer.checkpoint_callback
    path = getattr(saved, "best_model_path", "")
    if not path:
        raise InputError(
            "there is no best checkpoint to fuse; give the trainer a ModelCheckpoint with a "
            "monitor, or leave weights='best' out"
        )
    tensors = read_weights(path, key="state_dict").tensors
    inside = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    try:
        net.load_state_dict(inside)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not hold the net that was trained: {error}") from error


def _example(trainer: pl.Trainer, module: pl.LightningModule) -> Any:
    """What the module says it takes, or images of its first batch."""
    given = module.example_input_array
    if given is not None:
        return given
    loaders, _ = tree_flatten(trainer.val_dataloaders or trainer.train_dataloader)
    batch = next(iter(loaders[0]), None) if loaders else None
    first = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(first, Tensor):
        raise InputError(
            f"a batch is of type {type(batch).__name__}, which does not say what the net takes; "
            f"give FuseAtEnd example_inputs, or the LightningModule an example_input_array"
        )
    return first[:_SAMPLES]
