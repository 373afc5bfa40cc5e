"""Accuracy against *deployed* latency, both measured here: re-parameterized nets and ResNets.

    python benchmarks/cifar_tradeoff.py --latency   # times all nets: on a quiet machine
    python benchmarks/cifar_tradeoff.py --threads 1 # searches, trains, judges in eight bits
    python benchmarks/cifar_tradeoff.py --write     # only the tables and the picture
    python benchmarks/cifar_tradeoff.py --check     # are they up to date?

The question is the RepVGG article's: is there a re-parameterized net as accurate as ResNet-20 or
ResNet-32 that takes half the time? Times do not depend on weights, so all candidates are timed
first, and only those that take half a ResNet's time or less, in ONNX Runtime and in OpenVINO, one
image a call and 32, are worth training. Each of these is trained for a few epochs and judged on
training images that were held out; the best two for each ResNet are trained in full by the ResNets'
recipe, and the better of them, on the held-out images again, with every seed. The test images are
seen at the end of a run, and by its quantized files. Part of the training images serve: it is a
budget of about two hours of one core.

Everything is in benchmarks/results/cifar_tradeoff.json; what is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cifar_common import RESULTS, Records, forward_macs, open_parts, parser, run
from cifar_nets import ChannelsLast, repvgg, resnet
from cifar_tradeoff_tables import BATCHES, ENGINES, RESNETS, half_of, write
from torch import nn

import reparam
from reparam import models
from reparam.lab.data import ImageData
from reparam.lab.training import Recipe, load_recipe
from reparam.lab.training.callbacks import RunFiles

TRAIN_IMAGES, HELD_OUT = 10_000, 2_000
EPOCHS, SEARCH_EPOCHS, SEARCH_SEED = 30, 6, 100
BEST = 2
"""Candidates that are trained in full for each ResNet, the better of them with every seed."""
SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}


def vgg(*depths: int, widths: tuple[int, ...], stem_stride: int = 2) -> nn.Module:
    """Return a RepVGG; with a stem of stride 2 it begins at 16 pixels."""
    return in_channels_last(repvgg(depths, widths, stem_stride=stem_stride))


def mobile(*depths: int, widths: tuple[int, ...], stem_stride: int) -> nn.Module:
    """Return a MobileOne of two depthwise kernels."""
    spec = models.MobileOneSpec(
        depths=depths,
        widths=widths,
        stem_width=widths[0] // 2,
        stem_stride=stem_stride,
        strides=(1, *(2 for _ in depths[1:])),
        branches=models.BranchSpec(kernels=2),
    )
    return in_channels_last(models.MobileOne(spec, num_classes=10))


def in_channels_last(net: models.StagedNet) -> nn.Module:
    """Return a net that goes on in channels_last behind its stem."""
    net.stages = nn.Sequential(ChannelsLast(), *net.stages)
    return net


def residual(units: int) -> nn.Module:
    """Return the ResNet of `6 units + 2` layers for CIFAR-10, in channels_last as well."""
    net = resnet((units,) * 3, (16, 32, 64))
    return nn.Sequential(*net[:3], ChannelsLast(), *net[3:])


CANDIDATES: dict[str, Callable[[], nn.Module]] = {
    "FastNet 16-48-96": partial(models.FastNet, (16, 48, 96)),
    "FastNet 16-64-96": partial(models.FastNet, (16, 64, 96)),
    "FastNet 16-64-128": partial(models.FastNet, (16, 64, 128)),
    "FastNet 16-64-192": partial(models.FastNet, (16, 64, 192)),
    "FastNet 16-96-128": partial(models.FastNet, (16, 96, 128)),
    "FastNet 24-64-96": partial(models.FastNet, (24, 64, 96)),
    "FastNet 32-96-96": partial(models.FastNet, (32, 96, 96)),
    "FastNet 32-96-128": partial(models.FastNet, (32, 96, 128)),
    "RepVGG 1-3-3": partial(vgg, 1, 3, 3, widths=(24, 64, 128)),
    "RepVGG 2-3-3": partial(vgg, 2, 3, 3, widths=(32, 64, 128)),
    "RepVGG 3-3-3": partial(vgg, 3, 3, 3, widths=(32, 64, 128)),
    "RepVGG 2-2-2, whole size": partial(vgg, 2, 2, 2, widths=(16, 48, 96), stem_stride=1),
    "RepVGG 3-3-3, whole size": partial(vgg, 3, 3, 3, widths=(16, 32, 64), stem_stride=1),
    "RepVGG 2-3-2, whole size": partial(vgg, 2, 3, 2, widths=(16, 32, 96), stem_stride=1),
    "RepVGG 3-4-4": partial(vgg, 3, 4, 4, widths=(40, 80, 160)),
    "MobileOne 3-3-3": partial(mobile, 3, 3, 3, widths=(32, 64, 128), stem_stride=1),
    "MobileOne 3-4-3": partial(mobile, 3, 4, 3, widths=(40, 96, 192), stem_stride=1),
    "MobileOne 4-4-4, early stride": partial(mobile, 4, 4, 4, widths=(64, 128, 256), stem_stride=2),
}
NETS = {name: partial(residual, (int(name[7:]) - 2) // 6) for name in RESNETS} | CANDIDATES


def how(epochs: int) -> Recipe:
    """Return the recipe of all nets: the usual one of ResNets, smaller images in the first half."""
    return load_recipe("cifar10-fast").override(
        summary="Nets of both kinds",
        model="",
        precision="bf16",
        epochs=epochs,
        batch_size=64,
        label_smoothing=0.1,
        optimizer__learning_rate=0.1,
        optimizer__momentum=0.9,
        optimizer__weight_decay=5e-4,
        optimizer__norm_bias_rate=1.0,
        ema__decay=0.0,
    )


def main() -> int:
    options = parser(__doc__, "cifar_tradeoff")
    options.add_argument("--latency", action="store_true", help="time the nets, and stop")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--write", action="store_true", help="train and measure nothing")
    options.add_argument("--check", action="store_true", help="only compare the page")
    options = options.parse_args()
    if options.check:
        return int(not write(json.loads(options.out.read_text(encoding="utf-8")), check=True))
    torch.set_num_threads(options.threads)
    records = Records(
        options.out,
        {
            "recipe": how(options.epochs or EPOCHS).to_dict(),
            "train_images": options.images or TRAIN_IMAGES,
            "held_out_images": HELD_OUT,
            "search_epochs": SEARCH_EPOCHS,
        },
    )
    if options.latency:
        measure(records, options)
    elif not options.write:
        train_all(records, options)
    if options.out.parent == RESULTS:
        write(records.content, check=False)
    return 0


def measure(records: Records, options: argparse.Namespace) -> None:
    """Time the deployed files of all nets in turn, in float and in eight bits.

    The fastest call of each turn counts, for others may share the machine.
    """
    folder = options.runs / "files"
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    nets, rows = {}, []
    for name, make in NETS.items():
        torch.manual_seed(0)
        fused = reparam.fuse(make().eval())
        nets[name] = {
            "macs": forward_macs(fused, (3, 32, 32)),
            "parameters": sum(p.numel() for p in fused.parameters()),
        }
        for suffix in SUFFIXES.values():
            write_files(fused, folder / f"{name}-float{suffix}", random)
    for engine, suffix in SUFFIXES.items():
        for kind in ("float", "int8"):
            timed = reparam.benchmark(
                {name: folder / f"{name}-{kind}{suffix}" for name in NETS},
                random[:1],
                engines=(engine,),
                batches=BATCHES,
                threads=(options.threads,),
                rounds=options.rounds,
            )
            rows += [
                {
                    "net": each.case.model,
                    "engine": engine,
                    "kind": kind,
                    "batch": each.case.batch,
                    "ms": [1e3 * min(calls) for calls in each.samples],
                }
                for each in timed.measurements
            ]
            print(f"{engine} {kind}: {len(timed.measurements)} cases", flush=True)
    records.set(nets=nets, latency=rows, threads_of_latency=options.threads)


def write_files(fused: nn.Module, path: Any, images: torch.Tensor) -> None:
    """Write a net in float and in eight bits, for any number of images a call."""
    if not path.exists():
        reparam.export(fused, path, images[:2], dynamic="batch")
    small = path.with_name(path.name.replace("-float", "-int8"))
    if not small.exists():
        reparam.quantize(fused, small, images, dynamic="batch", diagnose=False)


def train_all(records: Records, options: argparse.Namespace) -> None:
    """Train what is missing: seed by seed, so that whatever is cut short has compared something."""
    data = open_parts(options, TRAIN_IMAGES, HELD_OUT)
    fast = {name: half_of(records.content, name) for name in RESNETS}
    for name in CANDIDATES:
        if any(name in found for found in fast.values()):
            search(records, name, data, options)
    for position, seed in enumerate(options.seeds):
        for other in RESNETS:
            rivals = best(records.content, fast[other])
            if position:
                first = options.seeds[0]
                rivals = [
                    max(rivals, key=lambda name: held_out(records.content, f"{name}/{first}"))
                ]
            for name in (other, *rivals):
                train_net(records, name, seed, data, options)
                judge(records, name, seed, data, options)


def search(records: Records, name: str, data: ImageData, options: argparse.Namespace) -> None:
    """Train a candidate for a few epochs; no test image is seen."""
    no_test = ImageData(**{**vars(data), "test": None})
    recipe = how(min(SEARCH_EPOCHS, options.epochs or SEARCH_EPOCHS))
    run(records, f"search {name}/{SEARCH_SEED}", NETS[name], no_test, recipe, options,
        seed=SEARCH_SEED)  # fmt: skip


def best(content: dict[str, Any], names: list[str]) -> list[str]:
    """Return the candidates that did best on the held-out images."""
    return sorted(names, key=lambda n: -held_out(content, f"search {n}/{SEARCH_SEED}"))[:BEST]


def held_out(content: dict[str, Any], run: str) -> float:
    """Return the accuracy of a run on images that it was not trained on, nor tested on."""
    return float(content["runs"][run]["curve"][-1]["validation_accuracy"])


def train_net(
    records: Records, name: str, seed: int, data: ImageData, options: argparse.Namespace
) -> None:
    """Train a net with one seed, unless it was done already."""
    recipe = how(options.epochs or EPOCHS)
    run(records, f"{name}/{seed}", NETS[name], data, recipe, options, seed=seed)


def judge(
    records: Records, name: str, seed: int, data: ImageData, options: argparse.Namespace
) -> None:
    """Quantize a trained net for both engines, and judge the files on the test images."""
    key = f"{name}/{seed}"
    record = records.content["runs"][key]
    if "int8" in record:
        return
    net = NETS[name]()
    reparam.load_checkpoint(net, RunFiles(options.runs / key.replace("/", "-")).last)
    fused = reparam.fuse(net.eval())
    found = {}
    for engine in ENGINES:
        path = options.runs / "files" / f"{name}-{seed}-int8{SUFFIXES[engine]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        result = reparam.quantize(fused, path, data, dynamic="batch", diagnose=False)
        found[engine] = {k: v for k, v in result.score.as_dict().items() if k != "on"}
        print(f"{key} {engine} int8: {result.score}", flush=True)
    records.put(key, record | {"int8": found})


if __name__ == "__main__":
    sys.exit(main())
