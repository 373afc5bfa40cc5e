"""Read the weights of a fused net into a fresh instance of the class that was fused."""

from __future__ import annotations

import inspect
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from reparam._support.arguments import NONE, PATH, SHAPES, a, takes
from reparam.checkpoints import load_checkpoint
from reparam.checkpoints.files import read_weights
from reparam.deploy.exporting.metadata import read_metadata
from reparam.errors import CheckpointError, InputError, ReparamError
from reparam.frontends.kinds import AnyNorm
from reparam.frontends.torch.skeleton import unwrap
from reparam.fusing.asked import FIXED, OUTPUTS
from reparam.fusing.cutting import cut_down
from reparam.fusing.plans import plan_but

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from reparam.fusing.asked import Fixed, Outputs


@takes(
    model=a("a torch.nn.Module", nn.Module), path=PATH, example_inputs=SHAPES | NONE,
    outputs=OUTPUTS | NONE, fixed=FIXED | NONE,
)  # fmt: skip
def load_fused(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    outputs: Outputs | None = None,
    fixed: Fixed | None = None,
) -> nn.Module:
    """Return a fused net with the weights of a file, made from an instance of its class.

    What folds follows from the structure of the model, so that it is found again on any instance:
    neither the trained weights nor, as a rule, example inputs are needed. Norms that the file still
    holds are left as they are, whatever folds in the instance. Names and shapes have to match in
    everything; what no state dict holds, such as ``eps``, is that of the instance.

    Args:
        model: The model as it was before it was fused, with any weights, in any mode. It is only
            read.
        path: What :func:`reparam.export` or ``reparam fuse`` wrote (``.safetensors``), or the state
            dict of a fused net, as safetensors or ``torch.save`` wrote it.
        example_inputs: As for :func:`reparam.plan`, where what folds depends on them. Otherwise
            they are made: as the file says, and an image where it says nothing.
        outputs: What :func:`reparam.fuse` was given, if the fused net was cut by it.
        fixed: The same, with values of the same shapes; the numbers are those of the file. Where it
            is left out by mistake, an exported file tells so; a plain state dict may not.

    Returns:
        A new module in eval mode, in the type of the file's numbers.

    Raises:
        CheckpointError: The file cannot be read, or is of another net, or is not fused, or was cut
            in another way.
        InputError: The model has no such result or argument.
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
    tensors, notes = read_weights(file).tensors, _notes(file)
    inner = unwrap(model, "model")
    if outputs is not None or fixed is not None:
        inner = cut_down(inner, example_inputs, outputs, fixed)
        example_inputs = None if fixed is not None else example_inputs
    kept = frozenset(
        name
        for name, module in inner.named_modules()
        if isinstance(module, AnyNorm)
        and any(f"{name}.{part}" in tensors for part in ("weight", "running_var"))
    )
    # The names alone do not tell a fused net from one that is not where norms stay in both.
    as_it_was = set(tensors) == set(inner.state_dict()) and notes.get("form") != "fused"
    dtypes = {t.dtype for t in tensors.values() if t.is_floating_point()}
    ways = [frozenset[str]()] if as_it_was else [frozenset[str](), kept]
    misfit: ReparamError | None = None
    for left, example in product(dict.fromkeys(ways), _examples(example_inputs, notes, inner)):
        try:
            plan = plan_but(left, inner, example)
            if as_it_was and plan.regions:
                continue
            fused = plan.apply()
            fused = fused.to(next(iter(dtypes))) if len(dtypes) == 1 else fused
            load_checkpoint(fused, file)
            _check_takes(fused, notes)
        except (CheckpointError, InputError) as error:  # the model may not take such an example
            misfit = misfit or error
        else:
            return fused
    kind = type(inner).__name__
    if as_it_was:
        raise CheckpointError(
            f"{file.name} holds {kind} as it is before it is fused: load it with "
            "reparam.load_checkpoint, and fuse the model then"
        )
    cut = "" if outputs is not None or fixed is not None else (
        f". Where {file.name} holds a part of the net, cut by outputs= or fixed= of reparam.fuse, "
        "give the same here"
    )  # fmt: skip
    raise CheckpointError(
        f"{file.name} does not hold what {kind} becomes when it is fused: {misfit}{cut}"
    ) from misfit


def _notes(file: Path) -> dict[str, Any]:
    """What the file says of itself, if it is of a format that says anything."""
    if file.suffix.lower() != ".safetensors":
        return {}
    try:
        return read_metadata(file)
    except (ReparamError, ValueError):
        return {}


def _check_takes(fused: nn.Module, notes: Mapping[str, Any]) -> None:
    """Refuse a net that needs what the file's net was no longer given: the names may be the same.

    Raises:
        CheckpointError: It takes more than the file tells of.
    """
    told = notes.get("inputs", ())
    needed = [
        p
        for p in inspect.signature(fused.forward).parameters.values()
        if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
    ]
    if told and len(needed) > len(told):
        raise CheckpointError(
            f"it needs {len(needed)} inputs ({', '.join(p.name for p in needed)}), and the net of "
            f"the file took {len(told)}"
        )


def _examples(given: Any, notes: Mapping[str, Any], model: nn.Module) -> Iterator[Any]:
    """What to plan on: what was given; or else what the file tells of, nothing, and an image."""
    if given is not None:
        yield given
        return
    if "inputs" in notes:
        yield tuple(_example(getattr(torch, dtype), sizes) for dtype, *sizes in notes["inputs"])
    yield None
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if "inputs" not in notes and first is not None:
        size = getattr(model, "default_cfg", {}).get("input_size", (0, 224, 224))
        yield (torch.randn(1, first.in_channels, *size[1:], dtype=first.weight.dtype),)


def _example(dtype: torch.dtype, sizes: list[int]) -> torch.Tensor:
    floating = dtype.is_floating_point
    return torch.randn(sizes).to(dtype) if floating else torch.zeros(sizes, dtype=dtype)
