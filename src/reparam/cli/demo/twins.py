"""The part of the story that trains one deep net with branches and without."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

import reparam
from reparam.cli.demo.nets import build_deep
from reparam.errors import InputError
from reparam.lab.data import ArraySplit, ImageData, open_data
from reparam.lab.training import load_recipe, train
from reparam.report import sentence
from reparam.report.results import Results, TwinRecord, TwinsRecord

if TYPE_CHECKING:
    from reparam.cli.demo.reporter import Reporter
    from reparam.cli.demo.settings import Settings, Twin, Twins

__all__ = ["train_twins"]

_NOTE = (
    "One run each, of a net too deep for so few images and epochs, judged on the test images after "
    "the last epoch. Each form has the learning rate that did best for it on validation images. "
    "Whiskers are 95 % intervals for this number of images (Wilson)."
)


def train_twins(results: Results, settings: Settings, reporter: Reporter) -> Results:
    """Train every form of the deep net on the same few images, and fold it to count what is left.

    Raises:
        InputError: the data set has no images in memory to take a part of.
    """
    twins = settings.twins
    data = _few(open_data("digits", image_size=twins.image_size), twins.images)
    found = []
    for form in twins.forms:
        torch.manual_seed(settings.seed)
        net = build_deep(twins, form.branches, len(data.class_names), data.image_shape[0])
        found.append(_trained(net, form, data, settings, reporter))
    folded = reparam.fuse(net.eval())
    layers = sum(isinstance(module, torch.nn.Conv2d) for module in folded.modules())
    record = TwinsRecord(layers, len(data.train), tuple(found), _NOTE)
    reporter.outcome(sentence("twins", record))
    return replace(results, twins=record)


def _few(data: ImageData, images: int) -> ImageData:
    split = data.train
    if not isinstance(split, ArraySplit):
        raise InputError(f"the data set {data.name!r} has no training images in memory")
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:images]
    return replace(
        data, train=split.take(chosen), fingerprint=f"{data.fingerprint}[:{len(chosen)}]"
    )


def _trained(
    net: torch.nn.Module, form: Twin, data: ImageData, settings: Settings, reporter: Reporter
) -> TwinRecord:
    twins: Twins = settings.twins
    recipe = load_recipe("digits").override(
        epochs=twins.epochs, batch_size=twins.batch_size, optimizer__learning_rate=form.rate
    )
    title = f"Training a deep net on {twins.images} images ({form.label})"
    with reporter.step(title) as update, tempfile.TemporaryDirectory() as folder:
        result = train(
            net,
            data,
            recipe=recipe,
            out=folder,
            seed=settings.seed,
            on_progress=lambda now: update(
                now.epoch - 1 + now.step / now.steps, now.epochs, f"loss {now.loss:.2f}"
            ),
        )
    total = result.images["test"]
    role = "comparator" if form.branches == "neither" else "train"
    losses = tuple(epoch.train_loss for epoch in result.history)
    correct = round(result.accuracy * total)
    return TwinRecord(form.label, role, form.rate, result.seconds, losses, correct, total)
