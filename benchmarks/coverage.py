"""How far `reparam.fuse` reaches on models that it was not written for, and whether it is right.

    python benchmarks/coverage.py --sets timm torchvision --out runs/coverage

One JSON file a model is written as soon as the model is done, and a model that has one is skipped,
so that a run can be stopped and taken up again. Every model is compared in float64 and float32, at
two input sizes, beside a control: the unfused model with noise of 1e-16 added behind every layer.
The differences of the fused model have to be of the control's order.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from coverage_models import Entry, calibrate, entries
from torch import nn

import reparam
from reparam._support.files import atomic_path

# The tests' own counter of executed operators; it trusts nothing of the library.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from counting import count, stored_numbers, tensors_of

NOISE = 1e-16
"""Relative noise of the control, about half an ulp of float64."""

BLOCK_TOLERANCE = 1e-11
"""Float64 rounding of one block, whatever its depth, stays far below."""


class _Part(nn.Module):
    """What an entry compares, as a module, so that it can be counted."""

    def __init__(self, entry: Entry, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.entry = entry

    def forward(self, x: torch.Tensor) -> Any:
        return self.entry.run(self.model, x)


def measure(entry: Entry, *, timed: bool = False) -> dict[str, Any]:
    """Fuse one model and return what was found."""
    torch.manual_seed(0)
    model = entry.build()
    calibrate(model, _image(entry.image_px, entry.batch).float(), entry.run)
    model = model.double()
    x = _image(entry.image_px, 2)
    started = time.perf_counter()
    # A detector takes a list of images; its parts are traced without an example.
    plan = reparam.plan(model, None if entry.parts else x)
    fused = plan.apply()
    seconds = time.perf_counter() - started
    blocks = {_enclosing(r.where, model, fused) for r in plan.regions} - {""}
    result: dict[str, Any] = {
        "model": entry.name,
        "image_px": entry.image_px,
        "seconds_to_fuse": round(seconds, 3),
        "same_class": isinstance(fused, type(model)),
        "regions": len(plan.regions),
        "refusals": dict(Counter(_reason(r.why) for r in plan.refusals).most_common()),
        "before": _cost(entry, model, x),
        "after": _cost(entry, fused, x),
        "float64": _errors(entry, model, fused, x),
        "blocks": _block_errors(entry, model, fused, blocks, x),
        "float32": _single(entry, model, x),
    }
    other = _other_size(entry, model)
    result["other_shape"] = list(other.shape)
    result["float64_other"] = _errors(entry, model, fused, other)
    if entry.own is not None:
        result["own"] = _own(entry, model, x)
    if entry.end_to_end:
        fused(list(x))
    if timed:
        result["eager_ms"] = _times(entry, model.float(), fused.float(), x.float())
    result["ok"] = _is_right(result)
    return result


def _reason(why: str) -> str:
    """Leave out of a reason where it arose and its figures, so that equal ones are counted."""
    return re.sub(r" at (the model|[\w.]+)", "", re.sub(r"\d[\d,]*", "N", why))


def _image(px: int, batch: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(px + batch)
    return torch.randn(batch, 3, px, px, generator=rng, dtype=torch.float64)


def _cost(entry: Entry, model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    _, tally = count(_Part(entry, model), x)
    return {
        "convs": tally.convs,
        "linears": tally.linears,
        "norms": tally.norms,
        "macs": tally.macs,
        "stored": stored_numbers(model),
        "operators": tally.convs + tally.linears + tally.norms + tally.others.total(),
    }


@torch.no_grad()
def _errors(entry: Entry, model: nn.Module, fused: nn.Module, x: torch.Tensor) -> dict[str, float]:
    expected = [t.clone() for t in tensors_of(entry.run(model, x.clone()))]
    actual = list(tensors_of(entry.run(fused, x.clone())))
    noisy = list(tensors_of(_with_noise(entry, model, x)))
    return {
        "fused": _distance(expected, actual),
        "control": _distance(expected, noisy),
        "input_matters": _distance(
            expected, list(tensors_of(entry.run(model, x.flip(0, 3).contiguous())))
        ),
    }


def _with_noise(entry: Entry, model: nn.Module, x: torch.Tensor) -> Any:
    rng = torch.Generator().manual_seed(1)

    def disturb(_module: nn.Module, _args: Any, out: Any) -> Any:
        if not isinstance(out, torch.Tensor) or not out.is_floating_point():
            return None
        noise = torch.randn(out.shape, generator=rng, dtype=torch.float64).to(out)
        return out + NOISE * out.abs().amax() * noise

    leaves = [m for m in model.modules() if not any(True for _ in m.children())]
    handles = [leaf.register_forward_hook(disturb) for leaf in leaves]
    try:
        return entry.run(model, x.clone())
    finally:
        for handle in handles:
            handle.remove()


def _distance(left: Iterable[torch.Tensor], right: Iterable[torch.Tensor]) -> float:
    """Return the largest difference of two lists of tensors, each over its largest number."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if a.is_floating_point() and a.numel():
            scale = float(a.double().abs().max()) or 1.0
            worst = max(worst, float((a.double() - b.double()).abs().max()) / scale)
    return worst


def _enclosing(path: str, model: nn.Module, fused: nn.Module) -> str:
    """Name the nearest module around ``path`` that is a block in both models, or the root."""
    originals, fuseds = dict(model.named_modules()), dict(fused.named_modules())
    if path not in originals:
        return ""
    # A single layer may have taken over what stands outside it, and a container has no forward.
    while path and (
        not any(True for _ in originals[path].children())
        or type(fuseds.get(path, nn.Module())) is nn.Module
    ):
        path = path.rpartition(".")[0]
    return path


def _block_errors(
    entry: Entry, model: nn.Module, fused: nn.Module, names: set[str], x: torch.Tensor
) -> dict[str, float | str | int]:
    """Run each rewritten block on what its original got; return the worst difference.

    A layer may take over a norm that stands outside its block. The block that computes the same
    then is one further out, so a block that differs is replaced by the one around it.
    """
    count, worst, where, widened = len(names), 0.0, "", 0
    while names:
        errors = _errors_of(entry, model, fused, names, x)
        fine = {name: error for name, error in errors.items() if error <= BLOCK_TOLERANCE}
        for name, error in fine.items():
            if error > worst:
                worst, where = error, name
        outer = {_enclosing(n.rpartition(".")[0], model, fused) for n in names - set(fine)}
        widened += len(names - set(fine))
        names = outer - {""}  # the model itself is compared anyway
    return {"count": count, "worst": worst, "where": where, "widened": widened}


@torch.no_grad()
def _errors_of(
    entry: Entry, model: nn.Module, fused: nn.Module, names: set[str], x: torch.Tensor
) -> dict[str, float]:
    inputs: dict[str, list[Any]] = {name: [] for name in names}
    outputs: dict[str, list[list[torch.Tensor]]] = {name: [] for name in names}

    def before(name: str) -> Any:
        # Copies are taken before the call, since it may write into what it reads.
        return lambda _module, args, kwargs: inputs[name].append(copy.deepcopy((args, kwargs)))

    def after(name: str) -> Any:
        return lambda _module, _args, out: outputs[name].append(
            [t.clone() for t in tensors_of(out)]
        )

    handles = []
    for name in names:
        part = model.get_submodule(name)
        handles.append(part.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(part.register_forward_hook(after(name)))
    try:
        entry.run(model, x.clone())
    finally:
        for handle in handles:
            handle.remove()
    errors = dict.fromkeys(names, 0.0)
    for name in names:
        for (args, kwargs), out in zip(inputs[name], outputs[name], strict=True):
            actual = list(tensors_of(fused.get_submodule(name)(*args, **kwargs)))
            errors[name] = max(errors[name], _distance(out, actual))
    return errors


def _single(entry: Entry, model: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Compare the fused and the unfused float32 model with the float64 one."""
    single = copy.deepcopy(model).float()
    fused = reparam.fuse(single, None if entry.parts else x.float())
    with torch.no_grad():
        truth = list(tensors_of(entry.run(model, x.clone())))
        plain = list(tensors_of(entry.run(single, x.float())))
        ours = list(tensors_of(entry.run(fused, x.float())))
    return {"fused": _distance(truth, ours), "unfused": _distance(truth, plain)}


def _other_size(entry: Entry, model: nn.Module) -> torch.Tensor:
    """Return another batch at another size, or at the same one if the model takes no other."""
    for px in (entry.image_px + 32, entry.image_px):
        x = _image(px, 3)
        try:
            with torch.no_grad():
                entry.run(model, x.clone())
        except (RuntimeError, AssertionError, ValueError):
            continue
        return x
    return _image(entry.image_px, 2)


def _own(entry: Entry, model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Count after the library's own conversion, done on a float32 copy as its users would."""
    assert entry.own is not None
    try:
        converted = entry.own(copy.deepcopy(model).float()).eval()
        return _cost(entry, converted, x.float())
    except Exception as error:  # noqa: BLE001 (a crash of the other library is a finding)
        return {"error": f"{type(error).__name__}: {error}"}


@torch.no_grad()
def _times(
    entry: Entry, model: nn.Module, fused: nn.Module, x: torch.Tensor, rounds: int = 9
) -> dict[str, float]:
    """Time both, interleaved, at batch 1: medians in milliseconds."""
    single = x[:1]
    spent: dict[str, list[float]] = {"unfused": [], "fused": []}
    for _ in range(rounds):
        for name, net in (("unfused", model), ("fused", fused)):
            started = time.perf_counter()
            entry.run(net, single)
            spent[name].append(1000 * (time.perf_counter() - started))
    return {name: sorted(times)[rounds // 2] for name, times in spent.items()}


def _is_right(result: dict[str, Any]) -> bool:
    """Judge by the control: rounding that the unfused model shows too is not an error."""
    close = all(
        result[key]["fused"] <= max(1e-12, 50 * result[key]["control"])
        for key in ("float64", "float64_other")
    )
    single = result["float32"]
    cost = all(result["after"][k] <= result["before"][k] for k in ("convs", "norms", "macs"))
    blocks = result["blocks"]["worst"] <= BLOCK_TOLERANCE
    return close and blocks and cost and single["fused"] <= 1e-6 + 4 * single["unfused"]


def main() -> None:
    """Run the chosen models and write their results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["timm", "torchvision"])
    parser.add_argument(
        "--only", nargs="+", default=[], help="words that a name must contain one of"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/coverage"))
    parser.add_argument("--time", action="store_true", help="also time eager execution")
    parser.add_argument("--again", action="store_true", help="measure models that have a result")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    for entry in entries(set(options.sets)):
        path = options.out / f"{entry.name.replace(':', '-')}.json"
        if options.only and not any(word in entry.name for word in options.only):
            continue
        if path.exists() and not options.again:
            continue
        try:
            result = measure(entry, timed=options.time)
        except Exception as error:  # noqa: BLE001 (one model must not end the run)
            result = {
                "model": entry.name,
                "ok": False,
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc(),
            }
        with atomic_path(path) as part:
            part.write_text(json.dumps(result, indent=1) + "\n")
        print(_line(result), flush=True)
        gc.collect()  # models and graphs refer to themselves


def _line(result: dict[str, Any]) -> str:
    if "error" in result:
        return f"{result['model']:42} RAISED {result['error'][:100]}"
    before, after = result["before"], result["after"]
    return (
        f"{result['model']:42} convs {before['convs']:4}->{after['convs']:4} "
        f"norms {before['norms']:4}->{after['norms']:4}  "
        f"f64 {result['float64']['fused']:.1e} (control {result['float64']['control']:.1e}) "
        f"block {result['blocks']['worst']:.1e}  {result['seconds_to_fuse']:.1f} s"
        f"{'' if result['ok'] else '  WRONG'}"
    )


if __name__ == "__main__":
    main()
