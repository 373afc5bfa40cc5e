"""Every kind of data opens, and every early error names what is wrong."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from reparam.errors import DataError
from reparam.lab.data import (
    ArraySplit,
    Augment,
    Sharding,
    ShardSplit,
    StoredSplit,
    eval_loader,
    index_shards,
    open_data,
    train_loader,
)


def png(value: int, size: tuple[int, int] = (12, 10)) -> bytes:
    """Encode one colour; the value can be read back from any pixel."""
    content = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(content, "png")
    return content.getvalue()


def tree(*prefixes: str, per_class: int = 10) -> dict[str, bytes]:
    return {
        f"{prefix}{name}/{number:02d}.png": png(100 * label + number)
        for prefix in prefixes
        for label, name in enumerate(("cat", "dog"))
        for number in range(per_class)
    }


def as_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return path


def as_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("prefix", ["", "train/", "deep/inside/"])
def test_tree_without_validation_holds_a_tenth_out(
    prefix: str, tmp_path: Path, *, packed: bool
) -> None:
    files = tree(prefix)
    path = as_zip(tmp_path / "a.zip", files) if packed else as_folder(tmp_path / "a", files)
    data = open_data(path)
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (3, 10, 12)
    assert isinstance(data.train, ArraySplit)
    assert (len(data.train), len(data.validation), data.test) == (18, 2, None)
    pixels = torch.cat([data.train.images, data.validation.images])[:, 0, 0, 0]
    labels = torch.cat([data.train.labels, data.validation.labels])
    assert torch.equal(pixels >= 100, labels == 1)
    assert len(pixels.unique()) == 20


def test_zip_and_folder_of_the_same_images_hold_the_same(tmp_path: Path) -> None:
    files = tree("train/", "test/")
    packed = open_data(as_zip(tmp_path / "a.zip", files))
    unpacked = open_data(as_folder(tmp_path / "a", files))
    assert torch.equal(packed.train.images, unpacked.train.images)
    assert torch.equal(packed.validation.labels, unpacked.validation.labels)


@pytest.mark.parametrize(
    ("prefixes", "has_test"),
    [
        (("train/", "val/"), False),
        (("train/", "test/"), False),
        (("Train/", "valid/", "test/"), True),
    ],
)
def test_split_folders_are_recognised(
    prefixes: tuple[str, ...], tmp_path: Path, *, has_test: bool
) -> None:
    data = open_data(as_folder(tmp_path / "a", tree(*prefixes)))
    assert (len(data.train), len(data.validation)) == (20, 20)
    assert (data.test is not None) == has_test


def test_second_source_is_validation_data(tmp_path: Path) -> None:
    train = as_zip(tmp_path / "train.zip", tree("train/"))
    test = as_zip(tmp_path / "test.zip", tree("test/", per_class=3))
    data = open_data(train, validation=test)
    assert (len(data.train), len(data.validation)) == (20, 6)
    assert data.fingerprint != open_data(train).fingerprint


def test_foreign_files_are_passed_over(tmp_path: Path) -> None:
    files = {**tree(""), "README.md": b"x", "__MACOSX/cat/._00.png": b"x", "cat/.hidden.png": b"x"}
    data = open_data(as_zip(tmp_path / "a.zip", files))
    assert data.class_names == ("cat", "dog")


def test_stored_images_are_read_when_needed_and_survive_pickling(tmp_path: Path) -> None:
    data = open_data(as_zip(tmp_path / "a.zip", tree("")), in_memory=False, image_size=8)
    assert isinstance(data.train, StoredSplit)
    again = pickle.loads(pickle.dumps(data.train))  # noqa: S301 - our own
    assert torch.equal(again.read(3), data.train.read(3))
    assert data.train.read(3).shape == (3, 10, 12)
    images, labels = data.tensors(data.validation)
    assert images.shape == (2, 3, 8, 8)
    batches = list(
        train_loader(data, Sharding(6), augment=Augment(flip="random"), seed=0, workers=2)
    )
    assert [len(batch[1]) for batch in batches] == [6, 6, 6]
    assert labels.tolist() == [0, 1]


def test_torchvision_data_set(tmp_path: Path) -> None:
    data = open_data("torchvision:FakeData", image_size=16, in_memory=False, root=tmp_path)
    assert data.num_classes == 10
    assert data.image_shape == (3, 16, 16)
    assert len(data.train) + len(data.validation) == 1000


def test_normalised_training_images_have_mean_zero_and_deviation_one() -> None:
    data = open_data("digits")
    images, _ = data.tensors(data.train)
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.std(dim=(0, 2, 3)), torch.ones(3), rtol=1e-4, atol=0)


def _edited(path: Path, change: Callable[[bytes], bytes]) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


ERRORS = {
    "missing": (lambda _: "no/such/place", r"no data at 'no/such/place'.*looked in"),
    "near miss": (lambda _: "digit", r"did you mean 'digits'"),
    "empty": (lambda p: as_folder(p / "a", {"x.txt": b""}), "holds no images"),
    "not a zip": (lambda p: as_folder(p, {"a.zip": b"no"}) / "a.zip", "is not a zip file"),
    "one class": (lambda p: as_folder(p / "a", {"cat/1.png": png(1)}), "the one class 'cat'"),
    "no class folder": (
        lambda p: as_folder(p / "a", {"1.png": png(1), "cat/2.png": png(1)}),
        r"1\.png is in no class folder",
    ),
    "broken image": (
        lambda p: as_folder(p / "a", {**tree(""), "cat/00.png": b"no image"}),
        r"00\.png cannot be read as an image",
    ),
    "unknown torchvision set": (lambda _: "torchvision:CIFAR11", "did you mean 'CIFAR10'"),
    "not a classification set": (
        lambda _: "torchvision:FakeDat",
        "did you mean 'FakeData'",
    ),
    "empty class": (
        lambda p: (as_folder(p / "a", tree("")) and (p / "a/emu").mkdir()) or p / "a",
        r"the folder .*emu holds no images",
    ),
    "class of other files": (
        lambda p: as_folder(p / "a", {**tree(""), "emu/1.txt": b""}),
        r"the folder .*emu holds no images",
    ),
    "empty class in a zip file": (
        lambda p: as_zip(p / "a.zip", {**tree(""), "emu/": b""}),
        r"the folder .*emu holds no images",
    ),
    "empty class in one split": (
        lambda p: as_folder(p / "a", {**tree("train/", "val/"), "val/emu/1.txt": b""}),
        r"the folder .*val/emu holds no images",
    ),
    "empty split": (
        lambda p: as_folder(p / "a", {**tree("train/"), "val/1.txt": b""}),
        r"the folder .*val holds no images",
    ),
    "class of validation images alone": (
        lambda p: as_folder(p / "a", {**tree("train/", "val/"), "val/emu/1.png": png(1)}),
        r"the class 'emu' of the validation images has no training images",
    ),
    "class of test images alone": (
        lambda p: as_folder(p / "a", {**tree("train/", "test/"), "test/emu/1.png": png(1)}),
        r"the class 'emu' of the test images has no training images",
    ),
    "folder beside splits": (
        lambda p: as_folder(p / "a", {**tree("train/", "val/"), "more/emu/1.png": png(1)}),
        r"'more' stands beside train, val",
    ),
    "pipe for an image": (
        lambda p: (as_folder(p / "a", tree("")) and os.mkfifo(p / "a/cat/x.png")) or p / "a",
        r"x\.png is not a plain file",
    ),
    "pipe for a zip file": (
        lambda p: os.mkfifo(p / "a.zip") or p / "a.zip",
        r"a\.zip is not a plain file",
    ),
    "device": (lambda _: "/dev/null", "/dev/null is not a plain file"),
    "link to nothing": (
        lambda p: (
            (as_folder(p / "a", tree("")) and (p / "a/cat/x.png").symlink_to("gone")) or p / "a"
        ),
        r"x\.png cannot be read",
    ),
    "link to a folder above": (
        lambda p: (as_folder(p / "a", tree("")) and (p / "a/cat/up").symlink_to("..")) or p / "a",
        r"up is a link to a folder above it",
    ),
    "empty zip file": (lambda p: as_zip(p / "a.zip", {}), "holds no images"),
    "zip file of 0 bytes": (lambda p: as_folder(p, {"a.zip": b""}) / "a.zip", "is not a zip file"),
    "zip file that is cut off": (
        lambda p: _edited(as_zip(p / "a.zip", tree("")), lambda c: c[: len(c) // 2]),
        "is not a zip file",
    ),
    "zip file with a broken index": (
        lambda p: _edited(as_zip(p / "a.zip", tree("")), lambda c: c.replace(b"PK\1\2", b"PK\0\0")),
        "is not a zip file",
    ),
    "zip file with a broken entry": (
        lambda p: _edited(as_zip(p / "a.zip", tree("")), lambda c: c.replace(b"IDAT", b"IDAX")),
        r"\.png cannot be unpacked",
    ),
    "zip file with a password": (
        lambda p: _edited(
            as_zip(p / "a.zip", tree("")),
            lambda c: c.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"),
        ),
        r"\.png cannot be unpacked",
    ),
    "missing shard": (lambda p: f"{p}/x-{{0..3}}.tar", "validation shards"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_early_errors(case: str, tmp_path: Path) -> None:
    make, message = ERRORS[case]
    with pytest.raises(DataError, match=message):
        open_data(make(tmp_path))


def test_an_unreadable_class_folder_is_refused(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "a", tree(""))
    (path / "dog").chmod(0)
    if os.access(path / "dog", os.R_OK):  # an administrator may read it all the same
        (path / "dog").chmod(0o755)
        pytest.skip("this user may read every folder")
    with pytest.raises(DataError, match=r"the folder .*dog cannot be read"):
        open_data(path)


def test_folders_within_a_class_may_be_empty(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "a", {**tree(""), "cat/notes/1.txt": b"", ".git/1.txt": b""})
    assert open_data(path).class_names == ("cat", "dog")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    files = {**tree(""), **{f"train/{number}.png": png(number) for number in range(3)}}
    assert open_data(as_folder(tmp_path / "a", files)).class_names == ("cat", "dog", "train")


def test_other_classes_in_the_validation_data(tmp_path: Path) -> None:
    train = as_folder(tmp_path / "a", tree(""))
    other = as_folder(tmp_path / "b", {**tree(""), "emu/1.png": png(1)})
    with pytest.raises(DataError, match=r"2 classes and .* has 3; .*only the second has \['emu'\]"):
        open_data(train, validation=other)


# ------------------------------------------------------------------------------------------ shards


def shard(path: Path, first: int, count: int) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(first, first + count):
            for ending, content in (("png", png(number, (8, 8))), ("cls", b"%d" % (number % 3))):
                entry = tarfile.TarInfo(f"{number:05d}.{ending}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number, (first, count) in enumerate([(0, 20), (20, 33), (53, 20), (73, 27), (100, 20)]):
        shard(folder / f"train-{number}.tar", first, count)
    shard(folder / "val-0.tar", 200, 17)
    shard(folder / "val-1.tar", 217, 18)
    return folder


def open_shards(folder: Path):
    return open_data(
        f"{folder}/train-{{0..4}}.tar", validation=f"{folder}/val-{{0..1}}.tar", image_size=8
    )


def values(batches) -> list[int]:
    """Recover the number of each image from its normalised pixels."""
    red = torch.cat([images[:, 0, 0, 0] for images, _ in batches])
    return (((red * 0.229) + 0.485) * 255).round().to(torch.int64).tolist()


def test_shards_are_counted(shards: Path) -> None:
    data = open_shards(shards)
    assert isinstance(data.train, ShardSplit)
    assert data.train.counts == (20, 33, 20, 27, 20)
    assert (data.num_classes, len(data.validation)) == (3, 35)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_shards_are_read_once(shards: Path, world_size: int, workers: int) -> None:
    data = open_shards(shards)
    seen = []
    for rank in range(world_size):
        loader = train_loader(
            data,
            Sharding(2 * world_size, rank=rank, world_size=world_size),
            augment=Augment(),
            seed=0,
            workers=workers,
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        mine = values(batches)
        assert torch.cat([labels for _, labels in batches]).tolist() == [n % 3 for n in mine]
        seen += mine
    assert len(seen) == len(set(seen)), "an image was read twice"
    assert set(seen) <= set(range(120))
    if world_size == 1:
        assert set(seen) == set(range(120))
        assert seen != sorted(seen)


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_shards_are_read_once_and_whole(shards: Path, workers: int) -> None:
    data = open_shards(shards)
    seen = []
    for rank in range(2):
        seen += values(
            eval_loader(
                data, data.validation, batch_size=8, rank=rank, world_size=2, workers=workers
            )
        )
    assert sorted(seen) == list(range(200, 235))


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_continue_anywhere(shards: Path, workers: int) -> None:
    data = open_shards(shards)
    augment = Augment(flip="random", resized_crop=0.5)

    def read(batch: int):
        loader = train_loader(data, Sharding(4), augment=augment, seed=0, workers=workers)
        loader.load_state_dict({"epoch": 1, "batch": batch, "workers": workers, "world_size": 1})
        return list(loader)

    whole, rest = read(0), read(17)
    assert len(rest) == len(whole) - 17
    for (images, labels), (expected, expected_labels) in zip(rest, whole[17:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_shards_do_not_continue_with_other_workers(shards: Path) -> None:
    loader = train_loader(open_shards(shards), Sharding(4), augment=Augment(), seed=0)
    with pytest.raises(DataError, match=r"with 3 workers on 1 .* resumed with 0 on 1"):
        loader.load_state_dict({"epoch": 0, "batch": 5, "workers": 3, "world_size": 1})


def test_index_saves_the_counting(shards: Path, tmp_path: Path) -> None:
    pattern = f"{shards}/train-{{0..4}}.tar"
    index_shards(pattern).save(tmp_path / "index.json")
    options = {"validation": f"{shards}/val-0.tar", "shard_index": tmp_path / "index.json"}
    assert open_data(pattern, **options).train.counts == (20, 33, 20, 27, 20)
    with pytest.raises(DataError, match="lists 5 shards that are not the 2"):
        open_data(f"{shards}/train-{{0..1}}.tar", **options)


def test_fewer_shards_than_processes(shards: Path) -> None:
    with pytest.raises(DataError, match="5 shards for 6 processes"):
        train_loader(open_shards(shards), Sharding(6, world_size=6), augment=Augment(), seed=0)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no samples"),
        ({"1.png": png(1)}, r"sample '1' has \.png; needed a class number"),
        ({"1.cls": b"x", "1.png": png(1)}, "needed a class number"),
        (None, "cannot be read"),
    ],
)
def test_broken_shards(files: dict[str, bytes] | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    if files is None:
        path.write_bytes(b"no tar file at all")
    else:
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(DataError, match=message):
        index_shards(str(path))


def test_files_that_belong_to_no_sample_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (("LICENSE", b"x"), ("./1.png", png(1)), ("./1.cls", b"0")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    assert index_shards(str(path)).counts == (1,)


def test_an_address_that_cannot_be_opened_is_refused() -> None:
    with pytest.raises(DataError, match=r"nowhere://x\.tar cannot be read"):
        index_shards("nowhere://x.tar")


def test_missing_shard_is_named(tmp_path: Path) -> None:
    shard(tmp_path / "x-0.tar", 0, 2)
    with pytest.raises(DataError, match=r"x-1\.tar of .* does not exist"):
        index_shards(f"{tmp_path}/x-{{0..1}}.tar")
