"""Data sets of torchvision, by the name of their class."""

from __future__ import annotations

import difflib
import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reparam._support.optional import require
from reparam.errors import DataError
from reparam.lab.data._images import from_pil
from reparam.lab.data.folder import FolderContent
from reparam.lab.data.splits import StoredSplit

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_ROOT = Path("~/.cache/reparam/data")
_SPLITS = {
    "train": ("train",),
    "validation": ("val", "valid", "validation"),
    "test": ("test",),
}


@dataclass(frozen=True, eq=False)
class _TorchvisionSource:
    dataset: Any
    name: str

    def read(self, index: int) -> torch.Tensor:
        where = f"torchvision:{self.name}, image {index},"
        try:
            image = self.dataset[index][0]
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{where} cannot be read as an image: {error}") from error
        return image if isinstance(image, torch.Tensor) else from_pil(image, where)


def read_torchvision(name: str, root: Path) -> FolderContent:
    """Open a classification data set of torchvision, downloading it to `root` where it can be.

    Raises:
        DataError: There is no such data set, it is not one of labelled images, or it is not in
            `root` and cannot be fetched.
        MissingExtraError: torchvision is not installed.
    """
    datasets = require("torchvision.datasets", extra="train", purpose="torchvision data sets")
    if name not in datasets.__all__:
        close = difflib.get_close_matches(name, datasets.__all__, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"torchvision has no data set {name!r}{hint}")
    make = getattr(datasets, name)
    opened = {}
    for split in _SPLITS:
        dataset = _open(make, name, root.expanduser(), split)
        if dataset is not None:
            opened[split] = dataset
    return _content(opened, name)


def _open(make: Callable[..., Any], name: str, root: Path, split: str) -> Any | None:
    """Return one split of a data set, None where it has no such split."""
    known = inspect.signature(make).parameters
    options: dict[str, Any] = {"root": root} if "root" in known else {}
    if "download" in known:
        options["download"] = True
    if "train" in known:
        if split == "validation":
            return None
        choices: tuple[dict[str, Any], ...] = ({"train": split == "train"},)
    elif "split" in known:
        choices = tuple({"split": word} for word in _SPLITS[split])
    else:
        choices = ({},) if split == "train" else ()
    for choice in choices:
        try:
            return make(**options, **choice)
        except ValueError:  # this is how torchvision says that it knows no such split
            continue
        except (RuntimeError, OSError) as error:
            raise DataError(f"torchvision:{name} could not be opened in {root}: {error}") from error
    return None


def _content(opened: dict[str, Any], name: str) -> FolderContent:
    if "train" not in opened:
        raise DataError(f"torchvision:{name} has no training split")
    splits = {}
    digest = hashlib.sha256(name.encode())
    for split, dataset in opened.items():
        labels = _labels(dataset, name)
        digest.update(split.encode() + labels.numpy().tobytes())
        splits["all" if len(opened) == 1 else split] = StoredSplit(
            _TorchvisionSource(dataset, name), torch.arange(len(dataset)), labels
        )
    classes = getattr(opened["train"], "classes", None)
    count = 1 + max(int(split.labels.max()) for split in splits.values())
    if classes is None or len(classes) < count:
        classes = [str(label) for label in range(count)]
    return FolderContent(tuple(map(str, classes)), splits, digest.hexdigest())


def _labels(dataset: Any, name: str) -> torch.Tensor:
    """Return the class of every image, without decoding where the data set lists them."""
    for attribute in ("targets", "labels", "_labels"):
        listed = getattr(dataset, attribute, None)
        if listed is not None:
            break
    else:
        listed = [dataset[index][1] for index in range(len(dataset))]
    labels = torch.as_tensor(listed)
    if labels.shape != (len(dataset),) or labels.is_floating_point():
        raise DataError(
            f"torchvision:{name} is not a data set of images with one class each "
            f"(its labels have the shape {tuple(labels.shape)})"
        )
    return labels.to(torch.int64)
