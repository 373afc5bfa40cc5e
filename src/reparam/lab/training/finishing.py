"""The end of a run: fuse, show that nothing changed, and write what gets deployed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reparam._support.files import write_text
from reparam.checkpoints import load_checkpoint
from reparam.errors import InputError, VerificationError
from reparam.frontends.torch.copying import own_copy
from reparam.fusing import plan
from reparam.lab.data import eval_loader
from reparam.lab.training.module import EVAL_BATCH
from reparam.lab.training.running import accuracy
from reparam.verifying import verify

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from reparam.deploy.exporting import ExportResult
    from reparam.lab.data import ImageData
    from reparam.lab.training.result import TrainResult
    from reparam.verifying import Verdict

_SAMPLE = 32
"""Validation images on which outputs, not only classes, are compared."""


@dataclass(frozen=True, eq=False)
class Deployment:
    """What a run becomes.

    Attributes:
        model: The fused model, in eval mode.
        epoch: Of the weights that were fused.
        plan: What was folded and what was left, and why; printing it gives a table.
        verdict: Comparison of the outputs before and after fusing.
        images: Validation images on which the predicted classes were compared.
        different: Of these, how many got another class; 0, or `finish` had raised, but for exact
            ties within rounding.
        accuracy: Of the fused model on the validation images, 0 to 1.
        test_accuracy: Of the fused model on the test images, where the data has some.
        parameters_before: Numbers of parameters of the trained form.
        parameters_after: Numbers of parameters of the deployed form.
        weights: The fused weights, ``.safetensors``.
        exports: What was exported.
    """

    model: nn.Module
    epoch: int
    plan: Any
    verdict: Verdict
    images: int
    different: int
    accuracy: float
    test_accuracy: float | None
    parameters_before: int
    parameters_after: int
    weights: Path
    exports: tuple[ExportResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values for JSON."""
        return {
            "epoch": self.epoch,
            "regions_folded": len(self.plan.regions),
            "refusals": [
                {"where": refusal.where, "what": refusal.what, "why": refusal.why}
                for refusal in self.plan.refusals
            ],
            "max_abs_difference": self.verdict.max_abs,
            "tolerance": self.verdict.tolerance,
            "images_compared": self.images,
            "predictions_different": self.different,
            "accuracy": self.accuracy,
            "test_accuracy": self.test_accuracy,
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "weights": self.weights.name,
            "exports": [export.as_dict() for export in self.exports],
        }

    def __str__(self) -> str:
        same = self.images - self.different
        lines = [
            f"{len(self.plan.regions)} regions folded, {len(self.plan.refusals)} left as they are",
            str(self.verdict),
            f"same class on {same} of {self.images} validation images",
            f"epoch {self.epoch}, accuracy {100 * self.accuracy:.2f} %",
            f"parameters {self.parameters_before:,} -> {self.parameters_after:,}",
            f"weights in {self.weights.name}",
            *map(str, self.exports),
        ]
        return "\n".join(lines)


@torch.no_grad()
def finish(
    result: TrainResult,
    data: ImageData,
    *,
    out: str | Path,
    weights: str = "best",
    exports: Sequence[str] = (),
    source: str | None = None,
    notes: Mapping[str, str] | None = None,
) -> Deployment:
    """Fuse a trained model, compare it with what it was on the validation images, and write it.

    Args:
        result: From :func:`reparam.lab.training.train`.
        data: What it was trained on.
        out: Existing folder for ``deploy.safetensors``, ``deploy.json`` and the exports.
        weights: ``"best"``: those of the epoch with the highest validation accuracy; or ``"last"``.
        exports: File names such as ``"deploy.onnx"``; the suffix picks the format.
        source: What the model was made from, for the files' metadata; None is its class.
        notes: More for the files' metadata (:func:`reparam.export`).

    Returns:
        The fused model and the figures.

    Raises:
        VerificationError: An output differs by more than rounding, or an image got another class
            although its two best classes were further apart than that.
        InputError: The folder cannot be written, or `weights` is neither.
        ExportError: An export failed, or computes something else.
    """
    folder = Path(out)
    if not folder.is_dir():
        raise InputError(f"the output folder {folder} does not exist; make it, or choose another")
    trained, epoch = _chosen(result, weights)
    made = plan(trained)
    fused = made.apply()
    images, _ = data.tensors(data.validation, limit=_SAMPLE)
    verdict = verify(trained, fused, images)
    verdict.raise_if_different()
    compared, different, correct = _compare(trained, fused, data, verdict.tolerance)

    def write(name: str) -> ExportResult:
        from reparam.deploy.exporting import export

        return export(
            fused, folder / name, images[:4], reference=trained, source=source, notes=notes
        )

    deployment = Deployment(
        model=fused,
        epoch=epoch,
        plan=made,
        verdict=verdict,
        images=compared,
        different=different,
        accuracy=correct / compared,
        test_accuracy=_test_accuracy(fused, result, data, epoch),
        parameters_before=_parameters(trained),
        parameters_after=_parameters(fused),
        weights=write("deploy.safetensors").path,
        exports=tuple(write(name) for name in exports),
    )
    write_text(folder / "deploy.json", json.dumps(deployment.to_dict(), indent=2) + "\n")
    return deployment


def _chosen(result: TrainResult, weights: str) -> tuple[nn.Module, int]:
    """Return the trained model with the weights that were asked for, and their epoch."""
    if weights not in ("best", "last"):
        raise InputError(f"the weights to deploy are {weights!r}; they are 'best' or 'last'")
    last = len(result.history)
    if weights == "last" or result.best_epoch == last:
        return result.model, last
    model = own_copy(result.model)
    load_checkpoint(model, result.best)
    return model, result.best_epoch


def _test_accuracy(
    fused: nn.Module, result: TrainResult, data: ImageData, epoch: int
) -> float | None:
    if data.test is None or epoch == len(result.history):
        return result.test_accuracy  # which was measured
    return accuracy(fused, data, data.test)


def _compare(
    trained: nn.Module, fused: nn.Module, data: ImageData, tolerance: float
) -> tuple[int, int, int]:
    """Return how many images were compared, got another class, and the right one when fused."""
    compared = different = correct = 0
    for images, labels in eval_loader(data, data.validation, batch_size=EVAL_BATCH):
        before, after = trained(images), fused(images)
        changed = before.argmax(dim=1) != after.argmax(dim=1)
        best = before.topk(2, dim=1).values
        clear = best[:, 0] - best[:, 1] > 2 * tolerance
        if bool((changed & clear).any()):
            count = int((changed & clear).sum())
            raise VerificationError(
                f"fusing changed the class of {count} of {len(labels)} validation images whose two "
                f"best classes are further apart than rounding explains ({2 * tolerance:.2e})"
            )
        compared += len(labels)
        different += int(changed.sum())
        correct += int((after.argmax(dim=1) == labels).sum())
    return compared, different, correct


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
