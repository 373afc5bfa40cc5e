"""Load a checkpoint into a model: all of it, or nothing and a message that says why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from reparam._support.arguments import FLAG, NONE, PATH, TEXT, a, takes
from reparam._support.modules import innermost
from reparam._support.spelling import advice
from reparam.checkpoints.files import Weights, listed, read_weights
from reparam.checkpoints.layouts import form_of
from reparam.checkpoints.matching import Match, Mismatch, compare, model_names, read_names
from reparam.errors import CheckpointError

if TYPE_CHECKING:
    import os

    from reparam.checkpoints.layouts import Form
    from reparam.checkpoints.matching import NameMap


@dataclass(frozen=True)
class LoadReport:
    """What was loaded, from where, and what was left out.

    Attributes:
        path: The file.
        wrapper: The entries inside the file that hold the weights; empty if at the top.
        layout: Whose names they are.
        form: Whether the file's weights are of the train or deploy form, where one can tell.
        loaded: Names in the model of what was loaded.
        missing: Names in the model that the file lacks.
        unexpected: Names in the file that the model lacks.
        mismatched: What has another shape in the file than in the model.
    """

    path: Path
    wrapper: str
    layout: str
    form: Form | None
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]

    @property
    def complete(self) -> bool:
        """Whether file and model matched in everything."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        """Say what was read and how it was understood, and list what did not match."""
        source = f"{self.path}, entry {self.wrapper!r}" if self.wrapper else str(self.path)
        kind = f", {self.form} form" if self.form else ""
        lines = [f"{source} (names: {self.layout}{kind}): {len(self.loaded)} tensors fit"]
        if self.missing:
            lines.append(f"  {len(self.missing)} not in the file: {listed(self.missing)}")
        if self.unexpected:
            lines.append(f"  {len(self.unexpected)} not in the model: {listed(self.unexpected)}")
        if self.mismatched:
            shown = listed([str(mismatch) for mismatch in self.mismatched])
            lines.append(f"  {len(self.mismatched)} that do not fit: {shown}")
        return "\n".join(lines)


@takes(net=a("a torch.nn.Module", nn.Module), path=PATH, strict=FLAG, key=TEXT | NONE)
def load_checkpoint(
    net: nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    key: str | None = None,
) -> LoadReport:
    """Load weights from a file into a model.

    For the networks of ``reparam.models`` the file may have the names of this package, of the
    authors' code (RepVGG, MobileOne), of timm or of mmpretrain, in train or deploy form; the form
    must be that of the model. For any other model the names are compared as they are, but for those
    of an author's deploy class: weights that were fused here are found in its blocks. Wrappers
    (``state_dict``, ``model``, ``model_ema``, ... and the prefixes ``module.``, ``_orig_mod.``,
    ...) are seen through in both cases, as are those around ``net``.

    Args:
        net: The model; its weights are overwritten, in its own dtype and on its own device.
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote.
        strict: Whether everything must match. Otherwise what fits is loaded, and the report says
            what did not.
        key: The entry of the file that holds the weights. By default it is looked for, and averaged
            weights (``model_ema``, ``swa_model`` and the like) are preferred.

    Returns:
        What was loaded and what was not; its ``str`` is for a person.

    Raises:
        CheckpointError: The file cannot be read; something does not match and ``strict`` is set;
            the forms differ; or nothing matches at all. The model is then unchanged.
        MissingExtraError: The file is ``.safetensors`` and the package safetensors is missing.

    >>> import reparam.models, tempfile
    >>> spec = reparam.models.RepVGGSpec(depths=(1,), widths=(4,), stem_width=4)
    >>> net = reparam.models.RepVGG(spec, num_classes=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"model": net.state_dict()}, f"{folder}/net.pth")
    ...     load_checkpoint(net, f"{folder}/net.pth").wrapper
    'model'
    """
    model = innermost(net)
    targets = dict(model.state_dict(keep_vars=True))
    if any(target.is_meta for target in targets.values()):
        raise CheckpointError(
            f"the weights of this {type(model).__name__} are on the meta device and hold nothing; "
            f"give them memory first: net.to_empty(device='cpu')"
        )
    weights = read_weights(path, key=key)
    name_map = read_names(weights.tensors, targets)
    match = compare(name_map, weights.tensors, targets)
    report = _report(Path(path), weights, name_map, match)
    _check_forms(report, targets)
    if not match.fits:
        raise CheckpointError(_nothing_fits(report, weights, targets))
    if strict and not report.complete:
        raise CheckpointError(_does_not_fit(report))
    chosen = {name: weights.tensors[source] for name, source in match.fits.items()}
    model.load_state_dict(chosen, strict=False)
    return report


def _report(path: Path, weights: Weights, name_map: NameMap, match: Match) -> LoadReport:
    return LoadReport(
        path=path,
        wrapper=weights.wrapper,
        layout=name_map.layout,
        form=form_of(name_map.names),
        loaded=tuple(match.fits),
        missing=match.missing,
        unexpected=match.unexpected,
        mismatched=match.mismatched,
    )


def _check_forms(report: LoadReport, targets: dict[str, torch.Tensor]) -> None:
    """Refuse folded weights for a multi-branch model, and the other way round."""
    needed = form_of(model_names(targets))
    if report.form is None or needed is None or report.form == needed:
        return
    example = next(iter(report.unexpected), "")
    if report.form == "deploy":
        raise CheckpointError(
            f"{report.path} holds the deploy form (names: {report.layout}, such as {example}), and "
            f"the model is the multi-branch train form. Folded weights cannot be unfolded: build "
            f"the model with form='deploy' (or its spec with .deploy()), or load the checkpoint "
            f"that was written before folding. Nothing was loaded"
        )
    raise CheckpointError(
        f"{report.path} holds the multi-branch train form (names: {report.layout}, such as "
        f"{example}), and the model is the deploy form. Load it into the train form and fuse that: "
        f"reparam.load_checkpoint(net, path), then reparam.fuse(net.eval()). Nothing was loaded"
    )


def _nothing_fits(report: LoadReport, weights: Weights, targets: dict[str, torch.Tensor]) -> str:
    if report.mismatched:
        return _does_not_fit(report)
    return (
        f"{report.path} and the model have no name in common, so nothing was loaded. "
        f"The file has {listed(list(weights.tensors), 3)}; "
        f"the model has {listed(list(targets), 3)}"
    )


def _does_not_fit(report: LoadReport) -> str:
    lines = [f"the checkpoint does not fit the model, and nothing was loaded. {report}"]
    if classes := _classes(report):
        found, needed = classes
        lines.append(
            f"  The file is for {found} classes and the model for {needed}"
            + advice(": build the model with {num_classes}", num_classes=found)
            + advice("; or load with {strict}, which leaves its classifier as it is", strict=False)
        )
    else:
        lines.append(advice("  Load with {strict} to take what fits", strict=False))
    return "\n".join(filter(None, lines))


def _classes(report: LoadReport) -> tuple[int, int] | None:
    """Return the numbers of classes in file and model if the classifier is all that differs.

    That is: a matrix with as many columns and other rows, and the bias that belongs to it.
    """
    shapes = {(mismatch.found, mismatch.needed) for mismatch in report.mismatched}
    for found, needed in shapes:
        if isinstance(found, tuple) and isinstance(needed, tuple) and len(found) == 2:
            bias = ((found[0],), (needed[0],))
            if found[1:] == needed[1:] and shapes <= {(found, needed), bias}:
                return found[0], needed[0]
    return None
