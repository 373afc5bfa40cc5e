"""What the CIFAR-10 experiments share: data, resumable runs, records, tables and pictures.

Every run keeps its checkpoints under ``runs/`` and goes on from them when the script is started
again after it was stopped; what is finished is in a JSON file and is not run again. Several
processes may write to one file: each changes the entries of its own runs.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from make_cifar10 import TEST, TRAIN
from tables import ROOT
from torch import Tensor, distributed, nn
from torch.nn import functional

from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment
from reparam.lab.data import ArraySplit, ImageData, open_data
from reparam.lab.training import Hardware, Progress, Recipe, TrainResult, train
from reparam.lab.training.result import EpochRecord, WrapOptimizer

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "training.md"
DATA_NOTE = "CIFAR-10 (JPEG): re-encoded, so a little below the original arrays"


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return the options that all scripts have."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--train", type=Path, default=TRAIN, help="make_cifar10.py makes it")
    options.add_argument("--test", type=Path, default=TEST)
    options.add_argument("--runs", type=Path, default=ROOT / "runs" / name)
    options.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--processes", type=int, default=1, help="as many as torchrun starts")
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


def open_parts(options: argparse.Namespace, images: int, held_out: int) -> ImageData:
    """Return some training images, others held out to choose by, and the test images."""
    wanted = options.images or images
    data = open_cifar(argparse.Namespace(**{**vars(options), "images": None}))
    assert isinstance(data.train, ArraySplit)
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    return replace(
        data,
        train=data.train.take(chosen[:wanted]),
        validation=data.train.take(chosen[-held_out:]),
        test=data.validation,
        fingerprint=f"{data.fingerprint}[:{wanted}][-{held_out}:]",
    )


class Records:
    """A JSON file of finished and unfinished runs."""

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"runs": {}}
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._newest():
            where = describe_environment() | {"threads": torch.get_num_threads()}
            self.content = {"data": DATA_NOTE, "environment": where} | self.content | description

    def __contains__(self, key: str) -> bool:
        return bool(self.content["runs"].get(key, {}).get("finished"))

    def put(self, key: str, record: dict[str, Any]) -> None:
        """Write a run's record, in the first of several processes."""
        if not first_process():
            return
        with self._newest():
            self.content["runs"][key] = record

    def set(self, **values: Any) -> None:
        """Write what was found from the runs."""
        with self._newest():
            self.content |= values

    @contextmanager
    def _newest(self) -> Iterator[None]:
        """Change the file's content as it is now, which another process may have written to."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if self.path.exists():
                self.content = json.loads(self.path.read_text())
            yield
            write_text(self.path, json.dumps(self.content, indent=1) + "\n")
        finally:
            os.close(folder)


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
    online: bool = False,
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
    started, busy = time.perf_counter(), time.process_time()

    def follow(progress: Progress) -> None:
        record = progress.record
        if record is None:
            return
        curve[:] = [*(entry for entry in curve if entry.epoch < record.epoch), record]
        print(
            f"{key}: epoch {record.epoch}/{progress.epochs}  loss {record.train_loss:.3f}  "
            f"validation {100 * record.validation_accuracy:.2f} %  {record.seconds:.0f} s",
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
        online=online,
        hardware=Hardware(accelerator="cpu", devices=options.processes),
    )
    cpu_seconds = torch.tensor(time.process_time() - busy, dtype=torch.float64)
    if distributed.is_initialized():
        distributed.all_reduce(cpu_seconds)
    finished = {
        **about,
        "curve": [asdict(entry) for entry in result.history],
        "accuracy": result.accuracy,
        "train_seconds": sum(record.train_seconds for record in result.history),
        "seconds": result.seconds,
        "seconds_of_this_start": time.perf_counter() - started,
        "cpu_seconds_of_this_start": float(cpu_seconds),
        "processes": options.processes,
        "finished": True,
    }
    records.put(key, finished)
    return result


def first_process() -> bool:
    """Whether this is the process that writes and reports."""
    return os.environ.get("RANK", "0") == "0"


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


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and sample standard deviation, which one value does not have."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
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


def seconds_of_steps(
    nets: dict[str, tuple[nn.Module, torch.optim.Optimizer]],
    recipe: Recipe,
    shape: tuple[int, int, int],
    repeats: int = 30,
) -> dict[str, float]:
    """Return the median time of one training step of each net, in seconds.

    The nets take turns step by step, so that whatever else the machine does meets all of them.
    """
    random = torch.Generator().manual_seed(0)
    images = torch.randn(recipe.batch_size, *shape, generator=random)
    labels = torch.randint(0, 10, (recipe.batch_size,), generator=random)
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for turn in range(repeats + 2):
        for name, (net, optimizer) in nets.items():
            net.train()
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
                loss = functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if turn >= 2:  # the first two choose algorithms and fill caches
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def percent(entry: dict[str, Any]) -> str:
    """Return a spread of accuracies as a table shows it."""
    if entry["runs"] < 2:
        return f"{100 * entry['mean']:.2f} (one run)"
    return f"{100 * entry['mean']:.2f} ± {100 * entry['deviation']:.2f} ({entry['runs']} runs)"
