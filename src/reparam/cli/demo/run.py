"""The story, step by step; every step leaves a record, and the page is drawn from the records."""

from __future__ import annotations

import copy
import datetime as dt
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import reparam
from reparam._support import files
from reparam.cli.demo import measure, records
from reparam.cli.demo.nets import build_repvgg, build_resnet
from reparam.cli.demo.reporter import Reporter
from reparam.cli.demo.settings import Settings
from reparam.cli.demo.twins import train_twins
from reparam.deploy.engines import Settings as EngineSettings
from reparam.deploy.engines import get_engine
from reparam.errors import InputError, VerificationError
from reparam.lab.data import ArraySplit, ImageData, open_data
from reparam.lab.training import Progress, TrainResult, load_recipe, train
from reparam.report import render, to_json
from reparam.report.recording import plan_record
from reparam.report.results import (
    AccuracyRecord,
    AgreementRecord,
    CheckRecord,
    DataRecord,
    Results,
    TrainingRecord,
)

__all__ = ["Outcome", "run"]

_CONTROL_IMAGES = 64

TRAIN, DEPLOY, RESNET = "train", "deploy", "resnet"
_FILES = {
    "model.safetensors": "weights of the deploy form",
    "model.onnx": "the deploy form for any ONNX engine, checked in ONNX Runtime",
    "train-form.safetensors": "weights of the train form, to train on",
    "results.json": "every number on this page, raw timings included",
}


@dataclass(frozen=True)
class Outcome:
    """What the story leaves: the records, and where the files are."""

    results: Results
    folder: Path
    page: Path


@dataclass(frozen=True, eq=False)
class _Forms:
    """The three nets, and the images that nobody trained on."""

    train: nn.Module
    deploy: nn.Module
    resnet: nn.Module
    images: Tensor
    labels: Tensor


def run(out: Path, settings: Settings, reporter: Reporter, *, command: str) -> Outcome:
    """Tell the whole story and leave it in the folder `out`.

    Raises:
        InputError: `out` cannot be written.
        VerificationError: the forms disagree; the page is written and shows where.
    """
    _make_folder(out)
    data = open_data("digits", image_size=settings.image_size)
    results, forms = _train_and_fold(data, settings, reporter)
    results = replace(results, command=command, files=_FILES)
    results = _prove(results, forms, reporter)
    _stop_if_different(results, out)
    results = _export(results, forms, out, reporter)
    results = train_twins(results, settings, reporter)
    results = measure.measure(
        results, (forms.train, forms.deploy, forms.resnet), settings, reporter
    )
    _stop_if_different(results, out)
    return _write(results, out)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {out}: {error.strerror}; choose another with --out"
        ) from error


def _train_and_fold(
    data: ImageData, settings: Settings, reporter: Reporter
) -> tuple[Results, _Forms]:
    channels, classes = data.image_shape[0], len(data.class_names)
    torch.manual_seed(settings.seed)
    repvgg = build_repvgg(settings, classes, channels)
    resnet = build_resnet(settings, classes, channels)
    trained = _trained(repvgg, data, settings, reporter, "the multi-branch RepVGG")
    compared = _trained(resnet, data, settings, reporter, "a ResNet of about its size")
    images, labels = _test_images(data)
    with reporter.step("Planning and folding"):
        plan = reparam.plan(trained.model, images[:1])
        forms = _Forms(trained.model, plan.apply(), compared.model, images, labels)
    models = (
        records.model_record(TRAIN, "RepVGG, train form", "train", forms.train, images[:1]),
        records.model_record(DEPLOY, "RepVGG, deploy form", "deploy", forms.deploy, images[:1]),
        records.model_record(RESNET, "ResNet", "comparator", forms.resnet, images[:1]),
    )
    reporter.outcome(
        f"Folded {len(plan.regions)} regions: {models[0].convolutions} convolutions and "
        f"{models[0].norms} batch norms became {models[1].convolutions} convolutions"
    )
    title = "reparam demo: a RepVGG trained wide and deployed straight"
    return Results(
        title=f"{title} ({settings.warning})" if settings.warning else title,
        created=f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        models=models,
        data=DataRecord(
            "scikit-learn's handwritten digits",
            len(data.train),
            len(labels),
            classes,
            data.image_shape,
        ),
        training=(_training(TRAIN, trained), _training(RESNET, compared)),
        plan=plan_record(TRAIN, plan),
        block=records.block_record(forms.train, plan),
    ), forms


def _trained(
    model: nn.Module, data: ImageData, settings: Settings, reporter: Reporter, name: str
) -> TrainResult:
    recipe = replace(load_recipe("digits"), epochs=settings.epochs)
    with reporter.step(f"Training {name}") as update, tempfile.TemporaryDirectory() as folder:

        def tell(progress: Progress) -> None:
            done = progress.epoch - 1 + progress.step / progress.steps
            detail = f"epoch {progress.epoch} of {progress.epochs}, loss {progress.loss:.2f}"
            update(done, progress.epochs, detail)

        result = train(model, data, recipe=recipe, out=folder, seed=settings.seed, on_progress=tell)
    reporter.outcome(
        f"Trained {name}: {100 * result.accuracy:.1f} % of the test images right "
        f"after {settings.epochs} epochs ({result.seconds:.0f} s)"
    )
    return result


def _training(key: str, result: TrainResult) -> TrainingRecord:
    losses = tuple(record.train_loss for record in result.history)
    return TrainingRecord(key, len(result.history), result.seconds, losses)


def _test_images(data: ImageData) -> tuple[Tensor, Tensor]:
    split = data.test
    if not isinstance(split, ArraySplit):
        raise InputError(f"the data set {data.name!r} has no test images in memory")
    return data.normalise(split.images), split.labels


@torch.inference_mode()
def _predictions(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(dim=1) for part in images.split(64)])


def _prove(results: Results, forms: _Forms, reporter: Reporter) -> Results:
    """Compare the forms on every test image, in float32 and in float64."""
    with reporter.step("Comparing both forms on every test image") as update:
        predictions = {
            key: _predictions(model, forms.images)
            for key, model in ((TRAIN, forms.train), (DEPLOY, forms.deploy), (RESNET, forms.resnet))
        }
        total = len(forms.labels)
        agree = int((predictions[TRAIN] == predictions[DEPLOY]).sum())
        update(1, 3, "float32")
        single = _verify(forms, forms.deploy)
        update(2, 3, "float64")
        double = _verify_in_float64(forms)
    names = ("train form", "deploy form")
    reporter.outcome(
        f"Equal predictions on {agree} of {total} test images; largest difference of a logit "
        f"{single.max_abs:.1e}, in float64 {double.max_abs:.1e}"
    )
    return replace(
        results,
        accuracy=tuple(
            AccuracyRecord(key, int((found == forms.labels).sum()), total)
            for key, found in predictions.items()
        ),
        agreement=(AgreementRecord(TRAIN, DEPLOY, agree, total),),
        checks=(
            records.check_record("logits, float32", names, single, (agree, total)),
            records.check_record("logits, folded and run in float64", names, double, None),
        ),
    )


def _verify(forms: _Forms, candidate: Callable[..., object]) -> reparam.Verdict:
    """Compare on every test image, with the tolerance that the first of them allow.

    Measuring the rounding error of the train form takes many times longer than the comparison;
    on fewer images it can only come out smaller, and the tolerance stricter.
    """
    part = forms.images[:_CONTROL_IMAGES]
    tolerance = reparam.verify(forms.train, forms.deploy, part).tolerance
    return reparam.verify(forms.train, candidate, forms.images, tolerance=tolerance)


def _verify_in_float64(forms: _Forms) -> reparam.Verdict:
    """Fold and run in float64, so that what is left is the error of the algebra, not of float32."""
    double = copy.deepcopy(forms.train).double()
    images = forms.images[:32].double()
    return reparam.verify(double, reparam.fuse(double, images[:1]), images)


def _export(results: Results, forms: _Forms, out: Path, reporter: Reporter) -> Results:
    """Write both forms; run the ONNX file on every test image in ONNX Runtime."""
    sample = forms.images[:8]
    with reporter.step("Exporting, and checking in ONNX Runtime") as update:
        update(0, 3, "weights")
        reparam.export(forms.train, out / "train-form.safetensors", sample, form="train")
        reparam.export(forms.deploy, out / "model.safetensors", sample, reference=forms.train)
        update(1, 3, "ONNX")
        written = reparam.export(forms.deploy, out / "model.onnx", sample, reference=forms.train)
        update(2, 3, "ONNX Runtime on every test image")
        runner = get_engine("onnxruntime").load(out / "model.onnx", EngineSettings())
        verdict = _verify(forms, lambda x: runner.run((x,)))
        found = runner.run((forms.images,))[0].argmax(dim=1)
    total = len(forms.labels)
    agree = int((found == _predictions(forms.train, forms.images)).sum())
    reporter.outcome(
        f"Wrote {written.path.name} ({written.size_bytes / 1e6:.1f} MB); in ONNX Runtime equal "
        f"predictions on {agree} of {total} test images"
    )
    engine = records.ENGINES["onnxruntime"]
    correct = int((found == forms.labels).sum())
    names = ("train form in PyTorch", "deploy form in ONNX Runtime")
    return replace(
        results,
        accuracy=(*results.accuracy, AccuracyRecord(DEPLOY, correct, total, engine)),
        agreement=(*results.agreement, AgreementRecord(TRAIN, DEPLOY, agree, total, engine)),
        checks=(
            *results.checks,
            records.check_record("logits, the exported file", names, verdict, (agree, total)),
        ),
    )


def _write(results: Results, out: Path) -> Outcome:
    files.write_text(out / "results.json", to_json(results))
    # From the stored file, so that the page shows what was kept and not what was in memory.
    return Outcome(results, out, render(out / "results.json", out / "index.html"))


def _stop_if_different(results: Results, out: Path) -> None:
    """Show what failed on a page of what there is so far, and go no further."""
    bad: list[CheckRecord] = [check for check in results.checks if not check.ok]
    if bad:
        page = _write(replace(results, files={}), out).page
        raise VerificationError(
            f"{len(bad)} of {len(results.checks)} checks failed, the first: {bad[0].what}, "
            f"{bad[0].candidate} against {bad[0].reference}: largest difference "
            f"{bad[0].max_abs:.2e}, allowed {bad[0].tolerance}; see {page}"
        )
