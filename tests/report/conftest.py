"""A full set of results, invented for the tests of the page and labelled so."""

from __future__ import annotations

from typing import Any

import pytest

from reparam.deploy.benchmarking import BenchmarkResult, Case, Measurement, Skipped
from reparam.fusing.column import Place
from reparam.report.benchmarks import model_details
from reparam.report.results import (
    AccuracyRecord,
    AgreementRecord,
    BlockRecord,
    BranchRecord,
    CheckRecord,
    CostRecord,
    DataRecord,
    LatencyRecord,
    MemoryRecord,
    ModelRecord,
    PlanRecord,
    RefusalRecord,
    RegionRecord,
    Results,
    TimingRecord,
    TraceRecord,
    TrainingRecord,
    TwinRecord,
    TwinsRecord,
)


def spread(middle: float) -> tuple[float, ...]:
    """Eleven times around `middle`."""
    return tuple(middle * (1 + 0.01 * step) for step in range(-5, 6))


def regions(number: int) -> tuple[RegionRecord, ...]:
    return tuple(
        RegionRecord(
            where=f"stages.{index // 4}.{index % 4}",
            what="3x3 conv + 1x1 conv + 3 batch norm + 2 sum",
            into="3x3 conv 32->32, padding 1",
            before=CostRecord(7, 10_432 * (index + 1), 10_340.0 * (index + 1)),
            after=CostRecord(1, 9_248 * (index + 1), 9_216.0 * (index + 1)),
        )
        for index in range(number)
    )


def block() -> BlockRecord:
    return BlockRecord(
        where="stages.0.1",
        before=(
            BranchRecord(("conv 3×3", "BN")),
            BranchRecord(("conv 1×1", "BN")),
            BranchRecord(("BN",)),
        ),
        after=(BranchRecord(("conv 3×3",)),),
        tail=("ReLU",),
        caption="Three parallel branches for training; one 3×3 convolution computes the same.",
    )


def memory() -> MemoryRecord:
    size = 131_072
    return MemoryRecord(
        title="One block, from its input to its output",
        scope="in a block",
        input_shape=(1, 32, 32, 32),
        input_bytes=size,
        traces=(
            TraceRecord(
                "train",
                "Multi-branch, train form",
                ("conv 3×3", "BN", "conv 1×1", "BN", "add", "BN", "add", "ReLU"),
                tuple(n * size for n in (2, 3, 3, 4, 4, 3, 3, 2)),
                4 * size,
            ),
            TraceRecord(
                "resnet",
                "Residual block",
                ("conv 3×3", "BN", "ReLU", "conv 3×3", "BN", "add", "ReLU"),
                tuple(n * size for n in (2, 3, 3, 3, 3, 3, 2)),
                3 * size,
            ),
            TraceRecord(
                "deploy", "Single path", ("conv 3×3", "ReLU"), (2 * size, 2 * size), 2 * size
            ),
        ),
    )


def latency() -> tuple[LatencyRecord, ...]:
    small = LatencyRecord(
        title="The trained nets",
        input_shape=(1, 3, 32, 32),
        threads=2,
        rows=(
            TimingRecord("train", "eager", spread(4.1)),
            TimingRecord("deploy", "eager", spread(2.0)),
            TimingRecord("resnet", "eager", spread(2.6)),
            TimingRecord("train", "ONNX Runtime", spread(1.1)),
            TimingRecord("deploy", "ONNX Runtime", spread(0.8)),
            TimingRecord("resnet", "ONNX Runtime", spread(0.7)),
        ),
    )
    return (small,)


@pytest.fixture
def results() -> Results:
    """Invented numbers: the deploy form beats the ResNet in eager and loses in ONNX Runtime."""
    return Results(
        title="Invented results for a test",
        created="2026-01-01 12:00 UTC",
        command="reparam demo",
        models=(
            ModelRecord("train", "RepVGG, train form", "train", 22, 33, 812_345, 95_000_000),
            ModelRecord("deploy", "RepVGG, deploy form", "deploy", 11, 0, 730_000, 86_000_000),
            ModelRecord(
                "resnet", "ResNet of equal size", "comparator", 13, 13, 741_000, 88_000_000
            ),
        ),
        data=DataRecord("handwritten digits", 1437, 360, 10, (3, 32, 32)),
        training=(
            TrainingRecord("train", 12, 41.0, (1.2, 0.4, 0.1)),
            TrainingRecord("resnet", 12, 33.0, (1.1, 0.3, 0.2)),
        ),
        accuracy=(
            AccuracyRecord("train", 356, 360),
            AccuracyRecord("deploy", 356, 360),
            AccuracyRecord("deploy", 356, 360, "ONNX Runtime"),
            AccuracyRecord("resnet", 355, 360),
        ),
        twins=TwinsRecord(
            22,
            400,
            (
                TwinRecord("Plain", "comparator", 0.025, 4.0, (2.1, 1.2), 300, 360),
                TwinRecord("With branches", "train", 0.1, 6.0, (1.8, 0.7), 340, 360),
            ),
            "Invented.",
        ),
        agreement=(
            AgreementRecord("train", "deploy", 360, 360),
            AgreementRecord("train", "deploy", 360, 360, "ONNX Runtime"),
        ),
        plan=PlanRecord(
            "train",
            regions(11),
            (RefusalRecord("pool", "average pooling", "alone <it> costs less"),),
            (
                Place("stages.*", 11, "3x3 conv + 1x1 conv + 2 adds", 9, "3x3 conv", ""),
                Place("pool", 1, "average pooling", 1, "", "alone <it> costs less"),
                Place("head", 1, "linear 64->10", 1, "", ""),
            ),
        ),
        block=block(),
        checks=(
            CheckRecord(
                "logits", "train form", "deploy form", 2.1e-6, 3.4e-7, True, "1e-4", 360, 360
            ),
            CheckRecord(
                "logits, float64", "train form", "deploy form", 3e-15, 4e-16, True, "1e-12"
            ),
        ),
        latency=latency(),
        memory=(memory(),),
        files={"model.onnx": "deploy form", "results.json": "every number on this page"},
        environment={"torch": "2.14.1", "CPU": "an invented CPU", "threads": "2"},
    )


MILLISECONDS = {
    "repvgg_a0": {"eager": 10.0, "onnxruntime": 6.0},
    "repvgg_a2": {"eager": 15.0, "onnxruntime": 22.0},
    "torchvision:resnet18": {"eager": 16.0, "onnxruntime": 8.0},
    "torchvision:resnet50": {"eager": 35.0, "onnxruntime": 18.0},
}


def measurement(case: Case, middle: float) -> Measurement:
    rounds = tuple((1e-3 * time,) for time in spread(middle))
    return Measurement(case, rounds)


@pytest.fixture
def benchmark() -> BenchmarkResult:
    """Invented times: in eager single path wins both pairs, in ONNX Runtime one of two."""
    return BenchmarkResult(
        measurements=tuple(
            measurement(Case(f"{name}, deploy form", engine), middle)
            for name, times in MILLISECONDS.items()
            for engine, middle in times.items()
        ),
        skipped=(Skipped(Case("repvgg_a0, deploy form", "ncnn"), "an <invented> reason"),),
        environment={"cpu": "an invented CPU", "cores": 2, "torch_threads": 2,
                     "versions": {"torch": "2.14.1"}, "memory_bytes": 8 * 2**30},
        shapes=((3, 224, 224),),
        settings={
            "title": "Invented benchmark",
            "models": {
                f"{name}, deploy form": model_details(name, "deploy", parameters=8_300_000)
                for name in MILLISECONDS
            },
        },
    )  # fmt: skip


@pytest.fixture
def forms() -> Any:
    """A model in both forms, at an input size that no published accuracy is for."""
    names = {"repvgg_a0, train form": 8.0, "repvgg_a0, deploy form": 4.0}
    return BenchmarkResult(
        measurements=tuple(measurement(Case(n, "eager"), time) for n, time in names.items()),
        shapes=((3, 32, 32),),
        settings={
            "models": {
                name: model_details("repvgg_a0", name.split()[1], convolutions=count, norms=0)
                for name, count in zip(names, (44, 22), strict=True)
            }
        },
    )
