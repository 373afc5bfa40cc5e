"""One door for every kind of data."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from reparam.errors import DataError
from reparam.lab.data._images import view
from reparam.lab.data.dataset import ImageData, image_data
from reparam.lab.data.digits import open_digits
from reparam.lab.data.folder import FolderContent, read_folder
from reparam.lab.data.shards import is_shard_pattern, read_shards
from reparam.lab.data.splits import ArraySplit, Split, StoredSplit, dealt_by_class
from reparam.lab.data.tv import DEFAULT_ROOT, read_torchvision

if TYPE_CHECKING:
    from torch import Tensor

_LARGE = 224
"""Side in pixels of images that have no common size."""
_LARGEST = 8192
"""Images of a larger side take the memory of the machine, a batch of them at a time."""
_SMALL = 64
"""Up to this side, images are held in memory if there is room."""
_MEMORY_BYTES = 1 << 30
_HOLDOUT = 0.1


def open_data(
    source: str | Path,
    *,
    validation: str | Path | None = None,
    image_size: int | None = None,
    in_memory: bool | None = None,
    root: str | Path = DEFAULT_ROOT,
    shard_index: str | Path | None = None,
) -> ImageData:
    """Open a data set.

    Args:
        source: One of

            - ``"digits"``: scikit-learn's handwritten digits;
            - the path of an ImageFolder directory, or of a zip file of one, which stays packed:
              ``<class>/<image>``, with or without folders train, val and test above;
            - ``"torchvision:CIFAR10"``: a data set of torchvision by the name of its class;
            - WebDataset shards: ``"data/train-{000..099}.tar"``.
        validation: A second source of the same kind, all of which is validation data. Without it,
            the source's own validation split is used; else its test split; else every tenth image
            of each class is held out.
        image_size: Height and width in pixels of what a model sees. When None: the stored size
            where all images share one of at most 64 pixels, else 224.
        in_memory: Hold all images decoded; when None, small ones are if they take up to 1 GiB.
        root: Where torchvision keeps what it downloads.
        shard_index: File written by :meth:`ShardIndex.save`, to save the counting of the training
            shards.

    Raises:
        DataError: The source is missing, empty, broken or of no known kind, or the two sources do
            not have the same classes.
        MissingExtraError: A package that the kind of source needs is not installed.

    Example:
        >>> data = open_data("digits", image_size=16)
        >>> data.image_shape, data.num_classes, len(data.train), len(data.test)
        ((3, 16, 16), 10, 1259, 359)
    """
    name = str(source)
    if image_size is not None and not 1 <= image_size <= _LARGEST:
        raise DataError(f"image_size is {image_size}; it must be from 1 to {_LARGEST} pixels")
    if name == "digits":
        if validation is not None:
            raise DataError("the digits bring their own validation split; leave `validation` out")
        return open_digits(image_size=image_size)
    if is_shard_pattern(name):
        return _open_shards(name, validation, image_size or _LARGE, shard_index)
    content = _read(name, Path(root))
    other = None if validation is None else _read(str(validation), Path(root))
    if len(content.class_names) < 2:
        raise DataError(
            f"{name} holds the one class {content.class_names[0]!r}; needed two or more"
        )
    splits = _choose_splits(content, name, other, str(validation))
    fingerprints = [each.fingerprint for each in (content, other) if each is not None]
    return _assemble(
        name,
        content.class_names,
        splits,
        "+".join(fingerprints),
        image_size=image_size,
        in_memory=in_memory,
    )


def _read(name: str, root: Path) -> FolderContent:
    kind, _, rest = name.partition(":")
    if kind == "torchvision" and rest:
        return read_torchvision(rest, root)
    if not Path(name).exists():
        close = difflib.get_close_matches(name, ["digits", "torchvision:"], n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise DataError(
            f"there is no data at {name!r}{hint}, looked in {Path.cwd()}; give the path of an "
            "ImageFolder directory or zip file, 'digits', 'torchvision:<name>', or a pattern of "
            "WebDataset shards"
        )
    return read_folder(Path(name))


def _choose_splits(
    content: FolderContent, name: str, validation: FolderContent | None, other: str
) -> dict[str, StoredSplit]:
    found = content.splits
    if validation is not None:
        _same_classes(name, content.class_names, other, validation.class_names)
        if len(validation.splits) > 1:
            names = ", ".join(validation.splits)
            raise DataError(
                f"{other} has the splits {names}: give a source of one split as validation "
                "data, or leave it out to use the splits of one source"
            )
        train = found.get("train", found.get("all", next(iter(found.values()))))
        return {"train": train, "validation": next(iter(validation.splits.values()))}
    if "train" in found and "validation" in found:
        return found
    if "train" in found and "test" in found:
        return {"train": found["train"], "validation": found["test"]}
    whole = next(iter(found.values()))
    held_out, kept = dealt_by_class(whole.labels, _counts)
    if len(held_out) == 0:
        raise DataError("every class has one image only; bring validation data, or more images")
    return {"train": whole.take(kept), "validation": whole.take(held_out)}


def _counts(members: int) -> tuple[int, int]:
    """Hold out a tenth of a class, at least one image."""
    held_out = max(1, round(members * _HOLDOUT)) if members > 1 else 0
    return held_out, members - held_out


def _same_classes(
    first: str, first_names: tuple[str, ...], second: str, second_names: tuple[str, ...]
) -> None:
    if first_names == second_names:
        return
    only_first = sorted(set(first_names) - set(second_names))[:5]
    only_second = sorted(set(second_names) - set(first_names))[:5]
    raise DataError(
        f"{first} has {len(first_names)} classes and {second} has {len(second_names)}; only the "
        f"first has {only_first}, only the second has {only_second}: both must have the same"
    )


def _assemble(
    name: str,
    class_names: tuple[str, ...],
    stored: dict[str, StoredSplit],
    fingerprint: str,
    *,
    image_size: int | None,
    in_memory: bool | None,
) -> ImageData:
    size = (image_size, image_size) if image_size else _common_size(stored["train"])
    count = sum(map(len, stored.values()))
    fits = max(size) <= _SMALL and count * 3 * size[0] * size[1] <= _MEMORY_BYTES
    splits: dict[str, Split] = dict(stored)
    if fits if in_memory is None else in_memory:
        splits = {key: _decode_all(split, size) for key, split in stored.items()}
    return image_data(name, class_names, splits, size, fingerprint)


def _common_size(split: StoredSplit) -> tuple[int, int]:
    """Return the size that a sample of the images share if they are small, else 224 x 224."""
    sample = torch.linspace(0, len(split) - 1, min(len(split), 16)).round().to(torch.int64)
    sizes = {tuple(split.read(int(position)).shape[-2:]) for position in sample}
    height, width = sizes.pop()
    if sizes or max(height, width) > _SMALL:
        return (_LARGE, _LARGE)
    return (height, width)


def _decode_all(split: StoredSplit, size: tuple[int, int]) -> ArraySplit:
    images: Tensor = torch.empty(len(split), 3, *size, dtype=torch.uint8)
    for position in range(len(split)):
        images[position] = view(split.read(position), size)
    return ArraySplit(images, split.labels)


def _open_shards(
    pattern: str, validation: str | Path | None, size: int, index: str | Path | None
) -> ImageData:
    if validation is None:
        raise DataError(
            f"{pattern} are training shards; give the pattern of validation shards as well"
        )
    train = read_shards(pattern, index)
    held_out = read_shards(str(validation), None)
    if held_out.classes > train.classes:
        raise DataError(
            f"{validation} has the class {held_out.classes - 1} and the training shards {pattern} "
            f"end with class {train.classes - 1}: both must have the same classes"
        )
    return image_data(
        pattern,
        tuple(map(str, range(train.classes))),
        {"train": train, "validation": held_out},
        (size, size),
        f"{train.fingerprint}+{held_out.fingerprint}",
    )
