"""How far `reparam.fuse` reaches on models that it was not written for, and whether it is right.

    python benchmarks/coverage.py --sets timm torchvision --out runs/coverage

One JSON file a model is written as soon as the model is done, and a model that has one is skipped,
so that a run can be stopped and taken up again. Every model is compared in float64 and float32, at
two input sizes, beside a control: the unfused model with noise of 1e-16 added behind every layer.
The differences of the fused model have to be of the control's order.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import math
import sys
import time
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from coverage_counts import cloned, cost, left
from coverage_models import Entry, calibrate, entries
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import reparam
from reparam import Why
from reparam._support.files import atomic_path

# The tests' own counter of executed operators; it trusts nothing of the library.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from counting import tensors_of

NOISE = {torch.float64: 1e-16, torch.float32: 6e-8}
"""Relative noise of the control, about half an ulp."""

BLOCK_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}
"""Rounding of one block, whatever its depth, stays far below."""


@torch.no_grad()
def _precision(entry: Entry, model: nn.Module, x: Any) -> torch.dtype:
    """Float64, or float32 for a model that writes float32 into its own code."""
    try:
        entry.run(model.double(), cloned(x, torch.float64))
    except RuntimeError:
        model.float()
        entry.run(model, cloned(x, torch.float32))
        return torch.float32
    return torch.float64


def measure(entry: Entry, model: nn.Module, *, timed: bool = False) -> dict[str, Any]:
    """Fuse one model and return what was found."""
    dtype = _precision(entry, model, entry.example(2, entry.image_px))
    x = cloned(entry.example(2, entry.image_px), dtype)
    started = time.process_time()
    # A detector takes a list of images; its parts are traced without an example.
    plan = reparam.plan(model, None if entry.parts else cloned(x))
    fused = plan.apply()
    seconds = time.process_time() - started
    blocks = {_enclosing(r.where, model, fused) for r in plan.regions} - {""}
    result: dict[str, Any] = {
        "model": entry.name,
        "image_px": entry.image_px,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds_to_fuse": round(seconds, 3),
        "same_class": isinstance(fused, type(model)),
        "regions": len(plan.regions),
        "before": cost(entry, model, x),
        "after": cost(entry, fused, x),
        "left": left(entry, fused, x, plan.refusals),
        "untraced": [f"{r.where}: {r.why}" for r in plan.refusals if r.reason.kind in _UNREAD],
        "float64": _errors(entry, model, fused, x),
        "blocks": _block_errors(entry, model, fused, blocks, x),
    }
    if entry.in_float32:
        result["float32"] = _single(entry, model, x)
    other = _other_size(entry, model, dtype)
    result["other_shapes"] = [list(t.shape) for t in tensors_of(other)]
    result["float64_other"] = _errors(entry, model, fused, other)
    if entry.own is not None:
        result["own"] = _own(entry, model, x)
    if entry.end_to_end:
        fused(list(x))
    if timed:
        result["eager_ms"] = _times(entry, model.float(), fused.float(), x.float())
    result["ok"] = _is_right(result)
    return result


_UNREAD = {Why.NOT_TRACED, Why.TRACE_DIFFERS}


@torch.no_grad()
def _errors(entry: Entry, model: nn.Module, fused: nn.Module, x: Any) -> dict[str, Any]:
    result = entry.run(model, cloned(x))
    expected = [t.clone() for t in tensors_of(result)]
    actual = entry.run(fused, cloned(x))
    flipped = tree_map(lambda t: t.flip(0, *range(1, t.dim())[2:]).contiguous(), x)
    return {
        "fused": _distance(expected, tensors_of(actual)),
        "control": _distance(expected, tensors_of(_with_noise(entry, model, x))),
        "input_matters": _distance(expected, tensors_of(entry.run(model, flipped))),
        "same_types": _types(result) == _types(actual),
    }


def _dtype(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _types(result: Any) -> Any:
    """What a result is made of: containers of their own classes, names, types of numbers."""
    if isinstance(result, dict):
        return type(result), [(key, _types(value)) for key, value in result.items()]
    if isinstance(result, list | tuple):
        return type(result), [_types(value) for value in result]
    return (
        (type(result), result.dtype, result.shape) if isinstance(result, Tensor) else type(result)
    )


def _with_noise(entry: Entry, model: nn.Module, x: Any) -> Any:
    rng = torch.Generator().manual_seed(1)
    relative = NOISE[_dtype(model)]

    def disturb(_module: nn.Module, _args: Any, out: Any) -> Any:
        if not isinstance(out, torch.Tensor) or not out.is_floating_point() or not out.numel():
            return None
        noise = torch.randn(out.shape, generator=rng, dtype=torch.float64).to(out)
        return out + relative * out.abs().amax() * noise

    leaves = [m for m in model.modules() if not any(True for _ in m.children())]
    handles = [leaf.register_forward_hook(disturb) for leaf in leaves]
    try:
        return entry.run(model, cloned(x))
    finally:
        for handle in handles:
            handle.remove()


def _distance(left: Iterable[Tensor], right: Iterable[Tensor]) -> float:
    """Return the largest difference of two lists of tensors, each over its largest number.

    What is not finite has to be the same on both sides; lists without numbers, or of other shapes,
    are infinitely far apart.
    """
    worst, compared = 0.0, False
    left, right = list(left), list(right)
    if [t.shape for t in left] != [t.shape for t in right]:
        return math.inf
    for a, b in zip(left, right, strict=True):
        if a.is_complex():
            a, b = torch.view_as_real(a), torch.view_as_real(b)  # noqa: PLW2901
        if a.is_floating_point() and a.numel():
            compared = True
            worst = max(worst, _furthest(a.double(), b.double()))
    return worst if compared else math.inf


def _furthest(a: Tensor, b: Tensor) -> float:
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()) or not torch.equal(
        a[~finite].nan_to_num(), b[~finite].nan_to_num()
    ):
        return math.inf
    if not bool(finite.any()):
        return 0.0
    scale = float(a[finite].abs().max()) or 1.0
    return float((a[finite] - b[finite]).abs().max()) / scale


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
    entry: Entry, model: nn.Module, fused: nn.Module, names: set[str], x: Any
) -> dict[str, float | str | int]:
    """Run each rewritten block on what its original got; return the worst difference.

    A layer may take over a norm that stands outside its block. The block that computes the same
    then is one further out, so a block that differs is replaced by the one around it.
    """
    count, worst, where, widened = len(names), 0.0, "", 0
    tolerance = BLOCK_TOLERANCE[_dtype(model)]
    while names:
        errors = _errors_of(entry, model, fused, names, x)
        fine = {name: error for name, error in errors.items() if error <= tolerance}
        for name, error in fine.items():
            if error > worst:
                worst, where = error, name
        outer = {_enclosing(n.rpartition(".")[0], model, fused) for n in names - set(fine)}
        widened += len(names - set(fine))
        names = outer - {""}  # the model itself is compared anyway
    return {"count": count, "worst": worst, "where": where, "widened": widened}


@torch.no_grad()
def _errors_of(
    entry: Entry, model: nn.Module, fused: nn.Module, names: set[str], x: Any
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
        entry.run(model, cloned(x))
    finally:
        for handle in handles:
            handle.remove()
    errors = dict.fromkeys(names, 0.0)
    for name in names:
        for (args, kwargs), out in zip(inputs[name], outputs[name], strict=True):
            actual = list(tensors_of(fused.get_submodule(name)(*args, **kwargs)))
            errors[name] = max(errors[name], _distance(out, actual))
    return errors


def _single(entry: Entry, model: nn.Module, x: Any) -> dict[str, float]:
    """Compare the fused and the unfused float32 model with the float64 one."""
    single = copy.deepcopy(model).float()
    fused = reparam.fuse(single, None if entry.parts else cloned(x, torch.float32))
    with torch.no_grad():
        truth = list(tensors_of(entry.run(model, cloned(x))))
        plain = list(tensors_of(entry.run(single, cloned(x, torch.float32))))
        ours = list(tensors_of(entry.run(fused, cloned(x, torch.float32))))
    return {"fused": _distance(truth, ours), "unfused": _distance(truth, plain)}


def _other_size(entry: Entry, model: nn.Module, dtype: torch.dtype) -> Any:
    """Return another batch at another size, or what of this the model takes."""
    for batch, more in ((3, 32), (3, 0), (1, 0)):
        x = cloned(entry.example(batch, entry.image_px + more), dtype)
        try:
            with torch.no_grad():
                entry.run(model, cloned(x))
        except Exception:  # noqa: BLE001, S112 (a model may say in any way that it takes it not)
            continue
        return x
    return cloned(entry.example(2, entry.image_px), dtype)


def _own(entry: Entry, model: nn.Module, x: Any) -> dict[str, Any]:
    """Count after the library's own conversion, done on a float32 copy as its users would."""
    assert entry.own is not None
    try:
        converted = entry.own(copy.deepcopy(model).float()).eval()
        return cost(entry, converted, cloned(x, torch.float32))
    except Exception as error:  # noqa: BLE001 (a crash of the other library is a finding)
        return {"error": f"{type(error).__name__}: {error}"}


@torch.no_grad()
def _times(
    entry: Entry, model: nn.Module, fused: nn.Module, x: Any, rounds: int = 9
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


_LOST = 0.1
"""Difference of float32 from float64, of the largest output: from there the net itself fails."""


def _is_right(result: dict[str, Any]) -> bool:
    """Judge by the control: rounding that the unfused model shows too is not an error."""
    close = all(
        result[key]["fused"] <= max(1e-12, 50 * result[key]["control"])
        for key in ("float64", "float64_other")
    )
    same = all(result[key]["same_types"] for key in ("float64", "float64_other"))
    single = result.get("float32", {"fused": 0.0, "unfused": 0.0})
    cost = all(result["after"][k] <= result["before"][k] for k in ("convs", "norms", "macs"))
    blocks = result["blocks"]["worst"] <= BLOCK_TOLERANCE[getattr(torch, result["dtype"])]
    # A net that float32 cannot compute, whose rounding grows to the size of the output, shows none.
    near = single["fused"] <= 1e-6 + 4 * single["unfused"] or single["unfused"] > _LOST
    return close and same and blocks and cost and near


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
        result = _result(entry, timed=options.time)
        with atomic_path(path) as part:
            part.write_text(json.dumps(result, indent=1) + "\n")
        print(_line(result), flush=True)
        gc.collect()  # models and graphs refer to themselves


def _result(entry: Entry, *, timed: bool) -> dict[str, Any]:
    """Measure a model; one that cannot be built and run, or raises, must not end the run."""
    built = False
    torch.manual_seed(0)
    try:
        model = entry.build()
        example = entry.example(entry.batch, entry.image_px)
        calibrate(model, cloned(example, torch.float32), entry.run)
        built = True
        with contextlib.redirect_stdout(sys.stderr):
            return measure(entry, model, timed=timed)
    except Exception as error:  # noqa: BLE001
        what = "error" if built else "not_built"
        return {
            "model": entry.name, "ok": False, what: f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }  # fmt: skip


def _line(result: dict[str, Any]) -> str:
    if "not_built" in result:
        return f"{result['model']:42} NOT BUILT {result['not_built'][:100]}"
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
