"""The nets of benchmarks/tradeoff.py made ready once, and measured slice by slice.

A slice is one engine, one precision and one batch: all nets take turns in it, and it is over in
about three minutes, so that it can be run while a machine does nothing else. What is ready or
measured lies under runs/tradeoff/ and is not made again.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tables import ROOT
from torch import nn

import reparam
from reparam._support.files import write_text
from reparam.cli.bench.measuring import at_published_size
from reparam.cli.targets import load_model
from reparam.cli.telling import counted
from reparam.deploy.benchmarking import BenchmarkResult, Case
from reparam.deploy.benchmarking.results import Skipped
from reparam.deploy.engines import Settings, get_engine
from reparam.deploy.engines.ncnn import write_ncnn
from reparam.deploy.engines.ort import write_onnx
from reparam.deploy.engines.program import Conversion
from reparam.errors import ExportError
from reparam.report.benchmarks import model_details
from reparam.report.published import INPUT_SIZE

__all__ = ["MODELS", "SLICES", "Slice", "measure", "merged", "prepare"]

RUNS = ROOT / "runs" / "tradeoff"

PAPER = (
    "repvgg_a0", "repvgg_a1", "repvgg_a2",
    "torchvision:resnet18", "torchvision:resnet34", "torchvision:resnet50",
)  # fmt: skip
"""Pairs of the RepVGG paper, which it measured on a GPU at batch 128."""

MODELS = (
    *PAPER,
    "mobileone_s0", "mobileone_s1", "mobileone_s2", "mobileone_s3",
    "timm:repvit_m0_9", "torchvision:resnet101", "timm:fastvit_t8",
    "torchvision:efficientnet_b0", "torchvision:mobilenet_v3_large", "torchvision:regnet_y_800mf",
    "timm:repghostnet_100", "timm:resnet50.a1_in1k", "timm:repvit_m1_1", "timm:fastvit_sa12",
    "timm:repvit_m1_0", "timm:fastvit_t12", "mobileone_s4", "timm:repvit_m1_5", "timm:fastvit_s12",
    "torchvision:regnet_y_400mf", "timm:repghostnet_130",
)  # fmt: skip

BATCHED = MODELS[:18]
"""Those that are measured at 16 images a call, too, where all take sixteen times as long."""

INT8 = (*PAPER, "mobileone_s0", "mobileone_s1", "mobileone_s2", "timm:repvit_m0_9")


@dataclass(frozen=True)
class Slice:
    """What is measured in one go."""

    engine: str
    precision: str
    batch: int
    models: tuple[str, ...] = MODELS

    @property
    def name(self) -> str:
        return f"{self.engine}-{self.precision}-{self.batch}"

    @property
    def path(self) -> Path:
        return RUNS / f"{self.name}.json"


SLICES = (
    Slice("eager", "fp32", 1),
    Slice("onnxruntime", "fp32", 1),
    Slice("openvino", "fp32", 1),
    Slice("openvino", "bf16", 1),
    Slice("ncnn", "fp32", 1),
    Slice("openvino", "int8", 1, INT8),
    Slice("eager", "fp32", 16, BATCHED),
    Slice("onnxruntime", "fp32", 16, BATCHED),
    Slice("openvino", "fp32", 16, BATCHED),
    Slice("openvino", "bf16", 16, BATCHED),
    Slice("eager", "fp32", 64, PAPER),
)


def prepare(name: str) -> None:
    """Write a net's deploy form in the formats of the engines, and count it."""
    done = _details(name)
    if done.exists():
        return
    start = time.perf_counter()
    RUNS.mkdir(parents=True, exist_ok=True)
    fused, sample = _fused(name)
    for batch in (1, 16) if name in BATCHED else (1,):
        images = sample.expand(batch, -1, -1, -1).contiguous()
        write_onnx(Conversion(fused, (images,)), _file(name, f"{batch}.onnx"))
    write_ncnn(Conversion(fused, (sample,)), _file(name, "1.param"))
    details = model_details(name, "deploy", **counted(fused, sample))
    write_text(done, json.dumps(details, indent=1) + "\n")
    print(f"{name}: ready after {time.perf_counter() - start:.0f} s", flush=True)


def _fused(name: str) -> tuple[nn.Module, torch.Tensor]:
    sample = torch.randn(1, 3, INPUT_SIZE, INPUT_SIZE, generator=torch.Generator().manual_seed(0))
    model = at_published_size(name, load_model(name).model, sample)
    return reparam.fuse(model, sample), sample


def _write_int8(name: str) -> None:
    """Quantize for OpenVINO: weights are random, so eight bits are of use for times alone."""
    path = _file(name, "int8.xml")
    if path.exists():
        return
    import nncf
    import openvino

    random = torch.Generator().manual_seed(1)
    images = [torch.randn(1, 3, INPUT_SIZE, INPUT_SIZE, generator=random).numpy() for _ in range(2)]
    net = openvino.Core().read_model(_file(name, "1.onnx"))
    small = nncf.quantize(net, nncf.Dataset(images), subset_size=len(images))
    openvino.save_model(small, path)


def _details(name: str) -> Path:
    return _file(name, "details.json")


def _file(name: str, ending: str) -> Path:
    return RUNS / f"{name.replace(':', '-')}-{ending}"


def measure(part: Slice, threads: int, seconds: float) -> None:
    """Measure a slice and store it, unless that was done before."""
    if part.path.exists():
        return
    if part.precision == "int8":
        for name in part.models:
            _write_int8(name)
    start = time.perf_counter()
    torch.set_num_threads(threads)
    endings = {"onnxruntime": f"{part.batch}.onnx", "openvino": f"{part.batch}.onnx"}
    endings["ncnn"] = "1.param"
    ending = "int8.xml" if part.precision == "int8" else endings.get(part.engine)
    models: dict[str, Any] = {
        f"{name}, deploy form": _fused(name)[0] if ending is None else _file(name, ending)
        for name in part.models
    }
    refused = _refused(part, models) if part.engine == "ncnn" else ()
    for each in refused:
        del models[each.case.model]
    result = reparam.benchmark(
        models,
        torch.randn(1, 3, INPUT_SIZE, INPUT_SIZE, generator=torch.Generator().manual_seed(0)),
        engines=(part.engine,),
        precisions=("fp32" if part.precision == "int8" else part.precision,),
        batches=(part.batch,),
        threads=(threads,),
        warmup=1,
        seconds=max(1.0, seconds - (time.perf_counter() - start)),
    )
    measurements = tuple(
        replace(each, case=replace(each.case, precision=part.precision))
        for each in result.measurements
    )
    skipped = (*result.skipped, *refused)
    replace(result, measurements=measurements, skipped=skipped).save(part.path)
    print(f"{part.name}: {result.settings['rounds']} rounds", flush=True)


def _refused(part: Slice, models: dict[str, Any]) -> tuple[Skipped, ...]:
    """Nets whose files the engine does not load, and what it says."""
    refused = []
    for name, path in models.items():
        try:
            get_engine(part.engine).load(path, Settings(precision=part.precision))
        except ExportError as error:
            case = Case(name, part.engine, part.precision, part.batch)
            refused.append(Skipped(case, str(error)))
    return tuple(refused)


def merged() -> BenchmarkResult | None:
    """Put the slices that there are into one result; None without any."""
    parts = [part for part in SLICES if part.path.exists()]
    if not parts:
        return None
    results = [BenchmarkResult.load(part.path) for part in parts]
    models = {f"{name}, deploy form": json.loads(_details(name).read_text()) for name in MODELS}
    settings = {
        "title": "Accuracy against latency: re-parameterized nets and others",
        "command": "python benchmarks/tradeoff.py",
        "models": models,
        "slices": {part.name: result.settings for part, result in zip(parts, results, strict=True)},
    }
    newest = max(results, key=lambda result: len(result.environment))  # later versions tell more
    return replace(
        newest,
        measurements=tuple(each for result in results for each in result.measurements),
        skipped=tuple(each for result in results for each in result.skipped),
        settings=settings,
        process_peak_bytes=None,
    )
