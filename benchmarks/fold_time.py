"""Time of folding twenty nets, beside timm's own conversion and one forward of the net.

    python benchmarks/fold_time.py                    # all of them, median of 5
    python benchmarks/fold_time.py repvit_m0_9        # or some

In each round the net is fused, fused once more step by step, traced by plain torch.fx, converted by
timm and run once (224 pixels, batch 1), one after the other in one process on one thread; the time
is the processor's, in which other work of the machine does not count. timm's conversion is called
as it is by default: it copies the net and checks nothing. Ours copies, checks each fold in float64,
and runs both nets side by side, at a size that it chooses itself. What no way of folding with these
checks can be faster than is the time of the checks; one that reads the net with torch.fx, in any
way, takes the time of its trace as well. The table is written from the results.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tables import markdown
from torch import nn

import reparam
from reparam._support.files import write_text
from reparam.deploy.benchmarking.environment import describe_environment

RESULTS = Path(__file__).with_name("results") / "fold_time.json"
NETS = (
    "repvgg_a0", "repvgg_a2", "repvgg_b0", "repvgg_b3", "mobileone_s0", "mobileone_s1",
    "mobileone_s4", "fastvit_t8", "fastvit_sa12", "repvit_m0_9", "repvit_m1_5", "repghostnet_100",
    "levit_128", "efficientvit_m0", "tiny_vit_5m_224", "resnet18", "resnet50",
    "mobilenetv3_large_100", "efficientnet_b0", "convnext_atto",
)  # fmt: skip
PIXELS = 224
Result = TypeVar("Result")


STEPS = ("plan", "fold", "write", "compare")


def prepared(name: str) -> nn.Module:
    """A net in eval mode whose norms are no identities."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
    return model


def timed(taken: dict[str, list[float]], step: str, run: Callable[[], Result]) -> Result:
    """Note the processor's time of one call."""
    start = time.process_time()
    result = run()
    taken[step].append(time.process_time() - start)
    return result


@torch.no_grad()
def measure(name: str, rounds: int) -> dict[str, Any]:
    """Measure one net: our way step by step, timm's and a forward in turns."""
    from timm.utils.model import reparameterize_model

    model, image = prepared(name), torch.randn(1, 3, PIXELS, PIXELS)
    taken: dict[str, list[float]] = {
        step: [] for step in ("ours", *STEPS, "torch.fx", "timm", "forward")
    }
    for _ in range(rounds + 1):  # the first one warms up
        timed(taken, "ours", partial(reparam.fuse, model))
        found = timed(taken, "plan", partial(reparam.plan, model))._discovery
        folded = timed(taken, "fold", found.folded)
        fused = timed(taken, "write", partial(found.write, folded))
        timed(taken, "compare", partial(found.checked, fused, edited=True))
        copied = copy.deepcopy(model)  # tracing leaves its symbols in a model that keeps values
        with suppress(Exception):  # it cannot trace what decides on a value: nothing is noted
            timed(taken, "torch.fx", partial(torch.fx.Tracer().trace, copied))
        twin = timed(taken, "timm", partial(reparameterize_model, model))
        timed(taken, "forward", partial(model, image))
    folds = len(twin.state_dict()) < len(model.state_dict())
    samples = {step: values[1:] for step, values in taken.items()}
    return {"samples": samples, "timm_folds": folds}


def medians(net: dict[str, Any]) -> dict[str, float]:
    """The median of the whole of ours, of each step, of timm's, and of a forward."""
    found = {step: statistics.median(v) for step, v in net["samples"].items() if v}
    found["checks"] = found["fold"] + found["compare"]
    return found


def table(record: dict[str, Any]) -> str:
    """Write the medians as a table, slowest against timm first."""
    rows = []
    for name, net in record["nets"].items():
        found = medians(net)
        ours, other = found["ours"], found["timm"]
        ratio = ours / other if net["timm_folds"] else None
        steps = sum(found[step] for step in STEPS)
        shares = (f"{found[step] / steps:.0%}" for step in STEPS)
        told = "folds nothing" if ratio is None else f"{ratio:.1f}"
        floor = "" if ratio is None else f"{found['checks'] / other:.1f}"
        traced = f"{found['torch.fx'] / other:.1f}" if ratio and "torch.fx" in found else ""
        cells = [f"{ours:.2f}", f"{other:.2f}", told, floor, traced, *shares]
        cells.append(f"{ours / found['forward']:.1f}")
        rows.append((-(ratio or 0.0), [name, *cells]))
    header = ["net", "ours, s", "timm, s", "ours / timm", "its checks / timm"]
    header += ["a torch.fx trace / timm", "plan", "fold, check", "write", "run both"]
    header += ["in forwards at 224 px"]
    return markdown(header, [row for _, row in sorted(rows)])


def claim(record: dict[str, Any]) -> str:
    """Say in a sentence how the two compare, and where timm is faster."""
    ratios = {
        name: found["ours"] / found["timm"]
        for name, net in record["nets"].items()
        if net["timm_folds"]
        for found in [medians(net)]
    }
    by_size = sorted(ratios, key=ratios.__getitem__)
    slow = [name for name in by_size if ratios[name] > 1.05]
    checks = [
        found["checks"] / found["timm"]
        for net in record["nets"].values()
        if net["timm_folds"]
        for found in [medians(net)]
    ]
    forwards = [f["ours"] / f["forward"] for f in map(medians, record["nets"].values())]
    return (
        f"Of {len(record['nets'])} nets of timm, {len(ratios)} are folded by timm's own "
        f"`reparameterize_model`, too, which checks nothing: `reparam.fuse` takes "
        f"{ratios[by_size[0]]:.1f} to {ratios[by_size[-1]]:.1f} times its time (median "
        f"{statistics.median(ratios.values()):.1f}), so timm is faster on {len(slow)} of them. "
        f"The checks (each fold in float64, both models side by side) alone take "
        f"{min(checks):.1f} to {max(checks):.1f} times (median {statistics.median(checks):.1f}). "
        f"Folding is the price of {min(forwards):.1f} to {max(forwards):.1f} forwards of one image "
        f"(median {statistics.median(forwards):.1f})."
    )


def main() -> None:
    """Measure, write the samples, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", default=list(NETS), help="timm models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="print the table of what is stored")
    options = parser.parse_args()
    record = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"nets": {}}
    if not options.table:
        torch.set_num_threads(1)
        for name in options.nets:
            record["nets"][name] = measure(name, options.rounds)
            record["environment"] = describe_environment()
            write_text(RESULTS, json.dumps(record, indent=2, default=str) + "\n")
            print(name, "done", flush=True)
    print(table(record))


if __name__ == "__main__":
    main()
