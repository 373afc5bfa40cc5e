"""Batches are functions of (seed, epoch, batch), however a step is dealt out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reparam.errors import DataError
from reparam.lab.data import Augment, ImageData, Sharding, eval_loader, open_data, train_loader
from reparam.lab.data.augment import augment_batch, draw_batch

EVERYTHING = Augment(flip="random", translate=1, cutout=2)
PER_IMAGE = Augment(flip="alternate", resized_crop=0.5, randaugment=1)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("digits")


def read(
    data: ImageData, augment: Augment, epoch: int = 0, batch: int = 0, **sharding: int
) -> list[tuple[Tensor, Tensor]]:
    loader = train_loader(data, Sharding(64, **sharding), augment=augment, seed=1)
    loader.load_state_dict({"epoch": epoch, "batch": batch})
    return list(loader)


@pytest.mark.parametrize("augment", [EVERYTHING, PER_IMAGE], ids=["batch", "image"])
def test_parts_and_processes_share_the_images_of_one_step(
    digits: ImageData, augment: Augment
) -> None:
    whole = read(digits, augment, epoch=1)
    dealt = [
        read(digits, augment, epoch=1, rank=rank, world_size=2, accumulate=2) for rank in range(2)
    ]
    assert len(dealt[0]) == 2 * len(whole)
    for step, (images, labels) in enumerate(whole):
        parts = [dealt[rank][2 * step + part] for part in range(2) for rank in range(2)]
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


@pytest.mark.parametrize("augment", [EVERYTHING, PER_IMAGE], ids=["batch", "image"])
def test_continues_anywhere(digits: ImageData, augment: Augment) -> None:
    whole = read(digits, augment, epoch=2)
    rest = read(digits, augment, epoch=2, batch=7)
    assert len(rest) == len(whole) - 7
    for (images, labels), (expected, expected_labels) in zip(rest, whole[7:], strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_worker_processes_change_nothing(digits: ImageData) -> None:
    loaders = [
        train_loader(digits, Sharding(256), augment=PER_IMAGE, seed=1, workers=workers)
        for workers in (0, 2)
    ]
    for (images, _), (expected, _) in zip(*map(iter, loaders), strict=True):
        assert torch.equal(images, expected)


def test_position_is_that_of_the_next_batch(digits: ImageData) -> None:
    loader = train_loader(digits, Sharding(64), augment=EVERYTHING, seed=1)
    batches = iter(loader)
    next(batches)
    assert loader.state_dict() == {"epoch": 0, "batch": 1}
    for _ in batches:
        pass
    assert loader.state_dict() == {"epoch": 1, "batch": 0}


def test_epochs_and_seeds_differ(digits: ImageData) -> None:
    first = read(digits, Augment())[0][1]
    assert not torch.equal(first, read(digits, Augment(), epoch=1)[0][1])
    other = train_loader(digits, Sharding(64), augment=Augment(), seed=2)
    assert not torch.equal(first, next(iter(other))[1])


def test_an_epoch_shows_no_image_twice(digits: ImageData) -> None:
    images = torch.cat([images for images, _ in read(digits, Augment())])
    assert len(images.flatten(1).unique(dim=0)) >= len(images) - 1  # the digits hold a double


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_reads_every_image_once(digits: ImageData, world_size: int) -> None:
    labels = []
    for rank in range(world_size):
        loader = eval_loader(
            digits, digits.validation, batch_size=50, rank=rank, world_size=world_size
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        labels += [batch[1] for batch in batches]
    _, expected = digits.tensors(digits.validation)
    assert torch.equal(torch.cat(labels).sort().values, expected.sort().values)


def test_flip_shift_and_mirrored_border() -> None:
    image = torch.arange(12, dtype=torch.uint8).view(1, 1, 3, 4)
    draws = draw_batch(Augment(), torch.tensor([0]), (3, 4), seed=0, epoch=0, step=0)
    assert draws.flip is draws.shift is draws.hole is None
    still = augment_batch(image, draws, cutout=0, fill=torch.zeros(1))
    assert torch.equal(still, image)

    augment = Augment(flip="random", translate=2)
    indices = torch.arange(64)
    draws = draw_batch(augment, indices, (3, 4), seed=0, epoch=0, step=0)
    moved = augment_batch(image.expand(64, -1, -1, -1), draws, cutout=0, fill=torch.zeros(1))
    for flip, (down, right), found in zip(draws.flip, draws.shift, moved, strict=True):
        assert torch.equal(found, _by_hand(image[0, 0], int(down), int(right), flip=bool(flip)))
    assert {int(value) for value in draws.shift.unique()} == {-2, -1, 0, 1, 2}


def _by_hand(image: Tensor, down: int, right: int, *, flip: bool) -> Tensor:
    def mirror(position: int, length: int) -> int:
        while not 0 <= position < length:
            position = -position if position < 0 else 2 * (length - 1) - position
        return position

    def turn(column: int) -> int:
        return width - 1 - column if flip else column

    height, width = image.shape
    rows = [
        [int(image[mirror(y + down, height), turn(mirror(x + right, width))]) for x in range(width)]
        for y in range(height)
    ]
    return torch.tensor([rows], dtype=torch.uint8)


def test_cutout_fills_a_square_that_may_reach_over_the_border() -> None:
    images = torch.full((200, 3, 8, 8), 9, dtype=torch.uint8)
    augment = Augment(cutout=4)
    draws = draw_batch(augment, torch.arange(200), (8, 8), seed=0, epoch=0, step=0)
    cut = augment_batch(images, draws, cutout=4, fill=torch.tensor([1.0, 2.0, 3.0]))
    holes = cut[:, 0] == 1
    assert torch.equal(cut[:, 2] == 3, holes)
    sizes = holes.flatten(1).sum(dim=1)
    assert int(sizes.max()) == 16
    assert int(sizes.min()) >= 4
    assert torch.equal(cut[:, 1][~holes], images[:, 1][~holes])


def test_alternate_flip_shows_both_sides_in_two_epochs() -> None:
    indices = torch.arange(1000)
    augment = Augment(flip="alternate")
    first, second, third = (
        draw_batch(augment, indices, (8, 8), seed=4, epoch=epoch, step=0).flip for epoch in range(3)
    )
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    assert 400 < int(first.sum()) < 600  # a fair coin: 500, standard deviation 16


def test_batch_that_cannot_be_dealt_out_is_refused() -> None:
    with pytest.raises(DataError, match="a batch of 100 images cannot be dealt out evenly to 3"):
        Sharding(100, world_size=3)


def test_too_few_images_for_one_batch(digits: ImageData) -> None:
    with pytest.raises(DataError, match="1259 training images, too few for one batch of 2048"):
        train_loader(digits, Sharding(2048), augment=Augment(), seed=0)
