"""The story, step by step; every step leaves a record, and the page is drawn from the records."""

from __future__ import annotations

import copy
import datetime as dt
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reparam
from reparam._support import files
from reparam.cli.bench.blocks import layer_name
from reparam.cli.demo.nets import Settings, build_deep, build_repvgg, build_resnet
from reparam.cli.telling import counted, megabytes
from reparam.cli.terminal import Terminal
from reparam.deploy.engines import Settings as EngineSettings
from reparam.deploy.engines import get_engine
from reparam.errors import InputError, VerificationError
from reparam.lab.data import ArraySplit, ImageData, open_data
from reparam.lab.training import TrainResult, load_recipe, train
from reparam.models import ParallelSum
from reparam.report import render, sentence, to_json
from reparam.report.benchmarks import engine_label
from reparam.report.numbers import error
from reparam.report.recording import plan_record
from reparam.report.results import (
    AccuracyRecord,
    AgreementRecord,
    BlockRecord,
    BranchRecord,
    CheckRecord,
    DataRecord,
    ModelRecord,
    Results,
    TrainingRecord,
    TwinRecord,
    TwinsRecord,
)

_CONTROL_IMAGES = 64

TRAIN, DEPLOY, RESNET = "train", "deploy", "resnet"
_FILES = {
    "model.safetensors": "weights of the deploy form",
    "model.onnx": "the deploy form for any ONNX engine, checked in ONNX Runtime",
    "train-form.safetensors": "weights of the train form, to train on",
    "results.json": "every number on this page, raw timings included",
}
_TWINS_NOTE = (
    "One run each, of a net too deep for so few images and epochs, judged on the test images after "
    "the last epoch. Each form has the learning rate that did best for it on validation images. "
    "Whiskers are 95 % intervals for this number of images (Wilson)."
)


@dataclass(frozen=True, eq=False)
class Forms:
    """The three nets, and the images that nobody trained on."""

    train: nn.Module
    deploy: nn.Module
    resnet: nn.Module
    images: Tensor
    labels: Tensor


def step(
    terminal: Terminal, title: str
) -> AbstractContextManager[Callable[[float, float, str], None]]:
    """Draw a bar while a step runs; in a log, say that it begins."""
    if not terminal.live:
        terminal.note(f"{title} ...")
    return terminal.progress(title)


def train_all(settings: Settings, terminal: Terminal) -> tuple[Results, Forms]:
    """Train the net of many branches and a ResNet of its size, and fold the first."""
    data = open_data("digits", image_size=settings.image_size)
    images, labels = _test_images(data)
    channels, classes = data.image_shape[0], len(data.class_names)
    torch.manual_seed(settings.seed)
    nets = [build(settings, classes, channels) for build in (build_repvgg, build_resnet)]
    recipe = replace(load_recipe("digits"), epochs=settings.epochs)
    trained = []
    for net, name in zip(
        nets, ("the multi-branch RepVGG", "a ResNet of about its size"), strict=True
    ):
        result = _trained(net, data, recipe, f"Training {name}", settings, terminal)
        terminal.done(
            f"Trained {name}: {100 * result.accuracy:.1f} % of the test images right "
            f"after {settings.epochs} epochs ({result.seconds:.0f} s)"
        )
        trained.append(result)
    with step(terminal, "Planning and folding"):
        plan = reparam.plan(trained[0].model, images[:1])
        forms = Forms(trained[0].model, plan.apply(), trained[1].model, images, labels)
    models = tuple(
        ModelRecord(key, label, role, **counted(net, images[:1]))
        for key, label, role, net in (
            (TRAIN, "RepVGG, train form", "train", forms.train),
            (DEPLOY, "RepVGG, deploy form", "deploy", forms.deploy),
            (RESNET, "ResNet", "comparator", forms.resnet),
        )
    )
    terminal.done(
        f"Folded {len(plan.regions)} regions: {models[0].convolutions} convolutions and "
        f"{models[0].norms} batch norms became {models[1].convolutions} convolutions"
    )
    title = "reparam demo: a RepVGG trained wide and deployed straight"
    return Results(
        title=f"{title} ({settings.warning})" if settings.warning else title,
        created=f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        models=models,
        data=DataRecord(
            "scikit-learn's handwritten digits", len(data.train), len(labels), classes,
            data.image_shape,
        ),
        training=tuple(
            TrainingRecord(key, len(losses), result.seconds, losses)
            for key, result in zip((TRAIN, RESNET), trained, strict=True)
            for losses in (tuple(epoch.train_loss for epoch in result.history),)
        ),
        plan=plan_record(TRAIN, plan),
        block=_block(forms.train, plan),
        files=_FILES,
    ), forms  # fmt: skip


def _trained(
    model: nn.Module, data: ImageData, recipe: Any, title: str, settings: Settings,
    terminal: Terminal,
) -> TrainResult:  # fmt: skip
    with step(terminal, title) as update, tempfile.TemporaryDirectory() as folder:
        return train(
            model,
            data,
            recipe=recipe,
            out=folder,
            seed=settings.seed,
            on_progress=lambda now: update(
                now.epoch - 1 + now.step / now.steps,
                now.epochs,
                f"epoch {now.epoch} of {now.epochs}, loss {now.loss:.2f}",
            ),
        )


def _test_images(data: ImageData) -> tuple[Tensor, Tensor]:
    split = data.test
    if not isinstance(split, ArraySplit):
        raise InputError(f"the data set {data.name!r} has no test images in memory")
    return data.normalise(split.images), split.labels


def _block(model: nn.Module, plan: reparam.Plan[Any]) -> BlockRecord | None:
    """The folded block with the most branches, to draw it; None if nothing parallel folds."""
    sums = {
        region.where: (list(module.children()), region.into)
        for region in plan.regions
        if isinstance(module := model.get_submodule(region.where), ParallelSum)
    }
    if not sums:
        return None
    where = max(sums, key=lambda name: len(sums[name][0]))
    branches, into = sums[where]
    size, _, _ = into.partition(" ")  # of "3x3 conv 32->32, padding 1"
    return BlockRecord(
        where=where,
        before=tuple(
            BranchRecord(tuple(map(layer_name, list(branch.children()) or [branch])))
            for branch in branches
        ),
        after=(BranchRecord((f"conv {size.replace('x', '×')}",)),),
        tail=("ReLU",),
        caption=f"The {len(branches)} parallel branches that were trained, and the one layer "
        f"that computes the same: {into}.",
    )


@torch.inference_mode()
def _predictions(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(dim=1) for part in images.split(64)])


def prove(results: Results, forms: Forms, out: Path, terminal: Terminal) -> Results:
    """Compare the forms on every test image, then write them, and compare the ONNX file as well.

    Raises:
        VerificationError: they differ; the page is written and shows where.
    """
    nets = {TRAIN: forms.train, DEPLOY: forms.deploy, RESNET: forms.resnet}
    with step(terminal, "Comparing both forms on every test image") as update:
        found = {key: _predictions(net, forms.images) for key, net in nets.items()}
        update(1, 3, "float32")
        single = _verify(forms, forms.deploy)
        update(2, 3, "float64")
        # Folded and run in float64, what is left is the error of the algebra, not of float32.
        wide, images = copy.deepcopy(forms.train).double(), forms.images[:32].double()
        double = reparam.verify(wide, reparam.fuse(wide, images[:1]), images)
    total, agree = len(forms.labels), int((found[TRAIN] == found[DEPLOY]).sum())
    terminal.done(
        f"Equal predictions on {agree} of {total} test images; largest difference of a logit "
        f"{single.max_abs:.1e}, in float64 {double.max_abs:.1e}"
    )
    names = ("train form", "deploy form")
    results = replace(
        results,
        accuracy=tuple(
            AccuracyRecord(key, int((classes == forms.labels).sum()), total)
            for key, classes in found.items()
        ),
        agreement=(AgreementRecord(TRAIN, DEPLOY, agree, total),),
        checks=(
            _check("logits, float32", names, single, (agree, total)),
            _check("logits, folded and run in float64", names, double),
        ),
    )
    _stop_if_different(results, out)
    results = _export(results, forms, found[TRAIN], out, terminal)
    _stop_if_different(results, out)
    return results


def _verify(forms: Forms, candidate: Callable[..., object]) -> reparam.Verdict:
    """Compare on every test image, with the tolerance that the first of them allow.

    Measuring the rounding error of the train form takes many times longer than the comparison;
    on fewer images it can only come out smaller, and the tolerance stricter.
    """
    part = forms.images[:_CONTROL_IMAGES]
    tolerance = reparam.verify(forms.train, forms.deploy, part).tolerance
    return reparam.verify(forms.train, candidate, forms.images, tolerance=tolerance)


def _check(
    what: str, names: tuple[str, str], verdict: reparam.Verdict, agree: Any = (None, None)
) -> CheckRecord:
    """A verdict; `names` are reference and candidate, `agree` is (equal predictions, images)."""
    tolerance = error(verdict.tolerance)
    return CheckRecord(
        what, *names, verdict.max_abs, verdict.max_rel, verdict.ok, tolerance, *agree
    )


def _export(
    results: Results, forms: Forms, expected: Tensor, out: Path, terminal: Terminal
) -> Results:
    """Write both forms; run the ONNX file on every test image in ONNX Runtime."""
    sample = forms.images[:8]
    with step(terminal, "Exporting, and checking in ONNX Runtime") as update:
        update(0, 3, "weights")
        reparam.export(forms.train, out / "train-form.safetensors", sample, form="train")
        reparam.export(forms.deploy, out / "model.safetensors", sample, reference=forms.train)
        update(1, 3, "ONNX")
        written = reparam.export(forms.deploy, out / "model.onnx", sample, reference=forms.train)
        update(2, 3, "ONNX Runtime on every test image")
        runner = get_engine("onnxruntime").load(out / "model.onnx", EngineSettings())
        verdict = _verify(forms, lambda x: runner.run((x,)))
        found = runner.run((forms.images,))[0].argmax(dim=1)
    total, agree = len(forms.labels), int((found == expected).sum())
    terminal.done(
        f"Wrote {written.path.name} ({megabytes(written.size_bytes)}); in ONNX Runtime equal "
        f"predictions on {agree} of {total} test images"
    )
    engine, correct = engine_label("onnxruntime"), int((found == forms.labels).sum())
    names = ("train form in PyTorch", "deploy form in ONNX Runtime")
    check = _check("logits, the exported file", names, verdict, (agree, total))
    return replace(
        results,
        accuracy=(*results.accuracy, AccuracyRecord(DEPLOY, correct, total, engine)),
        agreement=(*results.agreement, AgreementRecord(TRAIN, DEPLOY, agree, total, engine)),
        checks=(*results.checks, check),
    )


def train_twins(results: Results, settings: Settings, terminal: Terminal) -> Results:
    """Train every form of the deep net on the same few images, and count what is left folded."""
    twins = settings.twins
    data = open_data("digits", image_size=twins.image_size)
    if not isinstance(data.train, ArraySplit):
        raise InputError(f"the data set {data.name!r} has no training images in memory")
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    few = data.train.take(order[: twins.images])
    data = replace(data, train=few, fingerprint=f"{data.fingerprint}[:{len(few)}]")
    found = []
    for form in twins.forms:
        torch.manual_seed(settings.seed)
        net = build_deep(twins, form.branches, len(data.class_names), data.image_shape[0])
        recipe = load_recipe("digits").override(
            epochs=twins.epochs, batch_size=twins.batch_size, optimizer__learning_rate=form.rate
        )
        title = f"Training a deep net on {twins.images} images ({form.label})"
        result = _trained(net, data, recipe, title, settings, terminal)
        role = "comparator" if form.branches == "neither" else "train"
        losses, total = tuple(epoch.train_loss for epoch in result.history), result.images["test"]
        correct = round(result.accuracy * total)
        found.append(
            TwinRecord(form.label, role, form.rate, result.seconds, losses, correct, total)
        )
    folded = reparam.fuse(net.eval())
    layers = sum(isinstance(module, nn.Conv2d) for module in folded.modules())
    record = TwinsRecord(layers, len(data.train), tuple(found), _TWINS_NOTE)
    terminal.done(sentence("twins", record))
    return replace(results, twins=record)


def write(results: Results, out: Path) -> Path:
    """Leave the numbers and the page, which shows what was kept and not what was in memory."""
    files.write_text(out / "results.json", to_json(results))
    return render(out / "results.json", out / "index.html")


def _stop_if_different(results: Results, out: Path) -> None:
    """Show what failed on a page of what there is so far, and go no further."""
    bad: list[CheckRecord] = [check for check in results.checks if not check.ok]
    if bad:
        page = write(replace(results, files={}), out)
        raise VerificationError(
            f"{len(bad)} of {len(results.checks)} checks failed, the first: {bad[0].what}, "
            f"{bad[0].candidate} against {bad[0].reference}: largest difference "
            f"{bad[0].max_abs:.2e}, allowed {bad[0].tolerance}; see {page}"
        )
