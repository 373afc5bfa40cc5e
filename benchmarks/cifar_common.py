"""What the CIFAR-10 experiments share: data, resumable runs, and records.

Every run keeps its checkpoints under ``runs/`` and goes on from them when the script is started
again after it was stopped; what is finished is in the script's JSON file and is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from reparam import models
from reparam._files import write_text
from reparam.benchmarking.environment import describe_environment
from reparam.data import ArraySplit, ImageData, open_data
from reparam.training import Hardware, Progress, Recipe, TrainResult, train
from reparam.training.result import EpochRecord, WrapOptimizer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA_NOTE = "CIFAR-10 (JPEG): re-encoded, so a little below the original arrays"


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return the options that all scripts have."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = ROOT.parent / "shared" / "data"
    options.add_argument("--train", type=Path, default=data / "cifar10-train.zip")
    options.add_argument("--test", type=Path, default=data / "cifar10-test.zip")
    options.add_argument("--runs", type=Path, default=ROOT / "runs" / name)
    options.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--epochs", type=int, help="fewer or more than the script's own")
    options.add_argument("--images", type=int, help="train on so many images only, to try it out")
    return options


def open_cifar(options: argparse.Namespace) -> ImageData:
    """Open the training zip with the test zip as validation data: no choice depends on it."""
    torch.set_num_threads(options.threads)
    data = open_data(options.train, validation=options.test)
    if options.images is None:
        return data
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    assert isinstance(data.train, ArraySplit)
    assert isinstance(data.validation, ArraySplit)
    return ImageData(
        **{
            **vars(data),
            "train": data.train.take(chosen[: options.images]),
            "validation": data.validation.take(torch.arange(0, len(data.validation), 10)),
            "fingerprint": f"{data.fingerprint}[:{options.images}]",
        }
    )


class Records:
    """A JSON file of finished and unfinished runs."""

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"runs": {}}
        if path.exists():
            self.content = json.loads(path.read_text())
        self.content |= {
            "data": DATA_NOTE,
            "environment": describe_environment() | {"threads": torch.get_num_threads()},
            **description,
        }

    def __contains__(self, key: str) -> bool:
        return bool(self.content["runs"].get(key, {}).get("finished"))

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Write a run's record."""
        self.content["runs"][key] = record
        self.save()

    def save(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.content, indent=1) + "\n")


def run(
    records: Records,
    key: str,
    make: Callable[[], nn.Module],
    data: ImageData,
    recipe: Recipe,
    options: argparse.Namespace,
    *,
    seed: int,
    extra: dict[str, Any] | None = None,
    wrap_optimizer: WrapOptimizer | None = None,
) -> TrainResult | None:
    """Train one model, or take it up where it was stopped; None where it is finished already."""
    if key in records:
        print(f"{key}: finished already")
        return None
    torch.manual_seed(seed)
    model = make()
    about = {
        **(extra or {}),
        "seed": seed,
        "recipe": recipe.to_dict(),
        "train_parameters": sum(p.numel() for p in model.parameters()),
        "step_memory_bytes": step_memory(model, data.image_shape, recipe.batch_size),
    }
    known = records.content["runs"].get(key, {}).get("curve", [])
    curve = [EpochRecord(**entry) for entry in known]
    started = time.perf_counter()

    def follow(progress: Progress) -> None:
        record = progress.record
        if record is None:
            return
        curve[:] = [*(entry for entry in curve if entry.epoch < record.epoch), record]
        print(
            f"{key}: epoch {record.epoch}/{progress.epochs}  loss {record.train_loss:.3f}  "
            f"test {100 * record.validation_accuracy:.2f} %  {record.seconds:.0f} s",
            flush=True,
        )
        records.put(key, {**about, "curve": [asdict(entry) for entry in curve]})

    result = train(
        model,
        data,
        recipe=recipe,
        out=options.runs / key.replace("/", "-"),
        seed=seed,
        on_progress=follow,
        resume=True,
        save_every_steps=50,
        wrap_optimizer=wrap_optimizer,
        hardware=Hardware(accelerator="cpu"),
    )
    finished = {
        **about,
        "curve": [asdict(entry) for entry in result.history],
        "accuracy": result.validation_accuracy,
        "train_seconds": sum(record.train_seconds for record in result.history),
        "seconds": result.seconds,
        "seconds_of_this_start": time.perf_counter() - started,
        "finished": True,
    }
    records.put(key, finished)
    return result


def step_memory(model: nn.Module, shape: tuple[int, int, int], batch_size: int) -> int:
    """Return the bytes that one training step holds: parameters, gradients and saved activations.

    Counted, not sampled: the storages that autograd keeps for a batch of two and of four, from
    which a line gives the whole batch; parameters, their gradients and SGD's momentum come on top.
    """
    small, large = (_saved_bytes(model, torch.zeros(count, *shape)) for count in (2, 4))
    per_image = (large - small) // 2
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    return 3 * parameters + small - 2 * per_image + batch_size * per_image


def _saved_bytes(model: nn.Module, images: Tensor) -> int:
    seen: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    buffers = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.train()
        loss = functional.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.int64))
    del loss
    model.load_state_dict(buffers)  # batch norms have seen the zeros
    torch.set_rng_state(random)
    return sum(seen.values())


def forward_macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    mode = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    model.train(mode)
    return counter.get_total_flops() // 2


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean and sample standard deviation."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else float("nan"),
        "runs": len(values),
    }


def accuracies(records: Records, arm: str) -> list[float]:
    """Return the accuracy of every finished run of one arm (keys ``arm/seed``)."""
    runs = records.content["runs"]
    return [
        run["accuracy"]
        for key, run in sorted(runs.items())
        if key.rpartition("/")[0] == arm and run.get("finished")
    ]


def repvgg(
    depths: Sequence[int],
    widths: Sequence[int],
    *,
    stem_stride: int = 1,
    branches: str = "repvgg",
) -> nn.Module:
    """Return a RepVGG for images of 32 pixels."""
    spec = models.RepVGGSpec(
        depths=tuple(depths),
        widths=tuple(widths),
        stem_width=widths[0],
        stem_stride=stem_stride,
        strides=(1, *(2 for _ in depths[1:])),
        branches=models.BRANCHES[branches],
    )
    return models.RepVGG(spec, num_classes=10)


def resnet(depths: Sequence[int], widths: Sequence[int], *, stem_stride: int = 1) -> nn.Module:
    """Return a ResNet of basic blocks for images of 32 pixels (He et al. 2016, section 4.2).

    The blocks are torchvision's, with 1x1 convolutions where a stage begins.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(3, widths[0], 3, stem_stride, 1, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
    ]
    channels = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for unit in range(depth):
            stride = 2 if stage and not unit else 1
            shortcut = None
            if stride != 1 or channels != width:
                shortcut = nn.Sequential(
                    nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )
            layers.append(BasicBlock(channels, width, stride, shortcut))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
