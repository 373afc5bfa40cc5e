"""WebDataset shards: tar files of samples, read as streams, for data that fits no one machine.

A sample is a run of files that share their name up to the first dot: ``0001.jpg`` and ``0001.cls``
(the class as a decimal number). An epoch reads every shard once, by one process and one worker.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import random
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils.data import IterableDataset, get_worker_info

from reparam._support.files import write_text
from reparam._support.optional import require
from reparam.errors import DataError
from reparam.lab.data._images import SUFFIXES, decode, shown
from reparam.lab.data._seeds import derive_seed
from reparam.lab.data.splits import ShardSplit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from reparam.lab.data.augment import Epoch

CHUNK = 16
"""Images that a worker hands over at a time."""

Sample: TypeAlias = "dict[str, Any]"
"""Contents of files (bytes) by the endings of their names; under ``__key__`` what they share."""


@dataclass(frozen=True)
class ShardIndex(ShardSplit):
    """What has to be known about shards before a run starts.

    Attributes:
        classes: Number of classes: one more than the highest class found.
    """

    classes: int

    @property
    def fingerprint(self) -> str:
        """Hex digest of the shards' file names and counts."""
        names = [*map(_file_name, self.urls)]
        return hashlib.sha256(json.dumps([names, self.counts]).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the index as JSON, whole or not at all, for :func:`reparam.lab.data.open_data`.

        Raises:
            InputError: The file cannot be written.
        """
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")


def is_shard_pattern(source: str) -> bool:
    """Say whether a name means shards: tar files, by braces (``{000..099}``) or one by one."""
    return source.endswith((".tar", ".tar.gz", ".tgz")) or source.startswith("pipe:")


def index_shards(pattern: str) -> ShardIndex:
    """Read every shard once to count its images and classes.

    Args:
        pattern: Paths or URLs as WebDataset expands them: ``data/train-{000..099}.tar``,
            several joined by ``::``.

    Raises:
        DataError: A shard is missing, broken or empty, or holds a sample without image or class.
        MissingExtraError: webdataset is not installed.
    """
    urls = _expand(pattern)
    counts = []
    highest = -1
    for url in urls:
        count = 0
        for sample in _samples(url):
            highest = max(highest, _label(sample, url))
            count += 1
        if count == 0:
            raise DataError(f"{url} holds no samples")
        counts.append(count)
    return ShardIndex(urls, tuple(counts), highest + 1)


def read_shards(pattern: str, index: str | Path | None) -> ShardIndex:
    """Return the index of the shards of a pattern: the given one, or by reading all of them."""
    if index is None:
        return index_shards(pattern)
    try:
        values = json.loads(Path(index).read_text(encoding="utf-8"))
        known = ShardIndex(tuple(values["urls"]), tuple(values["counts"]), values["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index} is not an index of shards: {error}") from error
    urls = _expand(pattern)
    if [*map(_file_name, known.urls)] != [*map(_file_name, urls)]:
        raise DataError(
            f"{index} lists {len(known.urls)} shards that are not the {len(urls)} of {pattern}: "
            "make a new index with reparam.lab.data.index_shards"
        )
    return ShardIndex(urls, known.counts, known.classes)


@dataclass(frozen=True)
class ShardStream(IterableDataset[Any]):
    """The images that one process reads in one epoch, in chunks, dealt out over its workers.

    Every worker hands over equally many chunks (empty ones at the end, if need be), so that the
    order in which a DataLoader takes turns does not depend on which of them finishes first.

    Attributes:
        split: All shards.
        size: (height, width) of the images handed over.
        rank: This process.
        world_size: Number of processes.
        epoch: Decides the order of the shards, of the images in the buffer, and the augmentation;
            None for evaluation, in stored order.
        buffer: Number of encoded images from which the next is drawn.
        skip: Chunks at the beginning, counted over all workers in turn, that were seen before the
            run was resumed: they are not decoded, their images come blank.
    """

    split: ShardSplit
    size: tuple[int, int]
    rank: int = 0
    world_size: int = 1
    epoch: Epoch | None = None
    buffer: int = 2048
    skip: int = 0

    def shards(self) -> list[int]:
        """Return the numbers of the shards that this process reads."""
        order = list(range(len(self.split.urls)))
        if self.epoch is not None:
            _random(self.epoch.seed, "shards", self.epoch.number).shuffle(order)
        return order[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield chunks of images, uint8 (n, 3, H, W), and labels, int64 (n,), with n <= CHUNK."""
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        mine = self.shards()
        rows = [mine[start::workers] for start in range(workers)]
        longest = max(-(-sum(self.split.counts[shard] for shard in row) // CHUNK) for row in rows)
        chunks = 0
        for chunk in self._chunks(rows[number], number, workers):
            yield chunk
            chunks += 1
        for _ in range(longest - chunks):
            yield self._blank(0), torch.empty(0, dtype=torch.int64)

    def _chunks(
        self, shards: list[int], worker: int, workers: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        images: list[Tensor] = []
        labels: list[int] = []
        chunk = worker
        for url, sample in self._shuffled(self._raw(shards), worker):
            passed = chunk < self.skip
            images.append(self._blank(1)[0] if passed else self._decode(sample, url))
            labels.append(_label(sample, url))
            if len(images) == CHUNK:
                yield torch.stack(images), torch.tensor(labels)
                images, labels = [], []
                chunk += workers
        if images:
            yield torch.stack(images), torch.tensor(labels)

    def _raw(self, shards: list[int]) -> Iterator[tuple[str, Sample]]:
        for shard in shards:
            url = self.split.urls[shard]
            count = 0
            for sample in _samples(url):
                count += 1
                if count <= self.split.counts[shard]:
                    yield url, sample
            if count != self.split.counts[shard]:
                raise DataError(
                    f"{url} holds {count} samples where its index says {self.split.counts[shard]}: "
                    "the shard has changed; make a new index with reparam.lab.data.index_shards"
                )

    def _shuffled(
        self, samples: Iterator[tuple[str, Sample]], worker: int
    ) -> Iterator[tuple[str, Sample]]:
        if self.epoch is None:
            yield from samples
            return
        draw = _random(self.epoch.seed, "buffer", self.epoch.number, self.rank, worker)
        held: list[tuple[str, Sample]] = []
        for sample in samples:
            if len(held) < self.buffer:
                held.append(sample)
                continue
            place = draw.randrange(self.buffer)
            yield held[place]
            held[place] = sample
        draw.shuffle(held)
        yield from held

    def _blank(self, count: int) -> Tensor:
        return torch.zeros(count, 3, *self.size, dtype=torch.uint8)

    def _decode(self, sample: Sample, url: str) -> Tensor:
        key = sample["__key__"]
        image = decode(_image_bytes(sample, url), f"{url}:{key}")
        return shown(image, self.size, self.epoch, derive_seed(0, _file_name(url), key))


def _file_name(url: str) -> str:
    return url.rpartition("/")[2]


def _random(seed: int, *coordinates: int | str) -> random.Random:
    return random.Random(derive_seed(seed, *coordinates))  # noqa: S311 - order, no secret


def _expand(pattern: str) -> tuple[str, ...]:
    wds = require("webdataset", extra="train", purpose="Reading shards")
    urls = tuple(map(str, wds.shardlists.expand_urls(pattern)))
    for url in urls:
        local = url.removeprefix("file:")
        if "://" not in url and not url.startswith("pipe:") and not Path(local).is_file():
            raise DataError(f"shard {url} of {pattern} does not exist")
    return urls


def _samples(url: str) -> Iterator[Sample]:
    """Yield the samples of one shard in stored order: contents by ending, and ``__key__``."""
    wds = require("webdataset", extra="train", purpose="Reading shards")
    tars = wds.tariterators
    try:
        with wds.gopen(url) as stream:
            opened = [{"url": url, "stream": stream}]
            files = tars.tar_file_expander(opened, rename_files=posixpath.normpath)
            yield from tars.group_by_keys(files)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        # WebDataset adds to the error what it was reading.
        why = str(error.args[0] if error.args else error).partition(" @ ")[0]
        raise DataError(f"shard {url} cannot be read: {why}") from error


def _image_bytes(sample: Sample, url: str) -> bytes:
    for ending, content in sample.items():
        if "." + ending.rpartition(".")[2] in SUFFIXES:
            return bytes(content)
    raise DataError(_incomplete(sample, url, "an image (.jpg, .png, .webp)"))


def _label(sample: Sample, url: str) -> int:
    try:
        label = int(sample["cls"])
    except (KeyError, ValueError) as error:
        needed = "a class number (.cls, decimal text)"
        raise DataError(_incomplete(sample, url, needed)) from error
    if label < 0:
        raise DataError(_incomplete(sample, url, "a class number of 0 or more"))
    return label


def _incomplete(sample: Sample, url: str, needed: str) -> str:
    found = ", ".join("." + ending for ending in sample if not ending.startswith("__"))
    return f"{url}: sample {sample['__key__']!r} has {found}; needed {needed}"
