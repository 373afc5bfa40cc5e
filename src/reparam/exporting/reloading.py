"""Read the weights of a fused net into a fresh instance of the class that was fused."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from reparam._arguments import PATH, a, takes
from reparam.checkpoints import load_checkpoint
from reparam.checkpoints.files import read_weights
from reparam.errors import CheckpointError, ReparamError
from reparam.exporting.metadata import read_metadata
from reparam.fusing.plans import plan_but
from reparam.graph.kinds import AnyNorm
from reparam.graph.skeleton import unwrap

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

__all__ = ["load_fused"]


@takes(model=a("a torch.nn.Module", nn.Module), path=PATH)
def load_fused(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Return a fused net with the weights of a file, made from an instance of its class.

    What folds follows from the structure of the model, so that it is found again on any instance:
    neither the trained weights nor example inputs are needed (where an example decides, one is made
    of the shapes that the file tells, or an image). Norms that the file still holds are
    left as they are, whatever folds in the instance. Names and shapes have to match in everything.

    Args:
        model: The model as it was before it was fused, with any weights, in any mode. It is only
            read.
        path: What :func:`reparam.export` or ``reparam fuse`` wrote (``.safetensors``), or the state
            dict of a fused net, as safetensors or ``torch.save`` wrote it.

    Returns:
        A new module in eval mode, in the type of the file's numbers.

    Raises:
        CheckpointError: The file cannot be read, or is of another net, or is not fused.
        UnsupportedModelError: The model cannot be read (a ScriptModule, for example).
        MissingExtraError: The file is ``.safetensors`` and the package safetensors is missing.

    Example:
        >>> import tempfile
        >>> import reparam
        >>> def build():
        ...     return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> fused = reparam.fuse(build().eval())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(fused.state_dict(), f"{folder}/net.pth")
        ...     again = load_fused(build(), f"{folder}/net.pth")
        >>> torch.equal(again[0].weight, fused[0].weight), again[1]
        (True, Identity())
    """
    file = Path(path)
    tensors = read_weights(file).tensors
    inner = unwrap(model, "model")
    kept = frozenset(
        name
        for name, module in inner.named_modules()
        if isinstance(module, AnyNorm)
        and any(f"{name}.{part}" in tensors for part in ("weight", "running_var"))
    )
    if kept and set(tensors) == set(inner.state_dict()):
        raise CheckpointError(
            f"{file.name} holds {type(inner).__name__} as it is before it is fused: load it with "
            "reparam.load_checkpoint, and fuse the model then"
        )
    dtypes = {t.dtype for t in tensors.values() if t.is_floating_point()}
    misfit: CheckpointError | None = None
    for left, example in product(dict.fromkeys((frozenset[str](), kept)), _examples(file, inner)):
        fused = plan_but(left, inner, example).apply()
        fused = fused.to(next(iter(dtypes))) if len(dtypes) == 1 else fused
        try:
            load_checkpoint(fused, file)
        except CheckpointError as error:
            misfit = error
        else:
            return fused
    raise CheckpointError(
        f"{file.name} does not hold what {type(inner).__name__} becomes when it is fused: {misfit}"
    ) from misfit


def _examples(file: Path, model: nn.Module) -> Iterator[tuple[torch.Tensor, ...] | None]:
    """What to plan on: inputs that the file tells of, none, and an image of the usual size."""
    told = _told(file)
    if told is not None:
        yield told
    yield None
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if told is None and first is not None:
        size = getattr(model, "default_cfg", {}).get("input_size", (0, 224, 224))
        yield (torch.randn(1, first.in_channels, *size[1:]),)


def _told(file: Path) -> tuple[torch.Tensor, ...] | None:
    """Inputs of the shapes that the net was written with, where the file tells them."""
    if file.suffix.lower() != ".safetensors":
        return None
    try:
        shapes = read_metadata(file).get("inputs")
    except (ReparamError, ValueError):
        return None
    return None if shapes is None else tuple(torch.randn(shape) for shape in shapes)
